"""What became of each feature: one record a feature, made when a removal is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from glprune.pruning.groups import group_norms

if TYPE_CHECKING:
    from glprune.data.splits import ColumnSelection
    from glprune.search.job import Job
    from glprune.search.stage import StageResult
    from glprune.tables.features import InputPosition

PENALTY = "penalty"


@dataclass(frozen=True)
class FeatureOutcome:
    """What became of a feature so far.

    Attributes:
        feature: Name of the feature.
        input: Name of its input.
        columns: Positions of its kept columns within the full input; none of a removed feature.
        status: ``kept`` where at least one column is left.
        removed_by: ``must_drop`` or ``derived_from <name>`` by the policy, else ``penalty``; None if kept.
        stage: Number of the stage at whose selected point its group is zero; None where it is not.
        lam: Lambda at which its group became zero in that stage.
        penalty_weight: Weight of its group in the penalty of the last stage that penalised inputs and had
            the feature; 0 if there was none.
        norm: Norm of its group at that stage's selected point; before any stage that of the trained network,
            0 if the policy removes it.
    """

    feature: str
    input: str
    columns: tuple[InputPosition, ...]
    status: Literal["kept", "removed"]
    removed_by: str | None
    stage: int | None
    lam: float | None
    penalty_weight: float
    norm: float

    @property
    def is_kept(self) -> bool:
        """Whether the network reads the feature."""
        return self.status == "kept"


Outcomes = tuple[FeatureOutcome, ...]
"""One record for each feature of the original network, in the order of ``data.features``."""


def initial_outcomes(job: Job) -> Outcomes:
    """Make the records of the trained network, which reads every feature."""
    state = job.network.state_dict()
    labels = [(g.name, label) for g in job.input_groups for label in g.labels]
    norms = [norm for g in job.input_groups for norm in group_norms(state, g).tolist()]
    return tuple(
        FeatureOutcome(
            feature=feature,
            input=input_name,
            columns=job.data.positions(job.data.features[number]),
            status="kept",
            removed_by=None,
            stage=None,
            lam=None,
            penalty_weight=0.0,
            norm=0.0 if feature in job.rules.forbidden else norm,
        )
        for number, ((input_name, feature), norm) in enumerate(zip(labels, norms, strict=True))
    )


def after_removal(outcomes: Outcomes, original: Job, selection: ColumnSelection) -> Outcomes:
    """Update the records for the columns that are left of the original network's."""
    records = []
    for outcome, columns in zip(outcomes, original.data.kept_positions(selection), strict=True):
        removed_by = None if columns else original.rules.forbidden.get(outcome.feature, PENALTY)
        status: Literal["kept", "removed"] = "kept" if columns else "removed"
        records.append(replace(outcome, columns=columns, status=status, removed_by=removed_by))
    return tuple(records)


def after_stage(outcomes: Outcomes, original: Job, run: StageResult, number: int) -> Outcomes:
    """Update the records for a committed stage.

    Args:
        outcomes: The records before it.
        original: The job of the original network.
        run: The stage.
        number: Its number, counted from 1.
    """
    if "input" in run.penalised:
        outcomes = _after_path(outcomes, run, number)
    return after_removal(outcomes, original, run.removed.selection)


def _after_path(outcomes: Outcomes, run: StageResult, number: int) -> Outcomes:
    """Update the records of the features that a stage penalised."""
    sets = run.job.input_groups
    labels = [label for g in sets for label in g.labels]
    weights = [
        0.0 if (g.name, label) in run.spec.unpenalised else weight
        for g in sets
        for label, weight in zip(g.labels, run.job.weights(g).tolist(), strict=True)
    ]
    refused = [bool(g.units.refused) for g in sets for _ in g.labels]
    norms_by_feature = zip(*(point.norms for point in run.points), strict=True)
    records = {outcome.feature: outcome for outcome in outcomes}
    for label, weight, stays, norms, norm in zip(
        labels, weights, refused, norms_by_feature, run.selected.norms, strict=True
    ):
        is_zero = norm == 0 and not stays
        first_zero = next((p.lam for p, n in zip(run.points, norms, strict=True) if n == 0), None)
        records[label] = replace(
            records[label],
            penalty_weight=weight,
            norm=norm,
            stage=number if is_zero else None,
            lam=first_zero if is_zero else None,
        )
    return tuple(records.values())


def kept_names(outcomes: Sequence[FeatureOutcome]) -> list[str]:
    """Return the names of the kept features."""
    return [outcome.feature for outcome in outcomes if outcome.is_kept]
