"""What the report says of the recipe's policy: rules, reasons, retired reason codes, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glprune.evaluation.segments import attribute_status
from glprune.schema.report import Policy, Proxies, ReasonCode, ReasonCodes
from glprune.search.outcome import kept_names
from glprune.search.policy import MUST_KEEP, listed_names

if TYPE_CHECKING:
    from glprune.search.job import Job
    from glprune.search.outcome import FeatureOutcome

NO_PROXIES = "Whether kept features carry the information of removed ones (proxies)."
NO_SEGMENTS = "Performance by segment, calibration, and confidence intervals of the metrics."
_LINEAR_PROXIES = (
    "Whether kept features carry the information of removed features that are not protected, or not linearly."
)
_NO_INTERVALS = (
    "Calibration, and confidence intervals of the metrics and of the differences between segments."
)


def make_policy(job: Job) -> Policy | None:
    """The recipe's rules on features as written; None where there are none."""
    spec = job.recipe.policy
    if spec is None:
        return None
    return Policy(
        must_drop=spec.must_drop,
        must_keep=spec.must_keep,
        protected=spec.protected,
        derived_from={name: listed_names(names) for name, names in spec.derived_from.items()},
    )


def reason(job: Job, outcome: FeatureOutcome) -> str | None:
    """Why a feature is removed, or that the policy keeps it."""
    if outcome.is_kept:
        return MUST_KEEP if outcome.feature in job.rules.required else None
    return outcome.removed_by


def make_reason_codes(job: Job, outcomes: Sequence[FeatureOutcome]) -> ReasonCodes | None:
    """Reasons sorted by what is left of the features they cite; None where the recipe lists none."""
    if not job.rules.codes:
        return None
    stays = set(kept_names(outcomes))
    codes = [
        ReasonCode(
            code=code,
            removed=[f for f in features if f not in stays],
            kept=[f for f in features if f in stays],
        )
        for code, features in job.rules.codes.items()
    ]
    return ReasonCodes(
        retired=[c for c in codes if not c.kept],
        to_review=[c for c in codes if c.kept and c.removed],
        unchanged=[c for c in codes if not c.removed],
    )


def policy_warnings(job: Job, outcomes: Sequence[FeatureOutcome]) -> list[str]:
    """What the user should know of features that had to go and of protected ones that stayed."""
    found = [
        f"{a.name} is protected and the shipped model reads it."
        for a in job.data.protected
        if attribute_status(job, a, outcomes) == "kept"
    ]
    gone = ", ".join(job.rules.forbidden)
    if gone and job.task.kind == "distillation":
        found.append(f"The shipped model follows the original network, which reads what must go: {gone}.")
    elif gone and job.recipe.refit.distill:
        found.append(
            f"The refit followed the original network's predictions (refit.distill: "
            f"{job.recipe.refit.distill:g}), which depend on what must go: {gone}; set refit.distill: 0."
        )
    return found


def not_measured(job: Job, proxies: Proxies | None, sentences: Sequence[str]) -> list[str]:
    """What was not measured, less what the policy had measured."""
    changed = {}
    if job.data.protected:
        changed[NO_SEGMENTS] = _NO_INTERVALS
    if proxies is not None and proxies.performed:
        changed[NO_PROXIES] = _LINEAR_PROXIES
    return [changed.get(sentence, sentence) for sentence in sentences]
