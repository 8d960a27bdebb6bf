"""Penalties on groups of weights: their values, proximal operators and optimality conditions.

Every penalty is ``lam * sum_g (e_g * ||w_g||_1 + f_g(||w_g||))``: a function of the group's norm and, for the
sparse group LASSO, an L1 term on its elements. Its convex part is not smooth; in a metric that is scalar on
each group its proximal operator is elementwise soft-thresholding, then block soft-thresholding. The
difference of a concave penalty from its convex part is smooth and is added to the loss. Penalties that couple
groups with each other are in ``glprune.training.structured_penalties``.

References:
    Yuan and Lin (2006), "Model selection and estimation in regression with grouped
    variables", J. R. Stat. Soc. B 68(1), 49-67.
    Simon, Friedman, Hastie and Tibshirani (2013), "A sparse-group lasso", J. Comput. Graph.
    Stat. 22(2), 231-245.
    Huang, Breheny and Ma (2012), "A selective review of group selection in high-dimensional
    models", Stat. Sci. 27(4), 481-499.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from glprune.training.blocks import ParameterGroups

_BISECTIONS = 60
_TINY = torch.finfo(torch.float32).tiny
_MIN_NORM = 0.1  # of the mean of its set: a group near zero still has a knot above zero


def block_soft_threshold(norms: Tensor, threshold: Tensor, out: Tensor | None = None) -> Tensor:
    """Proximal operator of the group LASSO, on group norms.

    Solves ``argmin_u 0.5 * (u - norms)**2 + threshold * u`` over ``u >= 0``. Works on norms,
    so a group that is already zero stays zero and nothing is divided.

    Args:
        norms: Group norms, shape (n_groups,), >= 0.
        threshold: ``step * lam * weight``, shape (n_groups,), >= 0, in the units of norms.
        out: Where the result is written; a new tensor if None.

    Returns:
        New norms, shape (n_groups,); exactly 0.0 at or below the threshold.

    References:
        Yuan and Lin (2006), equation 2.4.
    """
    return torch.sub(norms, threshold, out=out).clamp_(min=0.0)


@dataclass(frozen=True)
class Penalty:
    """A penalty on groups, separable over them or over their ``components``.

    Its convex part sees a group through its norm, apart from the L1 term on elements. A subclass that is not
    separable defines ``components``, ``value_of_norms``, ``shrink``, ``slopes``, ``excess`` and
    ``zero_lambda``.

    Attributes:
        weights: Factor of lambda for each group, shape (n_groups,); 0 is not penalised.
    """

    weights: Tensor

    @property
    def element_weights(self) -> Tensor | None:
        """``e_g``, the factor of lambda for each element, shape (n_groups,); None: no such term."""
        return None

    @property
    def group_weights(self) -> Tensor:
        """The factor of lambda for each group's norm in the convex part, shape (n_groups,)."""
        return self.weights

    @property
    def components(self) -> Tensor | None:
        """A number below n_groups for each group, equal for groups that are coupled, shape (n_groups,).

        Coupled groups take steps of one size, since the proximal operator has a closed form in such a metric
        only. None: no group is coupled with another.
        """
        return None

    def value_of_norms(self, norms: Tensor) -> Tensor:
        """Terms whose sum is ``sum_g f_g`` at some norms, without lambda; ``f_g``, shape (n_groups,)."""
        return self.group_weights * norms

    def shrink(self, norms: Tensor, strength: Tensor) -> Tensor:
        """Proximal operator of the convex part as a map of norms.

        Args:
            norms: Group norms, shape (n_groups,).
            strength: ``step * lam`` of each group, shape (n_groups,), equal within a component.

        Returns:
            The new norms, shape (n_groups,), exactly 0.0 for groups that are removed.
        """
        threshold = strength * self.group_weights
        return block_soft_threshold(norms, threshold, out=threshold)

    def slopes(self, norms: Tensor) -> Tensor:
        """Factors on the weights of non-zero groups in the penalty's gradient, shape (n_groups,)."""
        return self.derivative(norms) / norms.where(norms > 0, 1.0)

    def excess(self, gradients: Tensor, norms: Tensor, lam: float) -> Tensor:
        """Distance of a zero group's gradient from the subdifferential, shape (n_groups,).

        Args:
            gradients: Norm of each group's gradient, after the elements' soft threshold.
            norms: Group norms, shape (n_groups,).
            lam: Strength of the penalty.
        """
        return (gradients - lam * self.derivative(norms)).clamp(min=0.0)

    def derivative(self, norms: Tensor) -> Tensor:
        """The derivative of ``f_g`` at some norms, at 0 from the right, shape (n_groups,)."""
        return self.group_weights.to(norms.dtype)

    def value(self, blocks: ParameterGroups, lam: float) -> float:
        """The penalty at the present weights."""
        values = _doubles(blocks)
        total = self.value_of_norms(blocks.dot(values).sqrt())
        if self.element_weights is not None:
            total = total + self.element_weights * blocks.dot(values, [v.sign() for v in values])
        return lam * float(total.sum())

    def smooth_value(self, blocks: ParameterGroups, lam: float) -> float:
        """The penalty minus its convex part, at the present weights; <= 0."""
        return 0.0

    def add_smooth_gradient_(self, blocks: ParameterGroups, lam: float) -> None:
        """Add the gradient of ``smooth_value`` to ``.grad``, in place."""

    def prox_(self, blocks: ParameterGroups, strength: Tensor, radius: Tensor | None = None) -> Tensor:
        """Apply the convex part's proximal operator to the present weights, then project into a ball.

        Args:
            blocks: Parameters split into groups, changed in place.
            strength: ``step * lam`` of each group, shape (n_groups,).
            radius: Largest norm allowed, shape (n_groups,); infinity is no bound. None: no group is bounded.

        Returns:
            The factor on each group's norm, shape (n_groups,), in [0, 1]; NaN where the norm is not finite.
        """
        if self.element_weights is not None:
            thresholds = blocks.expand(strength * self.element_weights)
            for values, by in zip(blocks.values, thresholds, strict=True):
                values.copy_(_soft(values, by))
        norms = blocks.norms()
        shrunk = self.shrink(norms, strength)
        if radius is not None:
            shrunk = torch.minimum(shrunk, radius)
        factors = shrunk.div_(norms.clamp_(min=_TINY))  # zero stays zero
        blocks.scale_(factors)
        return factors

    def residuals(self, blocks: ParameterGroups, lam: float) -> tuple[float, float]:
        """Distance of the present weights from the optimality (KKT) conditions of the penalised problem.

        A group is optimal when minus its gradient is in the subdifferential of the penalty: residuals are
        distances from that set. A zero group of a separable penalty is optimal when
        ``||S(grad_g, lam * e_g)|| <= lam * f_g'(0)``, S being the soft threshold. Both residuals are divided
        by ``lam * weight_g``, so 0 is optimal and 1 is off by the whole penalty.

        Args:
            blocks: Parameters split into groups, the gradients of the unpenalised loss in ``.grad``.
            lam: Strength of the penalty; at 0 both residuals are gradient norms instead.

        Returns:
            The largest residual over zero groups and over non-zero groups; 0.0 where there is none.
        """
        # the residual is a small difference of large terms: use double precision
        values, gradients = _doubles(blocks), [g.double() for g in blocks.gradients]
        norms = blocks.dot(values).sqrt()
        elements = torch.zeros_like(norms) if self.element_weights is None else lam * self.element_weights
        along = lam * self.slopes(norms)
        parts = zip(gradients, values, blocks.expand(elements), blocks.expand(along), strict=True)
        distance = blocks.dot([_distance(g, v, e, a) for g, v, e, a in parts]).sqrt()
        outside = self.excess(distance, norms, lam)
        unit = lam * self.weights.double() if lam > 0 else torch.ones_like(norms)
        zero, on = norms == 0, self.weights > 0
        return _largest((outside / unit)[on & zero]), _largest((distance / unit)[on & ~zero])

    def zero_lambda(self, blocks: ParameterGroups) -> Tensor:
        """The lambda from which on a zero group is stationary, given the gradients in ``.grad``.

        Returns:
            Shape (n_groups,); infinity or NaN for groups that are not penalised.
        """
        return blocks.dot(blocks.gradients).sqrt() / self.group_weights


