"""Proximal optimizers: a gradient step, then the proximal operator in the metric of that step.

Each group has one scalar step size, which groups that a penalty couples share, so the proximal operator
of each penalty's convex part is exact in that metric, with strength ``step_g * lam`` (Yun, Lozano and
Yang, "Adaptive Proximal Gradient Methods for Structured Neural Networks", NeurIPS 2021, section 3, with a
preconditioner that is scalar on each group). Weights outside every penalised group may be held inside a ball,
whose operator is a projection on norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.errors import NonFiniteError

if TYPE_CHECKING:
    from glprune.training.blocks import ParameterGroups
    from glprune.training.penalties import Penalty

_STOP_CHECK_INTERVAL = 5  # accelerated steps
_MAX_HALVINGS = 60  # of the step size, in one backtracking


@dataclass(frozen=True)
class BoundedPenalty:
    """A penalty on groups and bounds on their norms.

    Attributes:
        penalty: The penalty on the groups.
        radius: Largest norm allowed, shape (n_groups,); infinity is no bound. None: no group is bounded.
    """

    penalty: Penalty
    radius: Tensor | None

    @property
    def weights(self) -> Tensor:
        """Penalty weights, shape (n_groups,); 0 is not penalised."""
        return self.penalty.weights

    def prox_(self, blocks: ParameterGroups, strength: Tensor) -> Tensor:
        """Shrink the groups by ``strength = step * lam``, shape (n_groups,), then project into the ball.

        Returns:
            See ``glprune.training.penalties.Penalty.prox_``.
        """
        return self.penalty.prox_(blocks, strength, self.radius)


@dataclass(frozen=True)
class ProximalProblem:
    """The parameters that proximal steps change, and the penalty on them.

    Attributes:
        blocks: Parameters split into groups.
        free: Parameters in no group (biases), stepped without a penalty.
        regulariser: Penalty and bounds of the groups.
        lam: Strength of the penalty.
    """

    blocks: ParameterGroups
    free: Sequence[nn.Parameter]
    regulariser: BoundedPenalty
    lam: float


class ProximalOptimizer:
    """A gradient step followed by the proximal step.

    Args:
        problem: Parameters and penalty.
        lr: Step size, as in ``torch.optim``.
    """

    def __init__(self, problem: ProximalProblem, lr: float) -> None:
        self.blocks, self.free = problem.blocks, list(problem.free)
        self.regulariser, self.lam, self.lr = problem.regulariser, problem.lam, lr
        self.steps = 0
        self.free_optimizer: torch.optim.Optimizer | None = None

    @torch.no_grad()
    def step(self) -> bool:
        """Step on the gradients in ``.grad``; return whether the groups are still finite."""
        self.steps += 1
        self.regulariser.penalty.add_smooth_gradient_(self.blocks, self.lam)
        size = self._descend()
        # a NaN or Inf of a gradient or a weight is in the norm of its group too
        return math.isfinite(self.regulariser.prox_(self.blocks, size * self.lam).sum())

    def _descend(self) -> Tensor:
        """Take the gradient step and return each group's step size, shape (n_groups,)."""
        raise NotImplementedError


class ProximalSGD(ProximalOptimizer):
    """SGD with momentum, as ``torch.optim.SGD``, and its proximal step.

    The momentum buffer sums gradients, so after t steps a constant gradient has been applied
    with step ``lr * (1 - momentum**t) / (1 - momentum)``; the threshold uses the same step.
    With a threshold of ``lr * lam`` the fixed point would solve the problem for ``lam * (1 - momentum)``.
    """

    def __init__(self, problem: ProximalProblem, lr: float, momentum: float = 0.9) -> None:
        super().__init__(problem, lr)
        self.momentum = momentum
        self.buffers = [torch.zeros_like(p) for p in self.blocks.parameters]
        if self.free:
            self.free_optimizer = torch.optim.SGD(self.free, lr=lr, momentum=momentum)

    def _descend(self) -> Tensor:
        if self.free_optimizer is not None:
            self.free_optimizer.param_groups[0]["lr"] = self.lr
            self.free_optimizer.step()
        torch._foreach_mul_(self.buffers, self.momentum)
        torch._foreach_add_(self.buffers, self.blocks.gradients)
        torch._foreach_add_(self.blocks.values, self.buffers, alpha=-self.lr)
        gain = (1 - self.momentum**self.steps) / (1 - self.momentum)
        return torch.full((self.blocks.count,), self.lr * gain)


