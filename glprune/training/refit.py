"""Train a pruned network without penalty."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from glprune.data.sharding import ShardedSplit
from glprune.model.diagnostics import Batch, all_finite, check_tensors, explain_nonfinite, tensor_shapes
from glprune.model.precision import Precision, forward
from glprune.model.task import Task, concat_batches, improvement
from glprune.runtime.process_group import ALONE, ProcessGroup
from glprune.training.epochs import batch_size, rows_per_epoch, with_halving
from glprune.training.objective import CHUNK

if TYPE_CHECKING:
    from glprune.data.splits import Inputs, Split
    from glprune.errors import GlpruneError
    from glprune.schema.recipe import RefitSpec

Score = tuple[float, float]


@dataclass(frozen=True)
class RefitResult:
    """The outcome of a refit.

    Attributes:
        network: The network at its best epoch, in evaluation mode.
        epochs: Number of epochs run.
        best_epoch: The best epoch; 0 is the network before the refit.
        score: The metric at that epoch, signed so that higher is better, and the negative loss.
        halvings: How often the step size was halved.
    """

    network: nn.Module
    epochs: int
    best_epoch: int
    score: Score
    halvings: int = 0


@dataclass(frozen=True)
class Refit:
    """Training of slim networks without penalty.

    Attributes:
        task: Loss and metrics.
        train: Training rows, all columns.
        valid: Validation rows, all columns.
        select_columns: Takes the slim network's columns out of a full batch.
        spec: Epochs, step size, patience and share of distillation.
        seed: Seed of the order of the rows and of dropout.
        teacher: The original network, on full batches; distilled if ``spec.distill`` is above 0.
        metric: Selects the best epoch; between equal values the lower loss decides.
        precision: Of the forward passes in training; everything else is computed in float32.
        process_group: The processes over which gradients are averaged.
    """

    task: Task
    train: Split
    valid: Split
    select_columns: Callable[[Inputs], Inputs]
    spec: RefitSpec
    seed: int
    teacher: nn.Module
    metric: str
    precision: Precision = "float32"
    process_group: ProcessGroup = ALONE

    def run(self, network: nn.Module) -> RefitResult:
        """Train a copy of a network and keep its best epoch on the validation split.

        Raises:
            NonFiniteError: Loss or gradient is not finite, and the recipe allows no (more) halving.
            ModelError: The network's forward changes which tensors it has.
        """
        shapes = tensor_shapes(network)
        start, start_score = network, self._score(network)
        if self.spec.epochs:
            start, start_score = self._with_new_statistics(start, start_score)
        train = functools.partial(self._run_epochs, start, start_score)
        result, halvings = with_halving(train, self.spec.max_lr_halvings)
        best, score = result.network, result.score
        if result.best_epoch:
            best, score = self._with_new_statistics(best, score)
        check_tensors(best, shapes)
        return replace(result, network=best.eval(), score=score, halvings=halvings)

    def _run_epochs(self, start: nn.Module, start_score: Score, factor: float) -> RefitResult:
        """Train a copy of ``start``; the step size is multiplied by ``factor``."""
        best, best_score, best_epoch, epoch = start, start_score, 0, 0
        student = copy.deepcopy(start)
        _scale_dropout(student, self.spec, self.teacher)
        parameters = [p for p in student.parameters() if p.requires_grad]
        lr, weight_decay = self.spec.lr * factor, self.spec.weight_decay
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for epoch in range(1, self.spec.epochs + 1):
                batches = rows_per_epoch(self.train, self.spec.batch_size, generator)
                self._run_epoch(student, optimizer, batches, f"refit, epoch {epoch}")
                score = self._score(student)
                if score > best_score:
                    best, best_score, best_epoch = copy.deepcopy(student), score, epoch
                if epoch - best_epoch >= self.spec.patience:
                    break
        return RefitResult(best, epoch, best_epoch, best_score)

    def _run_epoch(
        self,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[tuple[Inputs, Tensor]],
        location: str,
    ) -> None:
        min_rows = 2 if any(isinstance(m, _BatchNorm) for m in student.modules()) else 1
        student.train()
        for number, (inputs, target) in enumerate(batches, 1):
            if self.process_group.all_reduce_scalar(len(target)) < 2:
                continue  # BatchNorm cannot train on one row
            loss = functools.partial(self._loss, student, inputs, target)
            if not self._step(optimizer, loss, len(target) if len(target) >= min_rows else 0):
                batch = Batch(student, self.select_columns(inputs), target, loss)
                raise self._nonfinite_error(batch, f"{location}, batch {number}")
        self.process_group.broadcast_buffers_(student)

    def _nonfinite_error(self, batch: Batch, location: str) -> GlpruneError:
        hint = f"lower refit.lr (now {self.spec.lr:g}) or allow refit.max_lr_halvings"
        return self.process_group.first_error(explain_nonfinite(batch, location, hint), location, hint)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], rows: int) -> bool:
        """Make one step if loss and gradient are finite; return whether they are.

        A process among several may have no rows of a batch; it computes neither then.
        """
        optimizer.zero_grad()
        local = 0.0
        if rows:
            value = loss()
            local = float(value.detach())
            if math.isfinite(local):
                value.backward()  # type: ignore[no-untyped-call]
        parameters = optimizer.param_groups[0]["params"]
        mean = self.process_group.average_gradients_(parameters, local, rows)
        if not math.isfinite(mean) or not all_finite(p.grad for p in parameters):
            return False
        optimizer.step()
        return True

    def _loss(self, student: nn.Module, inputs: Inputs, target: Tensor) -> Tensor:
        output = forward(student, self.select_columns(inputs), self.task.view, self.precision)
        share = self.spec.distill or 0.0
        loss = (1 - share) * self.task.loss(output, target)
        if share > 0:
            with torch.no_grad():
                teacher_output = self.task.view(self.teacher(*inputs))
            loss = loss + share * self.task.distillation_loss(output, teacher_output, self.spec.temperature)
        return loss

    @torch.no_grad()
    def _score(self, network: nn.Module) -> Score:
        """Return the metric, signed so that higher is better, and the negative loss."""
        network.eval()
        batches = self.valid.batches(CHUNK, None)
        pairs = (((self.task.view(network(*self.select_columns(x))),), y) for x, y in batches)
        (output,), target = concat_batches(pairs, self.valid.rows)
        value = improvement(self.metric, 0.0, self.task.metric(self.metric, output, target))
        return value, -float(self.task.loss(output, target))

    def _with_new_statistics(self, network: nn.Module, score: Score) -> tuple[nn.Module, Score]:
        """Return the better one of a network and its copy with new BatchNorm statistics."""
        if not any(map(_has_statistics, network.modules())):
            return network, score
        updated = update_batchnorm(network, self.select_columns, self.train, self.spec)
        return max((network, score), (updated, self._score(updated)), key=lambda pair: pair[1])


@torch.no_grad()
def update_batchnorm(
    network: nn.Module, select_columns: Callable[[Inputs], Inputs], train: Split, spec: RefitSpec
) -> nn.Module:
    """Return a copy whose BatchNorm statistics are means over the training rows at the present weights.

    Running statistics lag behind weights that move, and before a cut they belonged to another network.
    """
    updated = copy.deepcopy(network).eval()
    layers = [m for m in updated.modules() if _has_statistics(m)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # an unweighted mean over the batches
        layer.train()
    all_rows = train.whole if isinstance(train, ShardedSplit) else train
    for inputs, target in all_rows.batches(batch_size(spec.batch_size, all_rows), None):
        if len(target) > 1:
            updated(*select_columns(inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return updated.eval()


def _has_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a module is a BatchNorm layer with running statistics."""
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _scale_dropout(student: nn.Module, spec: RefitSpec, original: nn.Module) -> None:
    """Lower the dropout rates of a slim network, which has less capacity to spare.

    References:
        Han et al. (2015), "Learning both weights and connections for efficient neural
        networks", section 3.2: the rate goes with the root of the connections left.
    """
    left = sum(p.numel() for p in student.parameters()) / sum(p.numel() for p in original.parameters())
    factor = {"scaled": left**0.5, "kept": 1.0, "off": 0.0}[spec.dropout]
    for name, module in student.named_modules():
        if isinstance(module, _DropoutNd):
            trained = original.get_submodule(name)
            assert isinstance(trained, _DropoutNd)  # a cut keeps every module
            module.p = trained.p * factor
