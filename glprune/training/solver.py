"""Training: one point of the path with the penalty, and the refit without it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glprune.model.diagnostics import explain_nonfinite
from glprune.runtime import process_group
from glprune.training.epochs import batch_size, passes_per_epoch, with_halving
from glprune.training.proximal import ProximalAdam, ProximalOptimizer, ProximalSGD, accelerated_steps

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import TrainSpec
    from glprune.training.objective import Objective


class PointSolver:
    """Minimise the objective at one lambda after another, each from where the last one ended."""

    def __init__(self, objective: Objective, spec: TrainSpec, seed: int) -> None:
        self.objective, self.spec = objective, spec
        self.generator = torch.Generator().manual_seed(seed)
        self.curvature: float | None = None

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the next lambda depends on beside the weights, as JSON values and tensors."""
        return {"curvature": self.curvature}, {"generator": self.generator.get_state()}

    def load_state_dict(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from where :meth:`standing` was taken."""
        self.curvature = facts["curvature"]
        self.generator.set_state(tensors["generator"])

    def solve(self, lam: float, polish: bool = True) -> int:
        """Train at ``lam``: epochs of stochastic proximal steps, then full-batch steps.

        The epochs end early where one of them removed no group and lowered the objective by less
        than ``train.tolerance`` of itself.

        Args:
            lam: Strength of the penalty.
            polish: Whether to close with the full-batch steps.

        Returns:
            How often the step size was halved.

        Raises:
            NonFiniteError: Loss, gradient or weights are not finite, and the recipe allows no (more) halving.
        """
        self.objective.network.eval()
        parameters = list(self.objective.network.parameters())
        start = [p.detach().clone() for p in parameters] if self.spec.max_lr_halvings else []
        order = self.generator.get_state()

        def train(factor: float) -> None:
            self.generator.set_state(order)
            for parameter, old in zip(parameters, start, strict=bool(start)):
                parameter.data.copy_(old)
            self._epochs(lam, factor)
            if polish:
                self.polish(lam)

        _, halvings = with_halving(train, self.spec.max_lr_halvings)
        self.objective.clear()
        return halvings

    def _epochs(self, lam: float, factor: float) -> None:
        """The stochastic steps of one lambda, their size multiplied by a factor."""
        optimizer = self._optimizer(lam)
        total = self.spec.epochs
        before, alive = float("inf"), -1
        passes = passes_per_epoch(self.spec.batch_size, self.objective.split)
        for epoch in range(total):
            optimizer.lr = self.spec.lr * factor * _decay(epoch, total)
            for _ in range(passes):
                value = self._pass(optimizer, f"lambda {lam:.3g}, epoch {epoch + 1}")
            value += self.objective.penalty(lam)
            left = int((self.objective.blocks.norms() > 0).sum())
            settled = left == alive and before - value < self.spec.tolerance * abs(before)
            if self.spec.tolerance and settled:
                break
            before, alive = value, left

    def _pass(self, optimizer: ProximalOptimizer, where: str) -> float:
        """One pass over the training rows; the mean loss met on the way."""
        total = 0.0
        size = batch_size(self.spec.batch_size, self.objective.split)
        for number, (inputs, target) in enumerate(self.objective.split.batches(size, self.generator), 1):
            self.objective.clear()
            value = self._backward(inputs, target)
            mean = process_group.average_gradients_(self.objective.network.parameters(), value, len(target))
            if not math.isfinite(mean) or not optimizer.step():
                at = f"{where}, batch {number}"
                own = explain_nonfinite(self.objective.batch(inputs, target), at, self._restore)
                raise process_group.first_error(own, at, self._restore)
            total += value * len(target)
        return process_group.all_reduce_scalar(total) / self.objective.split.rows

    def _backward(self, inputs: Inputs, target: Tensor) -> float:
        """The mean loss of a batch, its gradient in ``.grad``; of no rows, 0 and none."""
        if not len(target):
            return 0.0
        loss = self.objective.batch_loss(inputs, target, self.spec.precision)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()
        return value

    @property
    def _restore(self) -> str:
        return f"lower train.lr (now {self.spec.lr:g}) or allow train.max_lr_halvings"

    def _optimizer(self, lam: float) -> ProximalOptimizer:
        blocks, regulariser = self.objective.blocks, self.objective.regulariser
        if self.spec.optimizer == "adam":
            return ProximalAdam(blocks, self.objective.free, regulariser, lam, self.spec.lr)
        return ProximalSGD(
            blocks,
            self.objective.free,
            regulariser,
            lam,
            self.spec.lr,
            momentum=0.9 if self.spec.momentum is None else self.spec.momentum,
        )

    def polish(self, lam: float, enough: Callable[[], bool] | None = None) -> None:
        """Full-batch accelerated proximal steps, ``train.full_batch_steps`` at most; see :func:`accelerated_steps`."""
        if self.spec.full_batch_steps:
            self.curvature = self._steps(lam, self.spec.full_batch_steps, self.curvature, enough)

    def step(self, lam: float, curvature: float | None = None) -> float:
        """One full-batch proximal step of at most ``1.5 / curvature``; returns the curvature it used."""
        return self._steps(lam, 1, curvature or self.curvature)

    def _steps(
        self, lam: float, steps: int, curvature: float | None, enough: Callable[[], bool] | None = None
    ) -> float:
        return accelerated_steps(
            self.objective.blocks,
            list(self.objective.free),
            self.objective.regulariser,
            lam,
            functools.partial(self.objective.gradient, f"lambda {lam:.3g}", self._restore),
            self.objective.loss,
            steps,
            curvature,
            enough,
        )


def _decay(epoch: int, total: int) -> float:
    """Constant for the first half, then down to a tenth: noise must fall for groups to settle."""
    late = max(0.0, 2.0 * epoch / total - 1.0)
    return 0.1**late
