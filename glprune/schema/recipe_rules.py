"""The rules that keys of a recipe must satisfy together; ranges and types of single keys are in the models.

A section's rules are checked in order; the first that is broken becomes the error message.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Generic, TypeVar

from glprune.schema.metrics import METRICS, RANGES

if TYPE_CHECKING:
    from glprune.schema.recipe import (
        DataSpec,
        InputSpec,
        MetricName,
        ModelSpec,
        PenaltySpec,
        PolicySpec,
        Recipe,
        ReportSpec,
        SplitSpec,
        StabilitySpec,
        TargetSpec,
        TrainSpec,
    )

_Section = TypeVar("_Section")


@dataclass(frozen=True)
class Rule(Generic[_Section]):
    """A rule on the keys of one section.

    Attributes:
        key: The key to report, relative to the section and with dots; the message gives its line.
        violation: Returns something true if the section breaks the rule: True, or what the sentence names.
        sentence: The message: what is wrong and the fix. A format string with the fields ``found``, what
            ``violation`` returned, and ``section``.
    """

    key: str
    violation: Callable[[_Section], object]
    sentence: str


class RuleError(ValueError):
    """A section breaks a rule.

    Args:
        keys: The key to report, relative to the section.
        message: What is wrong and the fix.
    """

    def __init__(self, keys: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.keys = keys


def check_rules(rules: Iterable[Rule[_Section]], section: _Section) -> None:
    """Check a section against its rules.

    Raises:
        RuleError: The first rule that is broken.
    """
    for rule in rules:
        found = rule.violation(section)
        if found:
            message = rule.sentence.format(found=found, section=section)
            raise RuleError(tuple(rule.key.split(".")), message)


def _duplicate(names: Iterable[str] | None) -> str | None:
    """Return the first name that occurs more than once."""
    return next((name for name, count in Counter(names or ()).items() if count > 1), None)


# --------------------------------------------------------------------------- within one section

INPUT_RULES: tuple[Rule[InputSpec], ...] = (
    Rule(
        "axis", lambda s: s.axis == 0, "axis: 0 is the batch; give the axis of the features, such as 1 or -1"
    ),
    Rule("columns", lambda s: _duplicate(s.columns), "columns lists {found!r} twice; list every column once"),
)


def _impossible(expected: Mapping[MetricName, float]) -> str | None:
    """Describe the first expected value that its metric cannot have."""
    for name, value in expected.items():
        low, high = RANGES[name]
        if low is not None and value < low:
            return f"{name}: {value:g} is below {low}, its least value"
        if high is not None and value > high:
            return f"{name}: {value:g} is above {high}, its largest value"
    return None


MODEL_RULES: tuple[Rule[ModelSpec], ...] = (
    Rule(
        "inputs",
        lambda s: _duplicate(part.name for part in s.inputs),
        "inputs lists {found!r} twice; give every input a different name",
    ),
    Rule(
        "outputs",
        lambda s: _duplicate([*(part.name for part in s.inputs), *(s.outputs or [])]),
        "outputs: the name {found!r} is taken; give every output a different name",
    ),
    Rule(
        "expect",
        lambda s: _impossible(s.expect),
        "expect.{found}; give the metric as it was measured, not in percent",
    ),
)


def _has_wrong_shares(split: SplitSpec) -> bool:
    given = [s for s in (split.train, split.valid, split.test) if s is not None]
    return bool(given) and (
        len(given) < 3 or not math.isclose(sum(given), 1.0, abs_tol=1e-9) or min(given) == 0
    )


SPLIT_RULES: tuple[Rule[SplitSpec], ...] = (
    Rule(
        "column",
        lambda s: (
            s.column is not None
            and any(value is not None for value in (s.train, s.valid, s.test, s.stratify))
        ),
        "column and shares contradict each other; keep one of them",
    ),
    Rule(
        "train",
        _has_wrong_shares,
        "train, valid and test must all be given, be above 0 and add up to 1",
    ),
)


def _group_with_duplicate(groups: Mapping[str, str | list[str]]) -> tuple[str, str] | None:
    """Return the first feature that lists a column twice, and the column."""
    found = ((name, _duplicate(c)) for name, c in groups.items() if not isinstance(c, str))
    return next(((name, column) for name, column in found if column is not None), None)


DATA_RULES: tuple[Rule[DataSpec], ...] = (
    Rule(
        "features",
        lambda s: _duplicate(s.features),
        "features lists {found!r} twice; list every feature once",
    ),
    Rule(
        "feature_groups",
        lambda s: _group_with_duplicate(s.feature_groups),
        "feature_groups: {found[0]!r} lists {found[1]!r} twice; list every column once",
    ),
    Rule(
        "train",
        lambda s: any((s.train, s.valid, s.test)) and not all((s.train, s.valid, s.test)),
        "train, valid and test must be given together",
    ),
    Rule(
        "file",
        lambda s: sum(v is not None for v in (s.file, s.train, s.loader, s.source)) != 1,
        "give exactly one of file, train+valid+test, loader or source",
    ),
    Rule(
        "arguments",
        lambda s: s.arguments and s.source is None,
        "arguments are passed to source, which is not given; remove them",
    ),
    Rule(
        "target",
        lambda s: s.yields and s.target is not None,
        "target contradicts loader, which yields the target itself; remove one",
    ),
    Rule("split", lambda s: s.split is not None and s.file is None, "split divides `file` only; remove it"),
    Rule(
        "standardize",
        lambda s: s.yields and (s.standardize != "none" or s.exclude),
        "standardize and exclude apply to files; do both inside the loader",
    ),
    Rule(
        "stream",
        lambda s: s.yields and s.stream is not None,
        "stream contradicts loader, which streams by itself; remove one",
    ),
)

_STRUCTURED = ("tree_group_lasso", "latent_group_lasso")


def _cycle(penalty: PenaltySpec) -> str | None:
    """Return a path from a group of features back to itself, in words."""
    graph = {
        name: [p for p in ([parts] if isinstance(parts, str) else parts) if p in penalty.groups]
        for name, parts in penalty.groups.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return None


PENALTY_RULES: tuple[Rule[PenaltySpec], ...] = (
    Rule(
        "groups",
        lambda s: _group_with_duplicate(s.groups),
        "groups: {found[0]!r} lists {found[1]!r} twice; list every feature once",
    ),
    Rule(
        "l1_ratio",
        lambda s: s.l1_ratio is not None and s.kind != "sparse_group_lasso",
        "l1_ratio belongs to kind: sparse_group_lasso; remove it",
    ),
    Rule(
        "gamma",
        lambda s: s.gamma is not None and s.kind != "group_mcp",
        "gamma belongs to kind: group_mcp; remove it",
    ),
    Rule(
        "plugin",
        lambda s: (s.plugin is not None) != (s.kind == "plugin"),
        "plugin and kind: plugin belong together; give both or neither",
    ),
    Rule(
        "arguments",
        lambda s: s.arguments and s.plugin is None,
        "arguments are passed to plugin, which is not given; remove them",
    ),
    Rule(
        "groups",
        lambda s: s.groups and s.kind not in _STRUCTURED,
        "groups belongs to kind: tree_group_lasso or latent_group_lasso; remove it",
    ),
    Rule(
        "kind",
        lambda s: not s.groups and s.kind in _STRUCTURED,
        "kind: {section.kind} needs groups; list the features of each",
    ),
    Rule("groups", _cycle, "groups: {found} is a cycle; remove one of them"),
    Rule(
        "groups",
        lambda s: s.groups and s.inputs is None,
        "groups are groups of inputs, and inputs is null; remove one",
    ),
    Rule(
        "inputs",
        lambda s: s.inputs is None and s.hidden is None,
        "inputs and hidden are both null; nothing would be pruned",
    ),
)


def _budgets(target: TargetSpec) -> list[str]:
    return [key for key in ("parameters", "macs", "latency") if getattr(target, key) is not None]


def _has_wrong_number_of_targets(target: TargetSpec) -> bool:
    features = target.max_features if target.frontier is None else target.frontier  # the two may go together
    others = (features, target.max_drop, target.lam)
    given = len(_budgets(target)) + sum(value is not None for value in others)
    return given > 1 or (given == 0 and target.max_hidden is None)


def _listed_twice(target: TargetSpec) -> str | None:
    return None if target.frontier in (None, "auto") else _duplicate(map(str, target.frontier or ()))


TARGET_RULES: tuple[Rule[TargetSpec], ...] = (
    Rule(
        "max_features",
        _has_wrong_number_of_targets,
        "give exactly one of max_features, frontier, max_drop, lambda, parameters, macs or latency, or "
        "max_hidden alone; max_features may stand beside frontier",
    ),
    Rule("frontier", _listed_twice, "frontier lists {found} twice; list every size once"),
    Rule(
        "frontier",
        lambda s: s.frontier is not None and s.max_hidden is not None,
        "frontier contradicts max_hidden; its sizes count features, remove one",
    ),
    Rule(
        "max_hidden",
        lambda s: s.max_hidden is not None and _budgets(s),
        "max_hidden contradicts {found[0]}, which counts hidden units too; keep one",
    ),
    Rule(
        "batch",
        lambda s: s.batch != 1 and s.latency is None and s.round_to != "auto",
        "batch belongs to latency and round_to: auto; remove it",
    ),
)

TRAIN_RULES: tuple[Rule[TrainSpec], ...] = (
    Rule(
        "momentum",
        lambda s: s.optimizer != "sgd" and s.momentum is not None,
        "momentum belongs to optimizer: sgd; remove it",
    ),
    Rule(
        "epochs",
        lambda s: s.epochs == 0 and s.full_batch_steps == 0,
        "epochs and full_batch_steps are both 0; nothing would be trained",
    ),
)

STABILITY_RULES: tuple[Rule[StabilitySpec], ...] = (
    Rule(
        "n_resamples",
        lambda s: s.n_resamples == 0 and not s.drop_cost,
        "n_resamples: 0 measures drop costs alone; set drop_cost: true, or n_resamples",
    ),
    Rule(
        "n_resamples",
        lambda s: s.n_resamples == 1,
        "n_resamples: 1 leaves nothing to compare with; use at least 2",
    ),
    Rule(
        "n_resamples",
        lambda s: (s.n_resamples, s.n_resamples + 1) if s.subsample == 0.5 and s.n_resamples % 2 else None,
        "n_resamples: {found[0]} is odd; halves come in complementary pairs, use {found[1]}",
    ),
    Rule(
        "subsample",
        lambda s: s.subsample == 1 and s.seeds == "recipe" and s.n_resamples,
        "subsample: 1 with seeds: recipe repeats the same search; set seeds: per_resample",
    ),
)

POLICY_RULES: tuple[Rule[PolicySpec], ...] = (
    Rule(
        "bins",
        lambda s: next((name for name in s.bins if name not in s.protected), None),
        "bins: {found!r} is not in protected; add it there or remove it",
    ),
    Rule(
        "bins",
        lambda s: next((n for n, e in s.bins.items() if any(a >= b for a, b in itertools.pairwise(e))), None),
        "bins: the edges of {found!r} must be in ascending order",
    ),
    Rule("must_drop", lambda s: _duplicate(s.must_drop), "must_drop lists {found!r} twice"),
    Rule("must_keep", lambda s: _duplicate(s.must_keep), "must_keep lists {found!r} twice"),
    Rule("protected", lambda s: _duplicate(s.protected), "protected lists {found!r} twice"),
    Rule(
        "proxies",
        lambda s: s.proxies and not s.protected,
        "proxies: true needs protected; list the attributes to predict",
    ),
)

# --------------------------------------------------------------------------- between sections


def _expected_of_another_task(recipe: Recipe) -> tuple[str, str] | None:
    metrics = METRICS[recipe.task]
    unknown = next((name for name in recipe.model.expect if name not in metrics), None)
    return None if unknown is None else (unknown, ", ".join(metrics))


def _metric_of_another_task(recipe: Recipe) -> tuple[str, str] | None:
    drop, allowed = recipe.target.max_drop, METRICS[recipe.task]
    return (drop.metric, ", ".join(allowed)) if drop is not None and drop.metric not in allowed else None


def _classes(recipe: Recipe) -> list[str]:
    return [str(c) for c in recipe.data.classes or ()]


def _first_input(recipe: Recipe, matches: Callable[[InputSpec], bool]) -> InputSpec | None:
    return next((part for part in recipe.model.inputs if matches(part)), None)


def _axes_of_no_input(recipe: Recipe) -> tuple[str, str] | None:
    names = [part.name for part in recipe.model.inputs]
    unknown = next((name for name in recipe.export.dynamic_axes if name not in names), None)
    return None if unknown is None else (unknown, ", ".join(names))


_TASKS: tuple[Rule[Recipe], ...] = (
    Rule(
        "target.max_drop.metric",
        _metric_of_another_task,
        "target.max_drop.metric: {found[0]} is not a metric of task: {section.task}; use {found[1]}",
    ),
    Rule(
        "data.classes",
        lambda r: _classes(r) and r.task in ("regression", "distillation"),
        "data.classes contradicts task: {section.task}; remove one",
    ),
    Rule("data.classes", lambda r: _duplicate(_classes(r)) is not None, "data.classes lists a class twice"),
    Rule(
        "data.classes",
        lambda r: len(_classes(r)) if r.task == "binary" and len(_classes(r)) not in (0, 2) else None,
        "data.classes lists {found} classes; task: binary needs two",
    ),
)

_PENALTY_AND_TARGET: tuple[Rule[Recipe], ...] = (
    Rule(
        "penalty.inputs",
        lambda r: r.penalty.inputs is not None and all(part.axis is None for part in r.model.inputs),
        "penalty.inputs: no input has an axis of features; set penalty.inputs: null",
    ),
    Rule(
        "target.max_features",
        lambda r: r.target.max_features is not None and r.penalty.inputs is None,
        "target.max_features needs penalty.inputs, which is null",
    ),
    Rule(
        "target.frontier",
        lambda r: r.target.frontier is not None and r.penalty.inputs is None,
        "target.frontier needs penalty.inputs, which is null",
    ),
    Rule(
        "target.max_hidden",
        lambda r: r.target.max_hidden is not None and r.penalty.hidden is None,
        "target.max_hidden needs penalty.hidden; add 'hidden: {{strength: 1}}' there",
    ),
    Rule(
        "target.max_hidden",
        lambda r: r.target.max_hidden is not None and r.penalty.inputs is None and not r.target.hidden_alone,
        "target.max_hidden beside another target needs penalty.inputs, which is null; keep max_hidden alone",
    ),
    Rule(
        "target.max_hidden",
        lambda r: r.target.hidden_alone and r.penalty.inputs is not None,
        "target.max_hidden alone sets no target for inputs; set penalty.inputs: null",
    ),
)

REPORT_RULES: tuple[Rule[ReportSpec], ...] = (
    Rule(
        "jurisdiction",
        lambda s: s.jurisdiction is not None and s.domain is None,
        "jurisdiction needs report.domain, which chooses the regulations, such as consumer_credit",
    ),
)
_STABILITY: tuple[Rule[Recipe], ...] = (
    Rule(
        "stability.n_resamples",
        lambda r: r.stability is not None and r.stability.n_resamples and r.penalty.inputs is None,
        "stability.n_resamples needs penalty.inputs, which is null; set it to 0 for drop costs alone",
    ),
    Rule(
        "stability.subsample",
        lambda r: (
            r.stability is not None
            and r.stability.n_resamples
            and r.stability.subsample == 1
            and (r.train.batch_size == "all" or r.train.epochs == 0)
        ),
        "stability.subsample: 1 varies only the shuffling; train.batch_size: all or epochs: 0 has none",
    ),
)

_STREAMING: tuple[Rule[Recipe], ...] = (
    Rule(
        "train.batch_size",
        lambda r: r.data.stream is not None and r.train.batch_size == "all",
        "train.batch_size: all holds every row in memory, which contradicts data.stream; give a number",
    ),
    Rule(
        "refit.batch_size",
        lambda r: r.data.stream is not None and r.refit.batch_size == "all",
        "refit.batch_size: all holds every row in memory, which contradicts data.stream; give a number",
    ),
    Rule(
        "policy.proxies",
        lambda r: r.data.stream is not None and r.policy is not None and r.policy.proxies,
        "policy.proxies: true holds every row in memory, which contradicts data.stream; remove one",
    ),
)

_POLICY: tuple[Rule[Recipe], ...] = (
    Rule(
        "policy.protected",
        lambda r: r.policy is not None and r.policy.protected and r.data.yields,
        "policy.protected needs a file with these columns; data.loader has none, give data.file",
    ),
    Rule(
        "policy.threshold",
        lambda r: r.policy is not None and r.policy.threshold is not None and r.task != "binary",
        "policy.threshold contradicts task: {section.task}; it is for binary, remove it",
    ),
    Rule(
        "policy.adverse",
        lambda r: (
            r.policy is not None and r.policy.adverse is not None and r.task not in ("binary", "multiclass")
        ),
        "policy.adverse contradicts task: {section.task}, which has no classes; remove it",
    ),
)

_TARGET_COLUMN: tuple[Rule[Recipe], ...] = (
    Rule(
        "data.target",
        lambda r: r.task != "distillation" and not r.data.yields and r.data.target is None,
        "data: target is missing; name the column to predict",
    ),
    Rule(
        "data.target",
        lambda r: r.task == "distillation" and r.data.target is not None,
        "data.target contradicts task: distillation, which learns from the original network; remove it, and "
        "list the column under data.exclude",
    ),
    Rule(
        "data.split",
        lambda r: r.task == "distillation" and r.data.split is not None and r.data.split.stratify,
        "data.split: stratify needs classes; task: distillation has none, remove it",
    ),
    Rule(
        "refit.distill",
        lambda r: r.task == "distillation" and r.refit.distill,
        "refit.distill contradicts task: distillation, which distils already; remove it",
    ),
    Rule(
        "model.expect",
        lambda r: r.task == "distillation" and r.model.expect,
        "model.expect contradicts task: distillation, which has no labels to measure with; remove it",
    ),
    Rule(
        "model.expect",
        _expected_of_another_task,
        "model.expect: {found[0]} is not a metric of task: {section.task}; use {found[1]}",
    ),
    Rule(
        "model.prediction",
        lambda r: r.task == "distillation" and r.model.prediction is not None,
        "model.prediction contradicts task: distillation, which uses every output; remove it",
    ),
)

_INPUTS: tuple[Rule[Recipe], ...] = (
    Rule(
        "model.inputs",
        lambda r: r.data.yields and _first_input(r, lambda part: part.columns is not None),
        "model.inputs: columns of {found.name!r} contradict data.loader; remove them",
    ),
    Rule(
        "model.inputs",
        lambda r: (
            not r.data.yields
            and len(r.model.inputs) > 1
            and _first_input(r, lambda part: part.columns is None)
        ),
        "model.inputs: {found.name!r} has no columns; name the columns that feed each input",
    ),
    Rule(
        "model.inputs",
        lambda r: not r.data.yields and _first_input(r, lambda part: part.axis not in (None, 1, -1)),
        "model.inputs: axis {found.axis} of {found.name!r} does not exist; files give (rows, "
        "columns), axis 1",
    ),
    Rule(
        "export.dynamic_axes",
        _axes_of_no_input,
        "export.dynamic_axes: no input {found[0]!r}; the inputs are {found[1]}",
    ),
    Rule(
        "export.dynamic_axes",
        lambda r: _first_input(r, lambda part: str(part.axis) in r.export.dynamic_axes.get(part.name, {})),
        "export.dynamic_axes: axis {found.axis} of {found.name!r} holds the features, whose number is fixed; "
        "remove it",
    ),
)

RECIPE_RULES: tuple[Rule[Recipe], ...] = (
    *_TASKS,
    *_PENALTY_AND_TARGET,
    *_STABILITY,
    *_STREAMING,
    *_POLICY,
    *_TARGET_COLUMN,
    *_INPUTS,
)
