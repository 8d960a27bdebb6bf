"""The refit as the recipe states it, on a network some of whose groups were removed."""

from __future__ import annotations

import copy

from glprune.job import Job, narrowing, validate
from glprune.removal import Removed
from glprune.train import RefitResult, refit


def refitted(job: Job, removed: Removed) -> tuple[RefitResult, float]:
    """Refit a slim network, from the weights ``refit.start`` names.

    Args:
        job: The job of the network it was cut from.
        removed: What was cut.

    Returns:
        The refit and the selection metric on the validation split after it.

    Raises:
        ModelError: The loss is not finite.
    """
    narrow = narrowing(removed.columns, job.axes)
    start = removed.network
    if job.recipe.refit.start == "trained" and job.recipe.refit.epochs:
        start = copy.deepcopy(job.network)
        removed.surgery.apply_(start)
    result = refit(
        start,
        narrow,
        job.task,
        job.data.train,
        job.data.valid,
        job.recipe.refit,
        job.recipe.seed,
        teacher=job.network,
        metric=job.metric,
    )
    return result, validate(job, result.network, narrow)
