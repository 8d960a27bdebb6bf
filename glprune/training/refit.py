"""Train a pruned network without penalty."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.data.sharding import ShardedSplit
from glprune.model.diagnostics import Batch, all_finite, explain_nonfinite
from glprune.model.precision import Precision, forward
from glprune.model.task import Task, concat_batches, improvement
from glprune.runtime import process_group
from glprune.training.epochs import batch_size, passes_per_epoch, with_halving
from glprune.training.objective import CHUNK

if TYPE_CHECKING:
    from glprune.data.splits import Inputs, Split
    from glprune.schema.recipe import RefitSpec

Score = tuple[float, float]


@dataclass(frozen=True)
class RefitResult:
    """What the refit did.

    Attributes:
        network: The network at its best epoch, in evaluation mode.
        epochs: Epochs run.
        best_epoch: The epoch kept; 0 is the network before the refit.
        score: The metric it was best in, signed so that more is better, and the negative loss.
        halvings: How often its step size was halved.
    """

    network: nn.Module
    epochs: int
    best_epoch: int
    score: Score
    halvings: int = 0


def refit(
    network: nn.Module,
    narrow: Callable[[Inputs], Inputs],
    task: Task,
    train: Split,
    valid: Split,
    spec: RefitSpec,
    seed: int,
    teacher: nn.Module,
    metric: str,
    precision: Precision = "float32",
) -> RefitResult:
    """Train a slim network without penalty and keep its best epoch on the validation split.

    Args:
        network: The slim network; it is copied.
        narrow: Takes the slim network's columns out of a full batch.
        task: Its loss.
        train: Training rows, all columns.
        valid: Validation rows, all columns.
        spec: Epochs, step size, patience and share of distillation.
        seed: Seed of the shuffling and of dropout.
        teacher: The original network, on full batches: followed where ``spec.distill`` is above 0.
        metric: What the best epoch is best in; the lower loss decides between equals.
        precision: Of the forward passes of its steps; all else is computed in float32.

    Raises:
        NonFiniteError: Loss or gradient are not finite, and the recipe allows no (more) halving.
    """

    def score(candidate: nn.Module) -> Score:
        return _score(candidate, narrow, task, valid, metric)

    best, best_score = network, score(network)
    if spec.epochs and _batchnorm_layers(network):
        fresh = _update_batchnorm(network, narrow, train, spec)
        best, best_score = max((best, best_score), (fresh, score(fresh)), key=lambda pair: pair[1])

    def attempt(factor: float) -> RefitResult:
        start = best, best_score
        return _refit_epochs(*start, score, narrow, task, train, spec, seed, teacher, factor, precision)

    result, halvings = with_halving(attempt, spec.max_lr_halvings)
    best, best_score = result.network, result.score
    if result.best_epoch and _batchnorm_layers(best):
        fresh = _update_batchnorm(best, narrow, train, spec)
        best, best_score = max((best, best_score), (fresh, score(fresh)), key=lambda pair: pair[1])
    return replace(result, network=best.eval(), score=best_score, halvings=halvings)


def _refit_epochs(
    start: nn.Module,
    start_score: Score,
    score: Callable[[nn.Module], Score],
    narrow: Callable[[Inputs], Inputs],
    task: Task,
    train: Split,
    spec: RefitSpec,
    seed: int,
    teacher: nn.Module,
    factor: float,
    precision: Precision,
) -> RefitResult:
    """The refit's epochs from a network, which is copied; the step size is multiplied by a factor."""
    best, best_score, best_epoch, epoch = start, start_score, 0, 0
    student = copy.deepcopy(start)
    _scale_dropout(student, spec, teacher)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.lr * factor, weight_decay=spec.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    least = 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in student.modules()) else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(1, spec.epochs + 1):
            student.train()
            batches = rows_per_epoch(train, spec.batch_size, generator)
            for number, (x, target) in enumerate(batches, 1):
                if process_group.all_reduce_scalar(len(target)) < 2:
                    continue  # BatchNorm cannot train on one row
                rows = len(target) if len(target) >= least else 0
                loss = functools.partial(
                    _refit_loss, student, narrow, task, x, target, spec, teacher, precision
                )
                if not _refit_step(optimizer, loss, parameters, rows):
                    where = f"refit, epoch {epoch}, batch {number}"
                    mend = f"lower refit.lr (now {spec.lr:g}) or allow refit.max_lr_halvings"
                    own = explain_nonfinite(Batch(student, narrow(x), target, loss), where, mend)
                    raise process_group.first_error(own, where, mend)
            process_group.broadcast_buffers_(student)
            now = score(student)
            if now > best_score:
                best, best_score, best_epoch = copy.deepcopy(student), now, epoch
            if epoch - best_epoch >= spec.patience:
                break
    return RefitResult(best, epoch, best_epoch, best_score)


