"""Proximal optimisers: a gradient step, then the proximal operator in the step's own metric.

Each group has one scalar step size, so the proximal operator of each penalty's convex part has a
closed form in that metric, with strength ``step_g * lam`` (Yun, Lozano and Yang, "Adaptive Proximal
Gradient Methods for Structured Neural Networks", NeurIPS 2021, section 3, with a preconditioner
that is scalar on each group). Weights outside every penalised group may be held inside a ball,
whose operator is a projection on norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.errors import NonFiniteError

if TYPE_CHECKING:
    from glprune.training.blocks import ParameterGroups
    from glprune.training.penalties import Penalty

_ASKED = 5


@dataclass(frozen=True)
class BoundedPenalty:
    """What the proximal step does to each group.

    Attributes:
        penalty: The penalty on the groups.
        radius: Largest norm allowed, shape (n_groups,); infinity is no bound, None none for any group.
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
            See :meth:`glprune.training.penalties.Penalty.prox_`.
        """
        return self.penalty.prox_(blocks, strength, self.radius)


class ProximalOptimizer:
    """A gradient step followed by the proximal step.

    Args:
        blocks: Parameters split into groups.
        free: Parameters in no group (biases), stepped without a penalty.
        regulariser: Penalty and bounds of the groups.
        lam: Strength of the penalty.
        lr: Step size, as in ``torch.optim``.
    """

    def __init__(
        self,
        blocks: ParameterGroups,
        free: Iterable[Tensor],
        regulariser: BoundedPenalty,
        lam: float,
        lr: float,
    ) -> None:
        self.blocks, self.regulariser, self.lam, self.lr = blocks, regulariser, lam, lr
        self.free = list(free)
        self.steps = 0
        self.plain: torch.optim.Optimizer | None = None  # of the free parameters

    @torch.no_grad()
    def step(self) -> bool:
        """Step on the gradients now in ``.grad``; tells whether the groups are still finite."""
        self.steps += 1
        self.regulariser.penalty.add_smooth_gradient_(self.blocks, self.lam)
        size = self._descend()
        # what a gradient or a weight has of NaN or Inf, its group's norm has too
        return math.isfinite(self.regulariser.prox_(self.blocks, size * self.lam).sum())

    def _descend(self) -> Tensor:
        """Take the gradient step and return each group's step size, shape (n_groups,)."""
        raise NotImplementedError


