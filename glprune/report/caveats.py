"""What a reader must know: the warnings that follow from the figures, and what a run did not measure.

``glprune run`` writes them into the report; ``glprune verify`` derives them again and compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glprune._wording import counted, shortened
from glprune.report.sentences import kept_not_converged, removed_not_optimal
from glprune.report.uncertainty import (
    int8_loss_sentence,
    is_clear_int8_loss,
    is_clear_loss,
    loss_sentence,
)
from glprune.schema.metrics import KKT_TOLERANCE, MACS_SLACK
from glprune.schema.recipe import resolve_budget

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import PathPoint, Report, SearchStage

NO_PROXIES = "Whether kept features carry the information of removed ones (proxies)."
NO_SEGMENTS = "Performance by segment."
_LINEAR_PROXIES = (
    "Whether kept features carry the information of removed features that are not protected, or not linearly."
)
_NO_INTERVALS = "Confidence intervals of the differences between segments."
_STABILITY = "How stable the selection is over resamples, seeds and splits."
_RETRAINING = (
    "How stable the selection is over networks trained again: all resamples start from the given network."
)
_UPSTREAM = "Whether upstream systems still collect or pass on the removed features."
_OTHER_LATENCY = "Latency on other hardware, batch sizes or thread counts than those listed."
_OTHER_SETS = (
    "Whether other sets of as many features are better: hidden units were removed along the same path, so "
    "that none was compared."
)
_WITHOUT_LABELS = "Whether the original network or the shipped one is correct: there were no labels."
_TRAIN_LONGER = "increase train.epochs or train.full_batch_steps."
_NOT_SETTLED = (
    f"(tolerance {KKT_TOLERANCE:g}): training ended before the weights settled, and "
    "longer training might have removed other groups. The comparison of outputs before and after removal "
    "does not depend on it. train.n_stages: 1 and more train.full_batch_steps come closer."
)
_BUDGET_USED = 0.97  # share of a budget below which the report says why


def not_measured(report: Report, recipe: Recipe) -> list[str]:
    """List what a run did not measure."""
    has_proxies = report.proxies is not None and report.proxies.performed
    has_segments = report.segments is not None and bool(report.segments.attributes)
    return [
        *([_WITHOUT_LABELS] if report.task == "distillation" else []),
        *([_OTHER_SETS] if _is_joint_path(report, recipe) else []),
        _UPSTREAM,
        _LINEAR_PROXIES if has_proxies else NO_PROXIES,
        _NO_INTERVALS if has_segments else NO_SEGMENTS,
        _STABILITY if report.stability is None else _RETRAINING,
        _OTHER_LATENCY,
    ]


def _is_joint_path(report: Report, recipe: Recipe) -> bool:
    """Whether a number of features was asked for and hidden units left along the same path."""
    target = recipe.target
    asked = target.max_features is not None or target.frontier is not None
    joint = any({*stage.penalised} == {"input", "hidden"} for stage in report.stages)
    return asked and target.max_hidden is None and joint


def warnings(report: Report, recipe: Recipe) -> list[str]:
    """List the warnings that follow from the report's figures, those of its own list aside.

    Args:
        report: The report.
        recipe: Its recipe, with all defaults.
    """
    return [
        *_removal(report, recipe),
        *_zero_inputs(report),
        *_budgets(report, recipe),
        *_stability(report),
        *_halvings(report),
        *_policy(report, recipe),
        *_optimality(report),
        *_performance(report),
        *_int8(report),
    ]


def _removal(report: Report, recipe: Recipe) -> Iterator[str]:
    """Warn of units that could not be removed and of inexact cuts."""
    hidden = {layer.name: layer.refused for layer in report.hidden}
    for skipped in report.removal.refused:
        # the columns of an input have a note of their own where inputs are penalised
        if recipe.penalty.inputs is None or hidden.get(skipped.name) == skipped.reason:
            yield f"{skipped.name}: {counted(skipped.units, 'unit')} not removed: {skipped.reason}."
    for cut in report.removal.cuts:
        if cut.inexact:
            yield (
                f"{cut.name}: {counted(cut.units, 'unit')} removed that {cut.inexact} mixes with others, "
                f"which changes outputs by {cut.difference:.1e}."
            )


def _zero_inputs(report: Report) -> Iterator[str]:
    """Warn of inputs all of whose groups became zero: one column is kept, since an input cannot be empty."""
    stage = last_input_stage(report.stages)
    point = chosen_point(report, stage.number) if stage is not None else None
    refused = {skipped.name for skipped in report.removal.refused}
    for given in report.export.inputs:
        norms = [
            norm
            for norm, feature in zip(point.norms if point else (), report.features, strict=False)
            if feature.input == given.name
        ]
        if norms and not any(norms) and given.name not in refused:
            yield (
                f"All features of input {given.name!r} became zero; its first column is kept, since an "
                "input needs at least one."
            )


def last_input_stage(stages: Sequence[SearchStage]) -> SearchStage | None:
    """Return the last stage that penalised inputs; None if there was none."""
    return next((stage for stage in reversed(stages) if "input" in stage.penalised), None)


def chosen_point(report: Report, stage: int) -> PathPoint | None:
    """Return the point of the path that a stage chose; None if there is none."""
    return next((point for point in report.path if point.stage == stage and point.selected), None)


def _budgets(report: Report, recipe: Recipe) -> Iterator[str]:
    """Warn where a network is much smaller than its budget allows, or larger."""
    target, size = recipe.target, report.size
    for name, budget, before, after, slack in (
        ("parameters", target.parameters, size.parameters_before, size.parameters_after, 0.0),
        ("macs", target.macs, size.macs_before, size.macs_after, MACS_SLACK),
    ):
        used = after / resolve_budget(budget, before) if budget is not None else 1.0
        if used < _BUDGET_USED:
            yield (
                f"The network uses {used:.1%} of target.{name}. Removed units came back as long as they "
                "fitted; the next would exceed the budget."
            )
        elif used > 1 + slack and report.removal.refused:
            yield (
                f"The network uses {used:.1%} of target.{name}, since units that were to go could not be "
                "removed."
            )


def _stability(report: Report) -> Iterator[str]:
    """Warn of features on which most resamples disagree with the run, and of resamples that failed."""
    if report.stability is None:
        return
    total = len(report.stability.resamples)
    kept_rarely, removed_rarely = [], []
    for feature in report.features:
        count = feature.kept_in
        if count is not None and feature.status == "kept" and 2 * count < total:
            kept_rarely.append(f"{feature.name} ({count})")
        elif count is not None and feature.status == "removed" and 2 * count > total:
            removed_rarely.append(f"{feature.name} ({count})")
    if kept_rarely:
        yield f"Kept, but in fewer than half of {total} resamples: {shortened(kept_rarely)}."
    if removed_rarely:
        yield f"Removed, but kept in more than half of {total} resamples: {shortened(removed_rarely)}."
    for failure in dict.fromkeys(report.stability.failures):
        yield f"A resample was left out: {failure}"


def _halvings(report: Report) -> Iterator[str]:
    count = report.lr_halvings
    if count is not None:
        yield (
            "Values became non-finite, so the step size was halved "
            f"{counted(count.path, 'time')} on the path and {counted(count.refit, 'time')} in refits; "
            "lower train.lr or refit.lr."
        )


def _policy(report: Report, recipe: Recipe) -> Iterator[str]:
    """Warn of protected features that are kept and of dropped ones that the original network still uses."""
    for attribute in report.segments.attributes if report.segments is not None else ():
        if attribute.status == "kept":
            yield f"{attribute.name} is protected and the shipped model reads it."
    reasons = ((feature.name, feature.reason or "") for feature in report.features)
    dropped = ", ".join(name for name, why in reasons if why.startswith(("must_drop", "derived_from ")))
    if dropped and report.task == "distillation":
        yield (
            f"The shipped model is trained on the outputs of the original network, which reads features that "
            f"must be dropped: {dropped}."
        )
    elif dropped and recipe.refit.distill:
        yield (
            f"The refit is trained on the original network's predictions (refit.distill: "
            f"{recipe.refit.distill:g}), which depend on features that must be dropped: {dropped}; set "
            "refit.distill: 0."
        )


def _optimality(report: Report) -> Iterator[str]:
    """Warn where a removed or a kept group violates its optimality condition."""
    chosen = [point for point in report.path if point.selected]
    if not chosen:
        return
    zero = max(chosen, key=lambda point: (point.kkt_zero, -point.stage))
    if zero.kkt_zero > KKT_TOLERANCE:
        yield (
            f"{removed_not_optimal(zero.kkt_zero)} at the chosen point of stage {zero.stage}; {_TRAIN_LONGER}"
        )
    active = max(chosen, key=lambda point: (point.kkt_active, -point.stage))
    if active.kkt_active > KKT_TOLERANCE:
        yield (
            f"{kept_not_converged(active.kkt_active)} at the chosen point of stage {active.stage} "
            f"{_NOT_SETTLED}"
        )


def _performance(report: Report) -> Iterator[str]:
    """Warn of untrained outputs that changed and of metrics that became worse by more than chance."""
    for output in report.agreement:
        if not output.trained_for and output.max_change > report.removal.tolerance:
            yield (
                f"Output {output.name!r} was not trained for and changed by up to {output.max_change:.2g}; "
                "see its agreement."
            )
    if report.task != "distillation":
        yield from (
            loss_sentence(metric)
            for metric in report.performance
            if is_clear_loss(metric, report.selection.metric)
        )


def _int8(report: Report) -> Iterator[str]:
    """Warn of metrics of the 8-bit file that are worse than the shipped file's by more than chance."""
    found = report.quantized
    if found is not None:
        yield from (int8_loss_sentence(found.file, m) for m in found.metrics if is_clear_int8_loss(m))