class ProximalAdam(ProximalOptimizer):
    """Adam with one second moment for each group, or for all groups of a component, and its proximal step.

    The second moment is the running mean of the group's mean squared gradient plus the largest mean square
    of the penalty's gradient, ``(lam * weight_g)**2 / p_g`` for every kind of penalty. The metric is scalar
    on each group, so the proximal operator is exact in it, and no threshold exceeds ``lr * sqrt(p_g)``.
    Without the second term a network at its optimum, whose gradients vanish, would take unbounded steps.
    Parameters in no group are stepped by ``torch.optim.Adam`` with the mean size of the penalty's
    gradient as its epsilon, since smaller gradients are noise at a penalised optimum.
    """

    betas = (0.9, 0.999)
    eps = 1e-8

    def __init__(self, problem: ProximalProblem, lr: float) -> None:
        super().__init__(problem, lr)
        self.first = [torch.zeros_like(p) for p in self.blocks.parameters]
        self.second = torch.zeros_like(self.blocks.sizes)
        # largest mean square of the penalty's gradient in each group; the mean of them where there is none
        squares = self._mean((self.lam * self.regulariser.weights).square())
        mean = squares[squares > 0].mean() if bool((squares > 0).any()) else torch.zeros(())
        self.floor = torch.where(squares > 0, squares, mean)
        eps = self.eps + float(mean.sqrt())
        if self.free:
            self.free_optimizer = torch.optim.Adam(self.free, lr=lr, betas=self.betas, eps=eps, fused=True)

    def _descend(self) -> Tensor:
        if self.free_optimizer is not None:
            self.free_optimizer.param_groups[0]["lr"] = self.lr
            self.free_optimizer.step()
        beta1, beta2 = self.betas
        gradients = self.blocks.gradients
        torch._foreach_lerp_(self.first, gradients, 1 - beta1)
        self.second.lerp_(self._mean(self.blocks.dot(gradients)), 1 - beta2)
        root = (self.second / (1 - beta2**self.steps)).add_(self.floor).sqrt_().add_(self.eps)
        size = root.reciprocal_().mul_(self.lr)
        gain = 1 / (1 - beta1**self.steps)
        torch._foreach_addcmul_(self.blocks.values, self.first, self.blocks.expand(size), -gain)
        return size

    def _mean(self, sums: Tensor) -> Tensor:
        """Divide sums over the weights of each group by their number, over all groups of a component."""
        component, sizes = self.regulariser.penalty.components, self.blocks.sizes
        if component is None:
            return sums.div_(sizes)
        totals = [torch.zeros_like(part).index_add_(0, component, part) for part in (sums, sizes)]
        return (totals[0] / totals[1].clamp(min=1.0))[component]


