"""Remove the features that a policy forbids from the trained network, before any path."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from glprune.errors import ModelError
from glprune.pruning.groups import group_norms, zero_units_
from glprune.pruning.removal import RemovalResult, remove

if TYPE_CHECKING:
    from glprune.search.job import Job


def remove_forbidden(job: Job) -> RemovalResult | None:
    """Zero the weights leaving every forbidden feature in a copy of the network and remove the feature.

    Args:
        job: The job of the trained network.

    Returns:
        The slim network and the evidence; None where the policy forbids no feature.

    Raises:
        ModelError: A forbidden feature cannot be removed, or a required one is not read by the network.
    """
    _check_required(job)
    if not job.rules.forbidden:
        return None
    zeroed = copy.deepcopy(job.network)
    for groups in job.input_groups:
        gone = torch.tensor([label in job.rules.forbidden for label in groups.labels])
        zero_units_(zeroed.state_dict(), groups.units, gone[groups.group])
    removed = remove(zeroed, job.input_groups, job.probe, job.axes)
    check_rules(job, removed)
    return removed


def check_rules(job: Job, removed: RemovalResult) -> None:
    """Check that a network reads no forbidden feature and every required one.

    Raises:
        ModelError: It does not; the message names the reason.
    """
    reasons = "; ".join(f"{r.name}: {r.reason}" for r in removed.refused) or "its input needs a column"
    kept = job.data.kept_positions(removed.selection)
    for feature, left in zip(job.data.features, kept, strict=True):
        if feature.name in job.rules.forbidden and left:
            raise ModelError(
                f"{job.recipe.where('policy', 'must_drop')}: {feature.name!r} cannot be cut out of the "
                f"network ({reasons}); nothing was released."
            )
        if feature.name in job.rules.required and len(left) < len(feature.columns):
            raise ModelError(
                f"{job.recipe.where('policy', 'must_keep')}: the hidden units that read {feature.name!r} are "
                "gone; keep more of them, or take it off the list."
            )


def _check_required(job: Job) -> None:
    for groups in job.input_groups:
        norms = group_norms(job.network.state_dict(), groups).tolist()
        for label, norm in zip(groups.labels, norms, strict=True):
            if label in job.rules.required and norm == 0 and not groups.units.refused:
                raise ModelError(
                    f"{job.recipe.where('policy', 'must_keep')}: the trained network does not read "
                    f"{label!r}, all weights leaving it are zero; take it off the list."
                )