def _refit_step(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    parameters: list[nn.Parameter],
    rows: int,
) -> bool:
    """One step; tells whether loss and gradient are finite. Else no step is made.

    Of no rows, which a process among several may have, there is neither.
    """
    optimizer.zero_grad()
    own = 0.0
    if rows:
        value = loss()
        own = float(value.detach())
        if math.isfinite(own):
            value.backward()
    mean = process_group.average_gradients_(parameters, own, rows)
    if not math.isfinite(mean) or not all_finite(p.grad for p in parameters):
        return False
    optimizer.step()
    return True


def _batchnorm_layers(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers that hold running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in network.modules() if isinstance(m, kind) and m.track_running_stats]


@torch.no_grad()
def _update_batchnorm(
    network: nn.Module, narrow: Callable[[Inputs], Inputs], train: Split, spec: RefitSpec
) -> nn.Module:
    """A copy whose BatchNorm statistics are means over the training rows, as its weights now are.

    Running statistics lag behind weights that move, and were those of another network before a cut.
    """
    fresh = copy.deepcopy(network).eval()
    layers = _batchnorm_layers(fresh)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    whole = train.whole if isinstance(train, ShardedSplit) else train
    for inputs, target in whole.batches(batch_size(spec.batch_size, whole), None):
        if len(target) > 1:
            fresh(*narrow(inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return fresh.eval()


def rows_per_epoch(
    split: Split, size: int | str, generator: torch.Generator
) -> Iterator[tuple[Inputs, Tensor]]:
    """The batches of an epoch; see :func:`passes_of_an_epoch`."""
    for _ in range(passes_per_epoch(size, split)):
        yield from split.batches(batch_size(size, split), generator)


def _refit_loss(
    student: nn.Module,
    narrow: Callable[[Inputs], Inputs],
    task: Task,
    inputs: Inputs,
    target: Tensor,
    spec: RefitSpec,
    teacher: nn.Module,
    precision: Precision,
) -> Tensor:
    output = forward(student, narrow(inputs), task.view, precision)
    share = spec.distill or 0.0
    loss = (1 - share) * task.loss(output, target)
    if share > 0:
        with torch.no_grad():
            taught = task.view(teacher(*inputs))
        loss = loss + share * task.distillation_loss(output, taught, spec.temperature)
    return loss


@torch.no_grad()
def _score(
    network: nn.Module, narrow: Callable[[Inputs], Inputs], task: Task, split: Split, metric: str
) -> Score:
    """The metric, signed so that more is better, and the negative loss."""
    network.eval()
    pairs = (((task.view(network(*narrow(x))),), y) for x, y in split.batches(CHUNK, None))
    (output,), target = concat_batches(pairs, split.rows)
    return improvement(metric, 0.0, task.metric(metric, output, target)), -float(task.loss(output, target))


def _scale_dropout(student: nn.Module, spec: RefitSpec, original: nn.Module) -> None:
    """Lower the dropout rates of a slim network, which has less capacity to spare.

    References:
        Han et al. (2015), "Learning both weights and connections for efficient neural
        networks", section 3.2: the rate goes with the root of the connections left.
    """
    left = sum(p.numel() for p in student.parameters()) / sum(p.numel() for p in original.parameters())
    factor = {"scaled": left**0.5, "kept": 1.0, "off": 0.0}[spec.dropout]
    for name, module in student.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            trained = original.get_submodule(name)
            assert isinstance(trained, nn.modules.dropout._DropoutNd)  # a cut keeps every module
            module.p = trained.p * factor
