"""The group LASSO penalty, its proximal operator and its optimality conditions.

Pure functions of group norms: a group is seen only through its norm, so the operator maps
norms to norms and :meth:`glprune.groups.Blocks.rescale_` touches the weights.

References:
    Yuan and Lin (2006), "Model selection and estimation in regression with grouped
    variables", J. R. Stat. Soc. B 68(1), 49-67.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_soft_threshold(norms: Tensor, threshold: Tensor) -> Tensor:
    """Proximal operator of the group LASSO, on group norms.

    Solves ``argmin_u 0.5 * (u - norms)**2 + threshold * u`` over ``u >= 0``. Works on norms,
    so a group that is already zero stays zero and nothing is divided.

    Args:
        norms: Group norms, shape (n_groups,), >= 0.
        threshold: ``step * lam * weight``, shape (n_groups,), >= 0, in the units of norms.

    Returns:
        New norms, shape (n_groups,); exactly 0.0 at or below the threshold.

    References:
        Yuan and Lin (2006), equation 2.4.
    """
    return (norms - threshold).clamp(min=0.0)


def penalty_value(norms: Tensor, weights: Tensor, lam: float) -> float:
    """``lam * sum_g weight_g * ||w_g||``; norms and weights have shape (n_groups,)."""
    return float(lam * (weights.double() * norms.double()).sum())


def kkt_residuals(
    norms: Tensor, gradient_norms: Tensor, inner: Tensor, weights: Tensor, lam: float
) -> tuple[float, float]:
    """How far a point is from the optimality conditions of the group LASSO.

    A zero group is optimal when ``||grad_g|| <= lam * weight_g``; a non-zero one when
    ``grad_g + lam * weight_g * w_g / ||w_g|| = 0``. Both residuals are divided by
    ``lam * weight_g``, so 0 is optimal and 1 is off by the whole penalty.

    Args:
        norms: ``||w_g||``, shape (n_groups,).
        gradient_norms: ``||grad_g||`` of the unpenalised loss, shape (n_groups,).
        inner: ``<grad_g, w_g>``, shape (n_groups,).
        weights: Penalty weights, shape (n_groups,), > 0.
        lam: Strength of the penalty; at 0 both residuals are gradient norms instead.

    Returns:
        The largest residual over zero groups and over non-zero groups; 0.0 where there is none.

    References:
        Yuan and Lin (2006), conditions 2.2 and 2.3.
    """
    bound = lam * weights.double()
    norms, gradient_norms, inner = norms.double(), gradient_norms.double(), inner.double()
    unit = bound if lam > 0 else torch.ones_like(bound)
    zero = norms == 0
    outside = (gradient_norms - bound).clamp(min=0.0) / unit
    along = inner / norms.where(~zero, 1.0)
    distance = (gradient_norms.square() + 2 * bound * along + bound.square()).clamp(min=0.0).sqrt() / unit
    return _largest(outside[zero]), _largest(distance[~zero])


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
