"""Find the weights that a forward divides by their own norm, as weight normalisation does.

The size of such a weight has no effect on the network: a penalty would shrink it for nothing, and at zero
the division is 0/0.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glprune.pruning.labels import tensors_in
from glprune.pruning.tracer import is_reduction

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

_CONTRACTIONS = frozenset(["mv", "dot", "vdot", "mm", "bmm", "addmv", "addmm", "baddbmm"])
_NORMALISATIONS = frozenset(
    [
        "_weight_norm_interface",
        "_weight_norm",
        "native_layer_norm",
        "native_group_norm",
        "native_batch_norm",
        "_fused_rms_norm",
    ]
)


def self_divided_weights(network: nn.Module, inputs: Inputs) -> frozenset[str]:
    """Return the names of the parameters that a forward divides by a norm, sum or deviation of their own.

    Args:
        network: The network, in evaluation mode.
        inputs: Example inputs.
    """
    mode = _Divisions(network, inputs)
    with torch.no_grad(), mode:
        network(*inputs)
    return frozenset(mode.found)


@dataclass(frozen=True)
class _Origin:
    """What a tensor was computed from.

    Attributes:
        weights: Names of parameters.
        reduced: Those of which it holds a reduction; empty where data are involved.
        data: Whether an input is involved.
    """

    weights: frozenset[str] = frozenset()
    reduced: frozenset[str] = frozenset()
    data: bool = False

    def __or__(self, other: _Origin) -> _Origin:
        data = self.data or other.data
        reduced = frozenset() if data else self.reduced | other.reduced
        return _Origin(self.weights | other.weights, reduced, data)


class _Divisions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's __init_subclass__
    """Follow parameters and data through a run and note divisions of weights by a reduction of them."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()
        self._origins: dict[int, tuple[Tensor, _Origin]] = {
            id(x): (x, _Origin(data=True)) for x in inputs
        } | {id(p): (p, _Origin(frozenset([name]))) for name, p in network.named_parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        origin = self._origin((args, kwargs))
        self._note_division(name, args)
        if not origin.data and (is_reduction(name) or name in _CONTRACTIONS):
            origin = replace(origin, reduced=origin.weights)
        for y in tensors_in(out):
            self._origins[id(y)] = (y, origin)
        return out

    def _note_division(self, name: str, args: Sequence[Any]) -> None:
        first = self._origin(args[:1])
        if name in _NORMALISATIONS and not first.data:
            self.found |= first.weights
        elif name in ("div", "true_divide"):
            self.found |= self._origin(args[1:2]).reduced & first.weights
        elif name in ("reciprocal", "rsqrt") or (name == "pow" and _is_negative(args[1:2])):
            self.found |= first.reduced

    def _origin(self, arguments: Any) -> _Origin:
        """Return what the tensors among some arguments were computed from, together."""
        known = (self._origins.get(id(t)) for t in tensors_in(arguments))
        return functools.reduce(operator.or_, (k[1] for k in known if k is not None), _Origin())


def _is_negative(exponents: Sequence[Any]) -> bool:
    return any(isinstance(e, int | float) and e < 0 for e in exponents)
