"""Make the report's records of the recipe's policy: rules, reasons, reason codes, warnings."""

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
NO_SEGMENTS = "Performance by segment."
_LINEAR_PROXIES = (
    "Whether kept features carry the information of removed features that are not protected, or not linearly."
)
_NO_INTERVALS = "Confidence intervals of the differences between segments."


def make_policy(job: Job) -> Policy | None:
    """Return the recipe's rules on features as written; None where there are none."""
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


def policy_warnings(job: Job, outcomes: Sequence[FeatureOutcome]) -> list[str]:
    """Warn of protected features that are kept and of dropped ones that the original network still uses."""
    warnings = [
        f"{a.name} is protected and the shipped model reads it."
        for a in job.data.protected
        if attribute_status(job, a, outcomes) == "kept"
    ]
    dropped = ", ".join(job.rules.forbidden)
    if dropped and job.task.kind == "distillation":
        warnings.append(
            f"The shipped model is trained on the outputs of the original network, which reads features that "
            f"must be dropped: {dropped}."
        )
    elif dropped and job.recipe.refit.distill:
        warnings.append(
            f"The refit is trained on the original network's predictions (refit.distill: "
            f"{job.recipe.refit.distill:g}), which depend on features that must be dropped: {dropped}; set "
            "refit.distill: 0."
        )
    return warnings


def not_measured(job: Job, proxies: Proxies | None, sentences: Sequence[str]) -> list[str]:
    """Replace sentences about what the policy measured by what remains unmeasured."""
    replaced = {}
    if job.data.protected:
        replaced[NO_SEGMENTS] = _NO_INTERVALS
    if proxies is not None and proxies.performed:
        replaced[NO_PROXIES] = _LINEAR_PROXIES
    return [replaced.get(sentence, sentence) for sentence in sentences]