# makes a penalty from the weights of groups and their blocks
MakePenalty = Callable[[Tensor, "ParameterGroups"], Penalty]


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """``lam * sum_g weight_g * ||w_g||`` (Yuan and Lin, 2006)."""


@dataclass(frozen=True)
class GroupMCP(Penalty):
    """The minimax concave penalty on norms: its slope is that of the group LASSO at zero, and 0 at a knot.

    ``lam * sum_g weight_g * (u - u**2 / (2 * knot_g))`` with ``u = ||w_g||`` up to the knot, constant
    beyond: the MCP of Huang, Breheny and Ma (2012) with ``gamma_g = knot_g / (lam * weight_g)``.

    Its difference from the group LASSO is smooth and is added to the loss. The proximal operator of the
    whole penalty (firm thresholding) expands distances, and with momentum the iterates cycle: with a momentum
    of m they are stable only if ``step * lam * weight_g < (1 - m) * knot_g``.

    Attributes:
        knots: Norm from which on a group is not penalised further, shape (n_groups,), > 0.

    References:
        Yao and Kwok (2018), "Efficient learning with a family of nonconvex regularizers by
        redistributing nonconvexity", J. Mach. Learn. Res. 18(179).
    """

    thresholds: Tensor

    def value_of_norms(self, norms: Tensor) -> Tensor:
        """See ``Penalty.value_of_norms``."""
        inside = torch.minimum(norms, self.thresholds.to(norms.dtype))
        return self.weights * (inside - inside.square() / (2 * self.thresholds))

    def derivative(self, norms: Tensor) -> Tensor:
        """See ``Penalty.derivative``."""
        return self.weights * (1 - norms / self.thresholds).clamp(min=0.0)

    def smooth_value(self, blocks: ParameterGroups, lam: float) -> float:
        """See ``Penalty.smooth_value``."""
        norms = blocks.dot(_doubles(blocks)).sqrt()
        return lam * float((self.value_of_norms(norms) - self.weights * norms).sum())

    def add_smooth_gradient_(self, blocks: ParameterGroups, lam: float) -> None:
        """See ``Penalty.add_smooth_gradient_``."""
        factors = blocks.expand(-lam * self.weights / torch.maximum(blocks.norms(), self.thresholds))
        for parameter, by in zip(blocks.parameters, factors, strict=True):
            change = by * parameter.detach()
            parameter.grad = change if parameter.grad is None else parameter.grad + change