class AcceleratedProximalGradient:
    """Full-batch accelerated proximal gradient with backtracking and restart, in place.

    Args:
        problem: Parameters and penalty.
        gradient: Computes the loss over all rows and leaves its gradient in ``.grad``.
        loss: Computes the loss over all rows.
        curvature: First estimate of the Lipschitz constant of the gradient; None starts at 1.

    Attributes:
        curvature: The last estimate of the Lipschitz constant, a good first one for a next call.

    References:
        Beck and Teboulle (2009), "A fast iterative shrinkage-thresholding algorithm", SIAM J.
        Imaging Sci. 2(1), algorithm FISTA with backtracking; O'Donoghue and Candes (2015),
        "Adaptive restart for accelerated gradient schemes", Found. Comput. Math. 15, gradient
        scheme.
    """

    def __init__(
        self,
        problem: ProximalProblem,
        gradient: Callable[[], float],
        loss: Callable[[], float],
        curvature: float | None = None,
    ) -> None:
        self.blocks, self.regulariser, self.lam = problem.blocks, problem.regulariser, problem.lam
        self.curvature = 1.0 if curvature is None else curvature
        self._gradient, self._loss = gradient, loss
        self._parameters = [*problem.blocks.parameters, *problem.free]
        self._tensors: list[Tensor] = [*problem.blocks.values, *(p.data for p in problem.free)]
        self._previous = [t.clone() for t in self._tensors]  # the last step, without extrapolation
        # where the step starts, the step, and the way from the last step
        self._start, self._change, self._moved = (
            [torch.empty_like(t) for t in self._tensors] for _ in range(3)
        )
        self._momentum = 1.0

    def run(self, steps: int, is_done: Callable[[], bool] | None = None) -> None:
        """Make at most ``steps`` steps; the weights are those of the last one, without extrapolation.

        Args:
            steps: Number of accelerated steps.
            is_done: Called after every fifth step; True ends the steps.

        Raises:
            NonFiniteError: The loss or its gradient is not finite.
        """
        for step in range(1, steps + 1):
            extrapolation = self._step()
            is_due = step % _STOP_CHECK_INTERVAL == 0
            if step == steps or (is_due and is_done is not None and is_done()):
                break
            torch._foreach_add_(self._tensors, self._moved, alpha=extrapolation)

    def _step(self) -> float:
        """Make a proximal step; return the factor on it by which the next one starts further on."""
        value = self._finite_gradient() + self.regulariser.penalty.smooth_value(self.blocks, self.lam)
        self.regulariser.penalty.add_smooth_gradient_(self.blocks, self.lam)
        torch._foreach_copy_(self._start, self._tensors)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self._backtrack(gradients, value)
        _subtract(self._tensors, self._previous, self._moved)
        uphill = self._inner(self._change, self._moved) < 0
        momentum = 1.0 if uphill else (1 + (1 + 4 * self._momentum**2) ** 0.5) / 2
        extrapolation = 0.0 if uphill else (self._momentum - 1) / momentum
        self._momentum = momentum
        torch._foreach_copy_(self._previous, self._tensors)
        return extrapolation

    def _finite_gradient(self) -> float:
        """Compute loss and gradient; if extrapolation made them non-finite, at the last step instead."""
        try:
            return self._gradient()
        except NonFiniteError:
            if self._momentum == 1.0:
                raise
        self._momentum = 1.0
        torch._foreach_copy_(self._tensors, self._previous)
        return self._gradient()

    def _backtrack(self, gradients: Sequence[Tensor], value: float) -> None:
        """Make the largest proximal step whose quadratic model bounds the loss; none if all are too large."""
        self.curvature /= 1.5
        for _ in range(_MAX_HALVINGS):
            for tensor, start, gradient in zip(self._tensors, self._start, gradients, strict=True):
                torch.sub(start, gradient, alpha=1 / self.curvature, out=tensor)
            strength = torch.full((self.blocks.count,), self.lam / self.curvature)
            self.regulariser.prox_(self.blocks, strength)
            _subtract(self._tensors, self._start, self._change)
            linear = self._inner(gradients, self._change)
            square = self._inner(self._change, self._change)
            smooth = self._loss() + self.regulariser.penalty.smooth_value(self.blocks, self.lam)
            # float32 losses are accurate to about seven digits
            if smooth <= value + linear + 0.5 * self.curvature * square + 1e-6 * abs(value):
                return
            self.curvature *= 2.0
        torch._foreach_copy_(self._tensors, self._start)
        torch._foreach_zero_(self._change)

    def _inner(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        """Inner product of two lists of tensors, grouped ones first; sums over groups are in float64."""
        n = len(self.blocks.parameters)
        free = sum(float(torch.sum(x.double() * y.double())) for x, y in zip(a[n:], b[n:], strict=True))
        return float(self.blocks.dot(a[:n], b[:n]).sum(dtype=torch.float64)) + free


def _subtract(a: Sequence[Tensor], b: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Compute ``a - b`` into existing tensors: allocating millions of weights takes longer than the sum."""
    for x, y, difference in zip(a, b, out, strict=True):
        torch.sub(x, y, out=difference)
