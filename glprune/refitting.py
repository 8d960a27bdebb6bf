"""The refit as the recipe states it, on a network some of whose groups were removed."""

from __future__ import annotations

import copy

from torch import nn

from glprune.job import Job, narrowing, validate
from glprune.recipe import RefitSpec
from glprune.removal import Removed
from glprune.train import RefitResult, refit


def refitted(job: Job, removed: Removed, spec: RefitSpec | None = None) -> tuple[RefitResult, float]:
    """Refit a slim network, from the weights ``refit.start`` names; of two starts the better one stays.

    Args:
        job: The job of the network it was cut from.
        removed: What was cut.
        spec: How; as the recipe says where it is not given.

    Returns:
        The refit and the selection metric on the validation split after it.

    Raises:
        ModelError: The loss is not finite.
    """
    how = spec or job.recipe.refit
    narrow = narrowing(removed.columns, job.axes)
    data, seed, teacher = job.data, job.recipe.seed, job.network
    results = [
        refit(start, narrow, job.task, data.train, data.valid, how, seed, teacher, job.metric)
        for start in _starts(job, removed, how)
    ]
    best = max(results, key=lambda result: result.score)
    return best, validate(job, best.network, narrow)


def _starts(job: Job, removed: Removed, spec: RefitSpec) -> list[nn.Module]:
    """The weights of the path, the trained ones on what is left, or both."""
    starts = [removed.network] if spec.start != "trained" or spec.epochs == 0 else []
    if spec.start != "path" and spec.epochs:
        trained = copy.deepcopy(job.network)
        removed.surgery.apply_(trained)
        starts.append(trained)
    return starts
