"""C5, the choice of the network: stages, rules, and the target of the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glprune.audit.findings import Found, check_equal
from glprune.report import rules
from glprune.report.caveats import last_input_stage
from glprune.schema import bundle as bundles
from glprune.schema.metrics import HIGHER_IS_BETTER, MACS_SLACK, METRICS
from glprune.schema.recipe import resolve_budget

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Report


def check_selection(report: Report, recipe: Recipe | None, *, is_older: bool) -> Iterator[Found]:
    """Check how the network was chosen, within the report and against the recipe.

    Args:
        report: The report.
        recipe: Its recipe; None if it cannot be read.
        is_older: Whether another version of glprune wrote it, whose words differ.
    """
    yield from _stages(report)
    yield from _selection(report)
    if recipe is None:
        return
    yield from _target(report, recipe)
    if not is_older:
        yield from _rules(report, recipe)


def _stages(report: Report) -> Iterator[Found]:
    numbers = [s.number for s in report.stages]
    yield from check_equal("/stages", numbers, list(range(1, len(numbers) + 1)), "numbers should be")
    yield from check_equal(
        "/path", list(dict.fromkeys(p.stage for p in report.path)), numbers, "the stages are"
    )
    for n, stage in enumerate(report.stages):
        chosen = [p for p in report.path if p.stage == stage.number and p.selected]
        if len(chosen) != 1:
            yield f"/stages/{n}", f"{len(chosen)} points are marked as selected"
            continue
        point = chosen[0]
        for key in ("lam", "features", "hidden"):
            stated = getattr(stage, key)
            yield from check_equal(f"/stages/{n}/{key}", stated, getattr(point, key), "its point says")
        yield from check_equal(f"/stages/{n}/metric", stage.metric, point.refit_metric, "its refit gave")


def _selection(report: Report) -> Iterator[Found]:
    if not report.stages:
        yield "/stages", "is empty"
        return
    last = last_input_stage(report.stages) or report.stages[-1]
    yield from check_equal(
        "/selection/lam", report.selection.lam, last.lam, "the last stage over inputs chose"
    )
    if report.refit is not None:
        yield from check_equal(
            "/refit/metric", report.refit.metric, report.stages[-1].metric, "the stage says"
        )
        if not 0 <= report.refit.best_epoch <= report.refit.epochs:
            yield "/refit/best_epoch", f"{report.refit.best_epoch} of {report.refit.epochs} epochs"
    if report.selection.metric not in METRICS[report.task]:
        yield "/selection/metric", f"{report.selection.metric!r} is not a metric of a {report.task} task"


def _rules(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Require the words of the rules, and the share of the refit, that follow from the recipe."""
    wanted, says = rules.selection_rule(recipe), f"{bundles.RECIPE} gives"
    yield from check_equal("/selection/rule", report.selection.rule, wanted, says)
    sizes = [point.size for point in report.frontier.points] if report.frontier is not None else []
    for n, stage in enumerate(report.stages):
        if not rules.is_stage_rule(stage.rule, recipe, sizes):
            yield f"/stages/{n}/rule", f"{stage.rule[:80]!r} is no rule of {bundles.RECIPE}"
    if report.refit is not None:
        share = recipe.refit.distill_share(
            reads_all=not any(cut.kind == "input" for cut in report.removal.cuts),
            has_labels=report.task != "distillation",
        )
        yield from check_equal("/refit/distill", report.refit.distill, share, says)


def _target(report: Report, recipe: Recipe) -> Iterator[Found]:
    target, size, stages = recipe.target, report.size, report.stages
    over_inputs = last_input_stage(stages)
    if target.max_features is not None and over_inputs is not None:
        yield from _above("/stages", over_inputs.features, target.max_features, "max_features")
    if target.max_hidden is not None and stages:
        yield from _above("/stages", stages[-1].hidden, target.max_hidden, "max_hidden")
    if not report.removal.refused:
        for key in ("parameters", "macs"):
            budget = getattr(target, key)
            if budget is not None:
                before, after = getattr(size, f"{key}_before"), getattr(size, f"{key}_after")
                slack = MACS_SLACK if key == "macs" else 0.0
                limit = resolve_budget(budget, before) * (1 + slack)
                yield from _above(f"/size/{key}_after", after, limit, key)
    drop = target.max_drop
    if drop is not None and target.max_hidden is None and stages:
        lost = report.selection.reference - stages[-1].metric
        lost = lost if HIGHER_IS_BETTER[drop.metric] else -lost
        yield from _above("/selection", lost, drop.amount + 1e-9, "max_drop.amount")


def _above(where: str, found: float, limit: float, key: str) -> Iterator[Found]:
    if found > limit:
        yield where, f"{found:g} is above target.{key}: {limit:g} of the recipe"