@dataclass(frozen=True)
class SparseGroupLasso(Penalty):
    """``lam * sum_g (a * e_g * ||w_g||_1 + (1 - a) * weight_g * ||w_g||)``, ``e_g = weight_g / sqrt(p_g)``.

    With one weight per element that is the group's weight over the root of its size p_g, strengths and
    adaptive weights act on both terms alike (Simon et al., 2013).

    Attributes:
        share: a, between 0 (group LASSO) and 1 (LASSO).
        sizes: Number of weights of each group, shape (n_groups,).
    """

    share: float
    sizes: Tensor

    @property
    def element_weights(self) -> Tensor:
        """See ``Penalty.element_weights``."""
        return self.share * self.weights / self.sizes.sqrt()

    @property
    def group_weights(self) -> Tensor:
        """See ``Penalty.group_weights``."""
        return (1 - self.share) * self.weights

    def zero_lambda(self, blocks: ParameterGroups) -> Tensor:
        """The root of ``||S(grad_g, lam * e_g)|| = lam * (1 - a) * weight_g``, by bisection of all groups."""
        gradients = [g.double() for g in blocks.gradients]
        high = blocks.dot(gradients).sqrt() / self.group_weights
        low = torch.zeros_like(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            thresholds = blocks.expand(middle * self.element_weights)
            left = blocks.dot([_soft(g, t) for g, t in zip(gradients, thresholds, strict=True)]).sqrt()
            below = left > middle * self.group_weights
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high


def mcp_thresholds(norms: Tensor, sets: Sequence[int], gamma: float) -> Tensor:
    """Compute the knots of the group MCP on the scale of the trained network.

    A knot is ``gamma`` times the group's trained norm, or times a tenth of the mean norm of its set if that
    is larger. The curvature of a loss is unknown and differs between layers by orders of magnitude, while the
    group's norm has the right scale. At its trained norm a group has ``1 - 1 / gamma`` of the slope at zero.

    Args:
        norms: Trained norms, shape (n_groups,).
        sets: Numbers of groups of the penalised sets, which come first.
        gamma: > 1. At 1 and below the trained network is stationary at every lambda.

    Returns:
        Shape (n_groups,), > 0; infinity (the group LASSO) for groups of no set and for sets of zeros.
    """
    penalised = norms[: sum(sets)]
    parts: tuple[Tensor, ...] = torch.split(penalised, list(sets))
    minimum = torch.cat([part.mean().expand(len(part)) for part in parts]) * _MIN_NORM
    knots = torch.full_like(norms, torch.inf)
    knots[: len(penalised)] = gamma * torch.maximum(penalised, minimum)
    return knots.where(knots > 0, torch.inf)


def _soft(values: Tensor, thresholds: Tensor) -> Tensor:
    """Elementwise soft threshold, exactly 0.0 at or below it."""
    return values - torch.minimum(torch.maximum(values, -thresholds), thresholds)


def _distance(gradient: Tensor, value: Tensor, element: Tensor, along: Tensor) -> Tensor:
    """Elementwise distance of minus the gradient from the subgradients of the penalty."""
    smooth = gradient + along * value + element * value.sign()
    return torch.where(value == 0, _soft(gradient, element), smooth)


def _doubles(blocks: ParameterGroups) -> list[Tensor]:
    return [v.double() for v in blocks.values]


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0
