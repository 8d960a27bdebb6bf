"""The refit as the recipe states it, on a network some of whose groups were removed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from glprune.data.splits import ColumnSelection, Inputs, identity, view_columns
from glprune.search.job import Job, validate
from glprune.search.serialization import load_refit, save_refit
from glprune.training.refit import Refit, RefitResult

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.recipe import RefitSpec

_FOLLOWED = 0.5  # share of the refit's loss that follows the original network, where nothing is said


def refit_or_resume(
    job: Job, removed: RemovalResult, spec: RefitSpec | None = None
) -> tuple[RefitResult, float]:
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
    how = how.model_copy(update={"distill": distill_share(job, removed)})
    narrow = ColumnSelection(removed.columns, job.axes)
    asked = {"epochs": how.epochs, "columns": [len(own) for own in removed.columns]}
    record = job.journal.load_step("refit", asked)
    if record is not None:
        kept = load_refit(record.values, job.journal.weights(record), removed.network)
        return kept, record.values["metric"]
    best, metric = _best_refit(job, removed, how, narrow)
    facts, tensors = save_refit(best)
    job.journal.save_step("refit", asked, facts | {"metric": metric}, tensors)
    return best, metric


def _best_refit(
    job: Job, removed: RemovalResult, how: RefitSpec, narrow: ColumnSelection
) -> tuple[RefitResult, float]:
    taken: Callable[[Inputs], Inputs]
    recipe, train, valid, taken = job.recipe, job.data.train, job.data.valid, narrow
    if not how.distill:  # a teacher would need all columns
        train, valid, taken = view_columns(train, narrow), view_columns(valid, narrow), identity
    refit = Refit(
        job.task,
        train,
        valid,
        taken,
        how,
        recipe.seed,
        teacher=job.network,
        metric=job.metric,
        precision=recipe.train.precision,
        process_group=job.process_group,
    )
    results = [refit.run(start) for start in _initial_weights(job, removed, how)]
    best = max(results, key=lambda result: result.score)
    return best, validate(job, best.network, narrow)


def distill_share(job: Job, removed: RemovalResult) -> float:
    """Share of the refit's loss that follows the original network.

    By default a half where the slim network reads all that the original reads, and there are labels: what
    the original makes of a column that was removed would be noise to it.
    """
    asked = job.recipe.refit.distill
    if asked is not None:
        return asked
    spans = (len(span) for span, axis in zip(job.data.spans, job.axes, strict=True) if axis is not None)
    whole = sum(spans) == sum(len(own) for own in removed.columns)
    return _FOLLOWED if whole and job.task.kind != "distillation" else 0.0


def _initial_weights(job: Job, removed: RemovalResult, spec: RefitSpec) -> list[nn.Module]:
    """The weights of the path, the trained ones on what is left, or both."""
    starts = [removed.network] if spec.start != "trained" or spec.epochs == 0 else []
    if spec.start != "path" and spec.epochs:
        trained = copy.deepcopy(job.network)
        removed.plan.apply_(trained)
        starts.append(trained)
    return starts
