"""The scales of overlapping nodes, from which value and proximal operator of the latent group LASSO follow.

With ``n_j`` the norm of group j, the Moreau envelope of the penalty with parameter t is the minimum over
scales ``s_v >= 0`` of ::

    0.5 * sum_j n_j**2 / (t_j + sum_{v has j} s_v) + 0.5 * sum_v weight_v**2 * s_v

and the penalty is its value at t = 0 (the variational form in Obozinski, Jacob and Vert, 2011, "Group lasso
with overlaps: the latent group lasso approach", arXiv:1110.0413). At the minimum, the proximal operator
multiplies group j by ``S_j / (t_j + S_j)``, S_j being the sum over the nodes that have it; ``s_v / t`` are
the multipliers of the projection on ``||w_v|| <= t * weight_v`` that Villa et al. (2014) compute.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

Array = NDArray[np.float64]

_FIRST_STEPS = 4  # of the multiplicative update, which comes near from any start
_NEWTON_STEPS = 100
_SIZES = 0.5 ** np.arange(40)  # of a step, as a part of it
_BENT = 6  # sizes beyond the first bend
_TOLERANCE = 1e-11  # of the squared weight of a node
_RIDGE = 1e-12  # of the curvature: equal nodes share a group in any proportion
_ROUNDING = 4 * np.finfo(np.float64).eps  # of a value
_TINY = np.finfo(np.float64).tiny


def latent_scales(norms: Tensor, strength: Tensor, member: Tensor, weights: Tensor) -> Tensor:
    """Minimise the envelope over the scales by a projected Newton method; a node that is zero has scale 0.0.

    Args:
        norms: n_j, shape (n_groups,), float64, >= 0, finite.
        strength: t_j, shape (n_groups,), float64, >= 0, equal for groups that nodes connect.
        member: Whether a group is in a node, 0.0 or 1.0, shape (n_nodes, n_groups), float64; every group is
            in one.
        weights: Weight of each node, shape (n_nodes,), float64, > 0.

    Returns:
        s_v, shape (n_nodes,), float64, >= 0.

    References:
        Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints",
        SIAM J. Control Optim. 20(2), 221-246.
    """
    if not len(weights):
        return weights.clone()
    # arrays of NumPy: the operations are small, and calls of PyTorch take several times as long
    problem = _Envelope(norms.numpy() ** 2, strength.numpy(), member.numpy(), weights.numpy() ** 2)
    return from_numpy(problem.minimum())


class _Envelope:
    """The function of the scales that ``latent_scales`` minimises, and its derivatives.

    Args:
        norms2: ``n_j**2``, shape (n_groups,).
        strength: t_j, shape (n_groups,).
        member: Shape (n_nodes, n_groups).
        squares: ``weight_v**2``, shape (n_nodes,).
    """

    def __init__(self, norms2: Array, strength: Array, member: Array, squares: Array) -> None:
        held = norms2 > 0  # the others add nothing
        self.norms2, self.strength, self.member = norms2[held], strength[held], member[:, held]
        self.squares = squares

    def minimum(self) -> Array:
        scales = self.start()
        for _ in range(_NEWTON_STEPS):
            gradient = self.gradient(scales)
            free = (scales > 0) | (gradient < 0)
            off = np.abs(gradient) > _TOLERANCE * self.squares
            if not (off & free).any():
                break
            before, scales = scales, self.step(scales, gradient, free)
            if scales is before:  # no step falls: the value is minimal to round-off
                break
        return scales

    def value(self, scales: Array) -> float:
        return float(0.5 * self._divided(scales, 1).sum() + 0.5 * self.squares @ scales)

    def gradient(self, scales: Array) -> Array:
        slope: Array = 0.5 * (self.squares - self.member @ self._divided(scales, 2))
        return slope

    def start(self) -> Array:
        """Come near the minimum from the scales of nodes that overlap with no other."""
        overlap = self.member @ self.member.sum(0) / self.member.sum(1).clip(min=1.0)
        scales: Array = np.sqrt(self.member @ self.norms2 / self.squares) / overlap.clip(min=1.0)
        for _ in range(_FIRST_STEPS):
            scales = scales * np.sqrt(self.member @ self._divided(scales, 2) / self.squares)
        return scales

    def step(self, scales: Array, gradient: Array, free: NDArray[np.bool_]) -> Array:
        """Make a projected Newton step over the free scales: those that are above 0 or would rise."""
        member = self.member[free]
        curvature = member * self._divided(scales, 3) @ member.T
        unit = 1 / np.sqrt(curvature.diagonal() + _TINY)
        curvature = curvature * np.outer(unit, unit) + _RIDGE * np.eye(len(unit))
        direction = np.zeros_like(scales)
        direction[free] = -unit * np.linalg.solve(curvature, unit * gradient[free])
        return self._search(scales, gradient, direction)

    def _divided(self, scales: Array, power: int) -> Array:
        """``n_j**2`` over a power of ``t_j + S_j``; infinity where a group that is not zero has no scale."""
        total = (self.strength + scales @ self.member) ** power
        return np.divide(self.norms2, total, out=np.full_like(total, np.inf), where=total > 0)

    def _search(self, scales: Array, gradient: Array, direction: Array) -> Array:
        """Shorten a step along the projection arc until the value falls enough; else return ``scales``.

        Scales of nodes that are nearly equal change by large opposite amounts, so that the arc may rise
        from its first bend on; up to there the step is a descent of a convex function.
        """
        falls = (direction < 0) & (scales > 0)
        bends = np.divide(scales, -direction, out=np.full_like(scales, np.inf), where=falls)
        bend = min(1.0, float(bends.min()))
        most = self.value(scales) * (1 + _ROUNDING)
        for size in [*(size for size in _SIZES[:_BENT] if size > bend), *(bend * _SIZES)]:
            new: Array = (scales + size * direction).clip(min=0.0)
            new[bends <= size] = 0.0
            if self.value(new) <= most + 1e-4 * float(gradient @ (new - scales)):
                return new
        return scales
