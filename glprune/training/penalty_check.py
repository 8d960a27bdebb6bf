"""Check a penalty numerically: its proximal operator, optimality conditions and smooth part.

A report states that zeros are exact and gives KKT residuals. Tests ensure this for glprune's own penalties; a
plugin's penalty is checked here, on random weights, before training.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from glprune.training.blocks import ParameterGroup, ParameterGroups
from glprune.training.penalties import MakePenalty, Penalty

_TOLERANCE = 1e-3  # relative; single precision errors are a hundredth of it
_LAM = 0.7
_STRENGTHS = (0.02, 0.2, 1.0)
_COLUMNS = 8  # penalised groups; one more is not penalised


class _Trial:
    """Random weights in groups and a penalty on them."""

    def __init__(self, make_penalty: MakePenalty, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.draw = draw
        shapes = [(6, _COLUMNS), (5, _COLUMNS), (4, 3)]
        parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
        for parameter in parameters[:2]:
            parameter.data *= torch.logspace(-1.5, 0.5, _COLUMNS)
            parameter.data[:, 0] = 0.0
        columns = torch.arange(_COLUMNS)
        owners = [columns, columns, torch.full((4,), _COLUMNS)]
        self.blocks = ParameterGroups(
            [ParameterGroup(p, d, o) for p, d, o in zip(parameters, (1, 1, 0), owners, strict=True)],
            _COLUMNS + 1,
        )
        weights = 0.5 + torch.rand(_COLUMNS + 1, generator=draw)
        weights[-1] = 0.0
        self.weights = weights
        self.penalty = make_penalty(weights, self.blocks)

    @property
    def components(self) -> Tensor:
        """The component of each group: the penalty's, or the group itself."""
        own = self.penalty.components
        return torch.arange(self.blocks.count) if own is None else own

    def current_weights(self) -> list[Tensor]:
        return [v.clone() for v in self.blocks.values]

    def set_weights(self, values: list[Tensor]) -> None:
        for own, new in zip(self.blocks.values, values, strict=True):
            own.copy_(new)

    def convex(self, values: list[Tensor]) -> float:
        """Compute the penalty's convex part at some weights, at lambda 1."""
        before = self.current_weights()
        self.set_weights(values)
        found = self.penalty.value(self.blocks, 1.0) - self.penalty.smooth_value(self.blocks, 1.0)
        self.set_weights(before)
        return found

    def set_gradients(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.blocks.parameters, values, strict=True):
            parameter.grad = value.clone()

    def other_points(self, u: list[Tensor], v: list[Tensor]) -> Iterator[list[Tensor]]:
        """Yield points, near and far, at which a minimum must not be undercut."""
        yield v
        for factor in (0.0, 0.5, 0.97, 1.03, 2.0):
            yield [factor * x for x in u]
        for group in range(_COLUMNS):
            keep = torch.ones(self.blocks.count)
            keep[group] = 0.0
            yield [x * k for x, k in zip(u, self.blocks.expand(keep), strict=True)]
        for size in (0.01, 0.1, 1.0):
            for _ in range(8):
                yield [x + size * torch.randn(x.shape, generator=self.draw) for x in u]


def violations(make_penalty: MakePenalty) -> list[str]:
    """Return what is wrong with a penalty, in words; empty if all checks pass.

    Args:
        make_penalty: Makes the penalty from weights, shape (n_groups,), and blocks.
    """
    found: list[str] = []
    for seed in range(2):
        trial = _Trial(make_penalty, seed)
        if not isinstance(trial.penalty, Penalty):
            return [f"it is {type(trial.penalty).__name__}, not a glprune.training.penalties.Penalty"]
        if not torch.equal(trial.penalty.weights, trial.weights):
            return ["its weights are not those it was given"]
        start = trial.current_weights()
        for scale in _STRENGTHS:
            trial.set_weights(start)
            found += _prox_violations(trial, scale) or _kkt_violations(trial, start, scale)
        trial.set_weights(start)
        found += _edge_violations(trial, start)
        trial.set_weights(start)
        found += _smooth_violations(trial)
        if found:
            break
    return found


def _strength(trial: _Trial, scale: float) -> Tensor:
    """Draw a different step size for each component of groups."""
    return scale * (0.5 + torch.rand(trial.blocks.count, generator=trial.draw))[trial.components]


def _prox_violations(trial: _Trial, scale: float) -> list[str]:
    """Check the prox: u is the prox at v of a convex h if ``h(z) >= h(u) + <(v - u) / strength, z - u>``."""
    blocks, v = trial.blocks, trial.current_weights()
    strength = _strength(trial, scale)
    factors = trial.penalty.prox_(blocks, strength.clone())
    u = trial.current_weights()
    if not (len(factors) == blocks.count and bool(((factors >= 0) & (factors <= 1)).all())):
        return ["prox_ does not return factors between 0 and 1, one for each group"]
    if not torch.equal(u[-1], v[-1]):
        return ["prox_ changes a group whose weight is 0"]
    divided = blocks.expand(strength)
    pull = [(a - b).double() / s for a, b, s in zip(v, u, divided, strict=True)]
    height = trial.convex(u)
    for z in trial.other_points(u, v):
        inner = sum(float((p * (a - b).double()).sum()) for p, a, b in zip(pull, z, u, strict=True))
        there = trial.convex(z)
        if not there >= height + inner - _TOLERANCE * (abs(there) + abs(height) + abs(inner)):
            return [
                "prox_ is not the proximal operator of the convex part of its value: a random point is "
                f"better by {height + inner - there:.2g}"
            ]
    return []