class ProximalSGD(ProximalOptimizer):
    """SGD with momentum, as ``torch.optim.SGD``, and its proximal step.

    The momentum buffer sums gradients, so after t steps a constant gradient has been applied
    with step ``lr * (1 - momentum**t) / (1 - momentum)``; the threshold uses the same step.
    With the plain ``lr`` the fixed point would solve the problem for ``lam * (1 - momentum)``.
    """

    def __init__(
        self,
        blocks: ParameterGroups,
        free: Iterable[Tensor],
        regulariser: BoundedPenalty,
        lam: float,
        lr: float,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(blocks, free, regulariser, lam, lr)
        self.momentum = momentum
        self.buffers = [torch.zeros_like(p) for p in blocks.parameters]
        if self.free:
            self.plain = torch.optim.SGD(self.free, lr=lr, momentum=momentum)

    def _descend(self) -> Tensor:
        if self.plain is not None:
            self.plain.param_groups[0]["lr"] = self.lr
            self.plain.step()
        torch._foreach_mul_(self.buffers, self.momentum)
        torch._foreach_add_(self.buffers, self.blocks.gradients)
        torch._foreach_add_(self.blocks.values, self.buffers, alpha=-self.lr)
        gain = (1 - self.momentum**self.steps) / (1 - self.momentum)
        return torch.full((self.blocks.count,), self.lr * gain)


class ProximalAdam(ProximalOptimizer):
    """Adam with one second moment for each group, and its proximal step.

    The second moment is the running mean of the group's mean squared gradient plus the mean square
    of the penalty's at most, ``(lam * weight_g)**2 / p_g`` whatever its kind: the metric is scalar on each
    group, so that the proximal operator is exact in it, and no threshold exceeds ``lr * sqrt(p_g)``.
    Without it a network at its optimum, whose gradients vanish, would take steps without bound.
    Parameters in no group are stepped by ``torch.optim.Adam`` with the usual size of the penalty's
    gradient as its epsilon, since smaller gradients are noise at a penalised optimum.
    """

    betas = (0.9, 0.999)
    eps = 1e-8

    def __init__(
        self,
        blocks: ParameterGroups,
        free: Iterable[Tensor],
        regulariser: BoundedPenalty,
        lam: float,
        lr: float,
    ) -> None:
        super().__init__(blocks, free, regulariser, lam, lr)
        self.first = [torch.zeros_like(p) for p in blocks.parameters]
        self.second = torch.zeros_like(blocks.sizes)
        # largest mean square of the penalty's gradient in each group; where there is none, what is usual
        own = (lam * regulariser.weights).square() / blocks.sizes
        usual = own[own > 0].mean() if bool((own > 0).any()) else torch.zeros(())
        self.floor = torch.where(own > 0, own, usual)
        eps = self.eps + float(usual.sqrt())
        if self.free:
            self.plain = torch.optim.Adam(self.free, lr=lr, betas=self.betas, eps=eps, fused=True)

    def _descend(self) -> Tensor:
        if self.plain is not None:
            self.plain.param_groups[0]["lr"] = self.lr
            self.plain.step()
        beta1, beta2 = self.betas
        gradients = self.blocks.gradients
        torch._foreach_lerp_(self.first, gradients, 1 - beta1)
        self.second.lerp_(self.blocks.dot(gradients).div_(self.blocks.sizes), 1 - beta2)
        root = (self.second / (1 - beta2**self.steps)).add_(self.floor).sqrt_().add_(self.eps)
        size = root.reciprocal_().mul_(self.lr)
        gain = 1 / (1 - beta1**self.steps)
        torch._foreach_addcmul_(self.blocks.values, self.first, self.blocks.expand(size), -gain)
        return size


def accelerated_steps(
    blocks: ParameterGroups,
    free: list[Tensor],
    regulariser: BoundedPenalty,
    lam: float,
    gradient: Callable[[], float],
    loss: Callable[[], float],
    steps: int,
    curvature: float | None = None,
    enough: Callable[[], bool] | None = None,
) -> float:
    """Full-batch accelerated proximal gradient with backtracking and restart, in place.

    Args:
        blocks: Parameters split into groups.
        free: Parameters in no group.
        regulariser: Penalty and bounds.
        lam: Strength of the penalty.
        gradient: Computes the whole loss and leaves its gradient in ``.grad``; raises where one of them is
            not finite.
        loss: Computes the whole loss.
        steps: Number of accelerated steps.
        curvature: First guess of the Lipschitz constant of the gradient; None starts at 1.
        enough: Asked after every fifth step whether the point reached will do.

    Returns:
        The last estimate of the Lipschitz constant, a good first guess for a next call.

    References:
        Beck and Teboulle (2009), "A fast iterative shrinkage-thresholding algorithm", SIAM J.
        Imaging Sci. 2(1), algorithm FISTA with backtracking; O'Donoghue and Candes (2015),
        "Adaptive restart for accelerated gradient schemes", Found. Comput. Math. 15, gradient
        scheme.
    """
    tensors: list[Tensor] = [*blocks.values, *(p.data for p in free)]
    parameters = [*blocks.parameters, *free]
    bound = 1.0 if curvature is None else curvature
    previous = [t.clone() for t in tensors]
    at, change, moved = ([torch.empty_like(t) for t in tensors] for _ in range(3))
    momentum = 1.0
    for step in range(1, steps + 1):
        try:
            value = gradient()
        except NonFiniteError:
            if momentum == 1.0:
                raise
            # it was extrapolated too far: on from the last step, whose loss is finite
            momentum = 1.0
            torch._foreach_copy_(tensors, previous)
            value = gradient()
        value += regulariser.penalty.smooth_value(blocks, lam)
        regulariser.penalty.add_smooth_gradient_(blocks, lam)
        torch._foreach_copy_(at, tensors)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        bound = _backtrack(blocks, regulariser, lam, loss, tensors, at, change, grads, value, bound)
        _subtract(tensors, previous, moved)
        uphill = _inner(blocks, change, moved) < 0
        following = 1.0 if uphill else (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        extrapolation = 0.0 if uphill else (momentum - 1) / following
        momentum = following
        torch._foreach_copy_(previous, tensors)
        if step == steps or (step % _ASKED == 0 and enough is not None and enough()):
            break
        torch._foreach_add_(tensors, moved, alpha=extrapolation)
    return bound


def _backtrack(
    blocks: ParameterGroups,
    regulariser: BoundedPenalty,
    lam: float,
    loss: Callable[[], float],
    tensors: list[Tensor],
    at: list[Tensor],
    change: list[Tensor],
    grads: list[Tensor],
    value: float,
    bound: float,
) -> float:
    """Proximal step from ``at`` with the largest step whose quadratic model bounds the loss, else none.

    ``change`` is filled with the step.
    """
    bound /= 1.5
    for _ in range(60):
        for tensor, start, grad in zip(tensors, at, grads, strict=True):
            torch.sub(start, grad, alpha=1 / bound, out=tensor)
        regulariser.prox_(blocks, torch.full((blocks.count,), lam / bound))
        _subtract(tensors, at, change)
        linear, square = _inner(blocks, grads, change), _inner(blocks, change, change)
        # float32 losses are known to about seven digits
        smooth = loss() + regulariser.penalty.smooth_value(blocks, lam)
        if smooth <= value + linear + 0.5 * bound * square + 1e-6 * abs(value):
            return bound
        bound *= 2.0
    torch._foreach_copy_(tensors, at)  # no step is small enough
    torch._foreach_zero_(change)
    return bound


def _subtract(a: Sequence[Tensor], b: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """``a - b`` into tensors that are there: new ones of millions of weights take longer than the sum."""
    for x, y, difference in zip(a, b, out, strict=True):
        torch.sub(x, y, out=difference)


def _inner(blocks: ParameterGroups, a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product of two lists of tensors, those of the blocks first; sums over groups are in float64."""
    n = len(blocks.parameters)
    free = sum(float(torch.sum(x.double() * y.double())) for x, y in zip(a[n:], b[n:], strict=True))
    return float(blocks.dot(a[:n], b[:n]).sum(dtype=torch.float64)) + free
