"""C5, the sets of features that were compared: figures that agree, and a choice that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from glprune.audit.findings import Found, check_close, check_equal
from glprune.report import rules
from glprune.schema import bundle as bundles
from glprune.schema.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import CandidateFacts, Comparison, Report, ValidationFigures

_PLACE = "/selection/comparison"


def check_comparison(report: Report, recipe: Recipe | None, *, is_older: bool) -> Iterator[Found]:
    """Check the compared sets of features, where there are any.

    Args:
        report: The report.
        recipe: Its recipe; None if it cannot be read.
        is_older: Whether another version of glprune wrote it, whose words differ.
    """
    record = report.selection.comparison
    if record is None:
        return
    yield from _sets(report, record)
    if recipe is not None:
        yield from _settings(report, record, recipe)
    if not is_older:
        yield from _words(record)
        yield from _choice(report, record)


def _sets(report: Report, comparison: Comparison) -> Iterator[Found]:
    """Check that the shipped model keeps the chosen set, and that the figures agree with each other."""
    chosen = [candidate for candidate in comparison.candidates if candidate.chosen]
    if len(chosen) != 1:
        yield f"{_PLACE}/candidates", f"{len(chosen)} sets are chosen"
        return
    kept = [f.name for f in report.features if f.status == "kept"]
    if not set(kept) <= set(chosen[0].features):
        yield f"{_PLACE}/candidates", "the shipped model keeps features that the chosen set does not have"
    sign = 1.0 if HIGHER_IS_BETTER[report.selection.metric] else -1.0
    first = comparison.candidates[0]
    for n, candidate in enumerate(comparison.candidates):
        unknown = sorted(set(candidate.features) - {f.name for f in report.features})
        if unknown:
            yield f"{_PLACE}/candidates/{n}/features", f"{unknown[0]!r} is not a feature"
        for name in ("valid", "cross_validation"):
            yield from _gain(
                f"{_PLACE}/candidates/{n}/{name}", getattr(candidate, name), getattr(first, name), sign
            )


def _gain(
    place: str, figures: ValidationFigures | None, path: ValidationFigures | None, sign: float
) -> Iterator[Found]:
    if figures is None:
        return
    if path is None:
        yield place, "the path's set was not cross-validated"
        return
    gain = sign * (figures.metric - path.metric)
    if not math.isclose(gain, figures.gain, rel_tol=1e-6, abs_tol=1e-9):
        yield f"{place}/gain", f"{figures.gain:g}, but the metrics differ by {gain:g}"


def _words(record: Comparison) -> Iterator[Found]:
    """Require the words of this version for the ways to find a set and for the rule."""
    for n, candidate in enumerate(record.candidates):
        known = (rules.PATH,) if n == 0 else rules.FOUND_BY[1:]
        if candidate.found_by not in known:
            yield (
                f"{_PLACE}/candidates/{n}/found_by",
                f"{candidate.found_by[:60]!r} is no way to find a set here",
            )
    crossed = any(candidate.cross_validation is not None for candidate in record.candidates)
    wanted = rules.CHOICE + (rules.CROSSED if crossed else "")
    yield from check_equal(f"{_PLACE}/rule", record.rule, wanted, "it is")
    if not crossed and (record.folds, record.repeats, record.fold_rows) != (1, 1, 0):
        yield f"{_PLACE}/folds", "are stated, but no set was cross-validated"


def _choice(report: Report, record: Comparison) -> Iterator[Found]:
    """Require a choice by the rule, and its lead over the next best set."""
    chosen = [candidate for candidate in record.candidates if candidate.chosen]
    if len(chosen) != 1:
        return  # said already
    [best], path = chosen, record.candidates[0]
    others = [candidate for candidate in record.candidates if candidate is not best]
    if best is not path:
        figures = _deciding(best)
        if not figures.gain > rules.MARGIN * figures.gain_standard_error:
            yield (
                f"{_PLACE}/candidates",
                f"the {best.found_by[:60]!r} is chosen without a clear gain over the path",
            )
    rivals = [candidate for candidate in others if candidate.cross_validation is not None] or others
    sign = 1.0 if HIGHER_IS_BETTER[report.selection.metric] else -1.0
    leads = [sign * _difference(best, rival) for rival in rivals]
    yield from check_close(f"{_PLACE}/lead", record.lead, min(leads, default=None), "the figures give")
    error = record.lead_standard_error
    if (error is None) != (record.lead is None) or (error is not None and error < 0):
        yield f"{_PLACE}/lead_standard_error", "is below zero, or given without a lead, or the reverse"


def _deciding(candidate: CandidateFacts) -> ValidationFigures:
    return candidate.cross_validation or candidate.valid


def _difference(best: CandidateFacts, rival: CandidateFacts) -> float:
    """Return by how much the metrics of two sets differ, on folds if both have figures there."""
    if best.cross_validation is not None and rival.cross_validation is not None:
        return best.cross_validation.metric - rival.cross_validation.metric
    return best.valid.metric - rival.valid.metric


def _settings(report: Report, record: Comparison, recipe: Recipe) -> Iterator[Found]:
    """Compare the rows and folds of the sets that were compared with splits and recipe."""
    if recipe.search == "path":
        yield _PLACE, f"is given, but {bundles.RECIPE} says search: path"
    rows = {name: split.rows for name, split in report.data.splits.items()}
    yield from check_equal(f"{_PLACE}/rows", record.rows, rows.get("valid"), "the validation split has")
    both = rows.get("train", 0) + rows.get("valid", 0)
    if not 0 <= record.fold_rows <= both or min(record.folds, record.repeats) < 1:
        yield (
            f"{_PLACE}/fold_rows",
            f"says {record.fold_rows} in {record.folds} folds; the splits have {both}",
        )