def _kkt_violations(trial: _Trial, v: list[Tensor], scale: float) -> list[str]:
    """Check that at a result of the prox the residuals are 0 for the gradient that led there only."""
    blocks, penalty = trial.blocks, trial.penalty
    trial.set_weights(v)
    step = _strength(trial, scale)
    penalty.prox_(blocks, step * _LAM)
    u = trial.current_weights()
    blocks_step = blocks.expand(step)
    trial.set_gradients([torch.zeros_like(x) for x in u])
    penalty.add_smooth_gradient_(blocks, _LAM)
    smooth = [g.clone() for g in blocks.gradients]
    gradient = [(a - b) / s - m for a, b, s, m in zip(u, v, blocks_step, smooth, strict=True)]
    trial.set_gradients(gradient)
    zero, active = penalty.residuals(blocks, _LAM)
    if not max(zero, active) <= 20 * _TOLERANCE:
        return [f"residuals are {max(zero, active):.2g} at a solution, where they should be 0"]
    norms = blocks.norms()
    if not bool((norms[:_COLUMNS] > 0).any()):
        return []
    along = 0.5 * _LAM * trial.weights / norms.clamp(min=1e-30)
    off = [g + x * a for g, x, a in zip(gradient, u, blocks.expand(along), strict=True)]
    trial.set_gradients(off)
    _, active = penalty.residuals(blocks, _LAM)
    if not abs(active - 0.5) <= 0.05:
        return [f"residuals are {active:.2g} where a gradient is off by half the penalty, and should be 0.5"]
    return []


def _edge_violations(trial: _Trial, v: list[Tensor]) -> list[str]:
    """Check exact zeros, bounds, non-finite weights and ``zero_lambda``."""
    blocks, penalty = trial.blocks, trial.penalty
    penalty.prox_(blocks, torch.full((blocks.count,), 1e6))
    if bool((blocks.norms()[:_COLUMNS] != 0).any()):
        return ["prox_ leaves a group that is not exactly 0 however strong the penalty is"]
    trial.set_weights(v)
    penalty.prox_(blocks, torch.full((blocks.count,), 1e-3), torch.full((blocks.count,), 0.01))
    if bool((blocks.norms() > 0.01 * (1 + _TOLERANCE)).any()):
        return ["prox_ leaves a group outside its ball"]
    trial.set_weights(v)
    blocks.values[0][0, 1] = torch.nan
    factors = penalty.prox_(blocks, torch.full((blocks.count,), 1e-3))
    if not bool(factors[1].isnan()):
        return ["prox_ does not return NaN for a group that is not finite"]
    trial.set_weights(v)
    return _zero_lambda_violations(trial, v)


def _zero_lambda_violations(trial: _Trial, v: list[Tensor]) -> list[str]:
    """Check that the prox of minus a gradient at strength lambda is zero from ``zero_lambda`` on only."""
    blocks, penalty = trial.blocks, trial.penalty
    trial.set_weights([torch.zeros_like(x) for x in v])
    trial.set_gradients(v)
    least = penalty.zero_lambda(blocks).float()
    pulled = torch.arange(1, _COLUMNS)  # the first has no gradient
    of = trial.components[pulled]
    for factor, gone in ((1.01, True), (0.99, False)):
        trial.set_weights([-x for x in v])
        penalty.prox_(blocks, torch.where(least.isfinite(), factor * least, 0.0))
        left = torch.zeros(blocks.count).index_add_(0, of, blocks.norms()[pulled])[of]
        if not bool(((left == 0) == gone).all()):
            return ["zero_lambda is not the strength from which on prox_ gives zero"]
    trial.set_weights([torch.zeros_like(x) for x in v])
    top = float(least[pulled].max())
    above, below = (penalty.residuals(blocks, factor * top)[0] for factor in (1.01, 0.9))
    return [] if above <= _TOLERANCE < below else ["residuals of zero groups do not end at zero_lambda"]


def _smooth_violations(trial: _Trial) -> list[str]:
    """Check the gradient of the smooth part against finite differences."""
    blocks, penalty, w = trial.blocks, trial.penalty, trial.current_weights()
    trial.set_gradients([torch.zeros_like(x) for x in w])
    penalty.add_smooth_gradient_(blocks, _LAM)
    gradient = [g.clone() for g in blocks.gradients]
    for _ in range(4):
        way = [torch.randn(x.shape, generator=trial.draw) for x in w]
        ends = []
        for sign in (1.0, -1.0):
            trial.set_weights([x + sign * 1e-3 * d for x, d in zip(w, way, strict=True)])
            ends.append(penalty.smooth_value(blocks, _LAM))
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, way, strict=True))
        if not abs((ends[0] - ends[1]) / 2e-3 - slope) <= 0.02 * (1 + abs(slope)):
            return ["add_smooth_gradient_ is not the gradient of smooth_value"]
    trial.set_weights(w)
    return []
