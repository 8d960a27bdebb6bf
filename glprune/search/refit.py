"""Refit a network after a removal as the recipe states it, or resume a refit from its checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field
from torch import Tensor, nn

from glprune.data.splits import Inputs, identity, view_columns
from glprune.model.prediction import validate
from glprune.runtime.checkpoint import reading
from glprune.search.path_point import NUMBER, STATE, Checkpoint, add_prefix, check_state, strip_prefix
from glprune.training.refit import Refit, RefitResult

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.recipe import Recipe, RefitSpec
    from glprune.search.job import Job


class _Values(BaseModel, strict=True):
    """The values of a refit in a checkpoint."""

    epochs: int
    best_epoch: int
    score: Annotated[list[float], Field(min_length=2, max_length=2)]
    halvings: int


def refit_or_resume(
    job: Job, removed: RemovalResult, spec: RefitSpec | None = None
) -> tuple[RefitResult, float]:
    """Refit a slim network from the weights that ``refit.start`` names; of two starts, keep the better one.

    Args:
        job: The job of the network that the slim one was cut from.
        removed: What was removed.
        spec: How to refit; default as the recipe says.

    Returns:
        The refit and the selection metric on the validation split after it.

    Raises:
        ModelError: The loss is not finite.
    """
    refit_spec = spec or job.recipe.refit
    refit_spec = refit_spec.model_copy(update={"distill": distill_share(job, removed)})
    key = {"epochs": refit_spec.epochs, "columns": [len(kept) for kept in removed.columns]}
    record = job.checkpoints.load_step("refit", key)
    if record is not None:
        with reading(record):
            resumed = load_refit(record.values, job.checkpoints.weights(record), removed.network)
            return resumed, NUMBER.validate_python(record.values["metric"], strict=True)
    best, metric = _best_refit(job, removed, refit_spec)
    values, tensors = save_refit(best)
    job.checkpoints.save_step("refit", key, values | {"metric": metric}, tensors)
    return best, metric


def brief_spec(recipe: Recipe) -> RefitSpec:
    """Return the refit between two stages, which continues from the weights of the path."""
    epochs = recipe.train.stage_refit_epochs
    return recipe.refit.model_copy(update={"epochs": epochs, "patience": max(1, epochs), "start": "path"})


def refit_in_place(job: Job, spec: RefitSpec, original: nn.Module) -> RefitResult:
    """Refit the network of a job on the job's own rows, without a checkpoint; the job is not changed.

    Args:
        job: The job.
        spec: How to refit; nothing is distilled.
        original: The trained network, whose dropout rates are scaled. Those of the job's network depend on
            whether it was refitted in this process or loaded.
    """
    refit = Refit(
        job.task,
        job.data.train,
        job.data.valid,
        identity,
        spec.model_copy(update={"distill": 0.0}),
        job.recipe.seed,
        teacher=original,
        metric=job.metric,
        precision=job.recipe.train.precision,
        process_group=job.process_group,
    )
    return refit.run(job.network)


def _best_refit(job: Job, removed: RemovalResult, spec: RefitSpec) -> tuple[RefitResult, float]:
    select: Callable[[Inputs], Inputs]
    recipe, selection = job.recipe, removed.selection
    train, valid, select = job.data.train, job.data.valid, selection
    if not spec.distill:  # the original network, as teacher, would need all columns
        train, valid, select = view_columns(train, selection), view_columns(valid, selection), identity
    refit = Refit(
        job.task,
        train,
        valid,
        select,
        spec,
        recipe.seed,
        teacher=job.network,
        metric=job.metric,
        precision=recipe.train.precision,
        process_group=job.process_group,
    )
    results = [refit.run(start) for start in _initial_weights(job, removed, spec)]
    best = max(results, key=lambda result: result.score)
    return best, validate(best.network, job.task, job.metric, job.data.valid, selection)


def distill_share(job: Job, removed: RemovalResult) -> float:
    """Return the share of the refit's loss that follows the original network."""
    spans = (len(span) for span, axis in zip(job.data.spans, job.axes, strict=True) if axis is not None)
    reads_all = sum(spans) == sum(len(kept) for kept in removed.columns)
    return job.recipe.refit.distill_share(reads_all=reads_all, has_labels=job.task.kind != "distillation")


def _initial_weights(job: Job, removed: RemovalResult, spec: RefitSpec) -> list[nn.Module]:
    """Return networks to start from: with the weights of the path, the trained weights, or both."""
    starts = [removed.network] if spec.start != "trained" or spec.epochs == 0 else []
    if spec.start != "path" and spec.epochs:
        trained = copy.deepcopy(job.network)
        removed.plan.apply_(trained)
        starts.append(trained)
    return starts


def save_refit(result: RefitResult) -> Checkpoint:
    """Return a refit and its network's tensors as values and tensors."""
    values = {
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "score": list(result.score),
        "halvings": result.halvings,
    }
    state = {name: tensor.detach().clone() for name, tensor in result.network.state_dict().items()}
    return values, add_prefix(STATE, state)


def load_refit(values: Mapping[str, Any], tensors: Mapping[str, Tensor], slim: nn.Module) -> RefitResult:
    """Return the refit that ``save_refit`` saved, on a copy of the slim network.

    Raises:
        ValueError: It is not a refit of this network.
    """
    network, state = copy.deepcopy(slim), strip_prefix(STATE, tensors)
    check_state(state, network)
    network.load_state_dict(state)
    found = _Values.model_validate(values)
    metric, loss = found.score
    return RefitResult(network.eval(), found.epochs, found.best_epoch, (metric, loss), found.halvings)
