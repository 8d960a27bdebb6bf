"""Make the report's records of the recipe's policy: rules, reasons, reason codes, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glprune.schema.report import Policy, ReasonCode, ReasonCodes
from glprune.search.outcome import kept_names
from glprune.search.policy import MUST_KEEP

if TYPE_CHECKING:
    from glprune.search.job import Job
    from glprune.search.outcome import FeatureOutcome


def make_policy(job: Job) -> Policy | None:
    """Return the recipe's rules on features as written; None where there are none."""
    spec = job.recipe.policy
    if spec is None:
        return None
    return Policy.of(spec)


def reason(job: Job, outcome: FeatureOutcome) -> str | None:
    """Return why a feature is removed, or that the policy keeps it."""
    if outcome.is_kept:
        return MUST_KEEP if outcome.feature in job.rules.required else None
    return outcome.removed_by


def make_reason_codes(job: Job, outcomes: Sequence[FeatureOutcome]) -> ReasonCodes | None:
    """Sort reason codes by how many of their features are kept; None where the recipe lists none."""
    if not job.rules.codes:
        return None
    kept = set(kept_names(outcomes))
    codes = [
        ReasonCode(
            code=code,
            removed=[f for f in features if f not in kept],
            kept=[f for f in features if f in kept],
        )
        for code, features in job.rules.codes.items()
    ]
    return ReasonCodes(
        retired=[c for c in codes if not c.kept],
        to_review=[c for c in codes if c.kept and c.removed],
        unchanged=[c for c in codes if not c.removed],
    )
