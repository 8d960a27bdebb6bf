"""Compare an 8-bit graph with the certified one: the same nodes, quantisations between, rounded weights.

Both graphs are followed from their outputs. A quantisation of an activation is passed over; a product in
integers, as dynamic quantisation writes it, stands for the product that it rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto

from glprune.audit.findings import Found
from glprune.audit.onnx_reader import consumed, initializers, place, values_or_none

_STEP = 0.51  # half a step, plus round-off
_LEAST_STEPS = 60  # of the largest weight of a scale; the quantiser gives it 64 of the 64 steps of 7 bits
_BIAS_SCALE = 1e-3  # relative difference to the product of the scales of both factors
Values = NDArray[Any]


@dataclass(frozen=True)
class _Weight:
    """A stored weight with its scales, shaped to broadcast."""

    name: str
    values: Values
    scale: Values
    zero: Values


@dataclass(frozen=True)
class _Product:
    """A product of an activation with a weight in 8-bit integers."""

    activation: str
    weight: _Weight


def compare_graphs(graph: GraphProto, certified: GraphProto) -> Iterator[Found]:
    """Find the places where the 8-bit graph is more than the certified one with quantisations.

    Args:
        graph: The graph of the 8-bit file.
        certified: The graph of the certified file.
    """
    quantized, original = _Graph(graph), _Graph(certified)
    waiting = [(o.name, o.name) for o in certified.output]
    seen = set(waiting)
    while waiting:
        wanted, name = waiting.pop()
        found = _compare(quantized, original, wanted, name)
        if isinstance(found, str):
            yield quantized.place(name), found
            continue
        if isinstance(found, tuple):
            yield found
            continue
        waiting += [pair for pair in found if pair not in seen]
        seen.update(found)


class _Graph:
    """A graph by the names of its values."""

    def __init__(self, graph: GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.inputs = {i.name for i in graph.input}
        self.values = initializers(graph)
        for name, node in self.makers.items():
            tensors = [values_or_none(a.t) for a in node.attribute if a.name == "value"]
            if node.op_type == "Constant" and tensors and tensors[0] is not None:
                self.values[name] = tensors[0]

    def maker(self, name: str, op_type: str) -> NodeProto | None:
        """Return the node of this type that makes a value."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == op_type else None

    def place(self, name: str) -> str:
        """Name a value or the node that makes it."""
        weight = self.weight(name)
        if weight is not None or name not in self.makers:
            return f"weight {(weight.name if weight else name)[:60]!r}"
        return place(self.makers[name])

    def weight(self, name: str) -> _Weight | None:
        """Return the weight that a value is the dequantisation of."""
        node = self.maker(name, "DequantizeLinear")
        if node is None or node.input[0] not in self.values:
            return None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        return self._scaled(node.input[0], node.input[1], node.input[2] if len(node.input) > 2 else "", axis)

    def _scaled(self, name: str, scale: str, zero: str, axis: int) -> _Weight | None:
        values, factors, offsets = (self.values.get(key) for key in (name, scale, zero))
        if values is None or factors is None or offsets is None or values.dtype not in (np.int8, np.int32):
            return None
        shape = [1] * values.ndim
        if factors.size > 1 and values.ndim:
            shape[axis % values.ndim] = values.shape[axis % values.ndim]
        if not factors.size == offsets.size == math.prod(shape):
            return None
        return _Weight(name, values, factors.reshape(shape), offsets.reshape(shape))

    def activation(self, name: str) -> str:
        """Return the value before quantisations."""
        while (wide := self.maker(name, "DequantizeLinear")) is not None:
            narrow = self.maker(wide.input[0], "QuantizeLinear")
            if narrow is None or list(narrow.input[1:]) != list(wide.input[1:]) or not self._is_step(narrow):
                break
            name = narrow.input[0]
        return name

    def _is_step(self, node: NodeProto) -> bool:
        """Whether scale and zero point of an activation are constant numbers of unsigned 8 bits."""
        pair = [self.values.get(name) for name in node.input[1:]]
        if len(pair) != 2 or pair[0] is None or pair[1] is None:
            return False
        return pair[0].size == pair[1].size == 1 and bool(pair[0] > 0) and pair[1].dtype == np.uint8

    def scale_of(self, name: str) -> Values | None:
        """Return the scale of a quantised activation."""
        node = self.maker(name, "DequantizeLinear")
        return None if node is None else self.values.get(node.input[1])

    def product(self, name: str) -> _Product | None:
        """Return the product in integers that a value is, scaled back to floating point."""
        outer = self.maker(name, "Mul")
        cast = self.maker(outer.input[0], "Cast") if outer is not None else None
        scales = self.maker(outer.input[1], "Mul") if outer is not None else None
        integers = self.maker(cast.input[0], "MatMulInteger") if cast is not None else None
        if integers is None or scales is None or len(integers.input) != 4:
            return None
        source = self.maker(integers.input[0], "DynamicQuantizeLinear")
        if source is None or [integers.input[0], scales.input[0], integers.input[2]] != list(source.output):
            return None
        weight = self._scaled(integers.input[1], scales.input[1], integers.input[3], -1)
        return None if weight is None else _Product(source.input[0], weight)


Pairs = list[tuple[str, str]]


def _compare(quantized: _Graph, original: _Graph, wanted: str, name: str) -> Pairs | Found | str:
    """Compare one value; returns what is to be compared next, or the difference and perhaps its place."""
    name = quantized.activation(name)
    weight = quantized.weight(name)
    if weight is not None:
        return _rounding_error(weight, original.values.get(wanted)) or []
    if name in quantized.inputs or wanted in original.inputs:
        return [] if name == wanted else f"reads input {name[:60]!r} instead of {wanted[:60]!r}"
    if name in quantized.values or wanted in original.values:
        return (
            []
            if _equal(quantized.values.get(name), original.values.get(wanted))
            else "is not the certified one"
        )
    node, other = quantized.makers.get(name), original.makers.get(wanted)
    if node is None or other is None:
        return "is made by no node"
    product = quantized.product(name)
    if product is not None:
        return _compare_product(product, other, original, bias=None)
    if other.op_type == "Gemm" and node.op_type == "Add" and len(node.input) == 2:
        inner = quantized.product(node.input[0])
        if inner is not None:
            return _compare_product(inner, other, original, bias=node.input[1])
    return _compare_nodes(
        quantized, node, other, list(node.output).index(name), list(other.output).index(wanted)
    )


def _compare_product(
    product: _Product, other: NodeProto, original: _Graph, bias: str | None
) -> Pairs | Found | str:
    """Compare a product in integers with the certified product."""
    settings = {a.name: a.f or a.i for a in other.attribute}
    plain = settings.get("alpha", 1) == settings.get("beta", 1) == 1 and not settings.get("transA", 0)
    rest = list(other.input[2:])
    if other.op_type not in ("MatMul", "Gemm") or not plain or len(rest) != (bias is not None):
        return f"is a product in place of {place(other)}"
    wanted = original.values.get(other.input[1])
    if wanted is not None and settings.get("transB", 0):
        wanted = wanted.T
    error = _rounding_error(product.weight, wanted)
    pairs = [(other.input[0], product.activation), *((name, bias) for name in rest if bias is not None)]
    return (f"weight {product.weight.name[:60]!r}", error) if error else pairs


def _compare_nodes(quantized: _Graph, node: NodeProto, other: NodeProto, *results: int) -> Pairs | str:
    """Require the same operator, attributes and number of inputs."""
    if (node.op_type, results[0]) != (other.op_type, results[1]) or len(node.input) != len(other.input):
        return f"stands in place of {place(other)}"
    if _attributes(node) != _attributes(other):
        return f"has other attributes than {place(other)}"
    if len(node.input) == 3 and (bias := quantized.weight(node.input[2])) is not None:
        factors = [quantized.scale_of(name) for name in node.input[:2]]
        if any(f is None for f in factors) or not _is_product(
            bias.scale, [f for f in factors if f is not None]
        ):
            return "rounds its bias to another scale than that of its products"
    inside = consumed(other) - {*other.input}
    pairs = [(a, b) for a, b in zip(other.input, node.input, strict=True) if a or b]
    return [*pairs, *((name, name) for name in sorted(inside))]


def _is_product(scale: Values, factors: Sequence[Values]) -> bool:
    expected = np.ravel(factors[0]).astype(np.float64) * np.ravel(factors[1])
    return scale.size == expected.size and bool(
        np.allclose(np.ravel(scale), expected, rtol=_BIAS_SCALE, atol=0)
    )


def _attributes(node: NodeProto) -> list[bytes]:
    return sorted(a.SerializeToString(deterministic=True) for a in node.attribute)


def _equal(a: Values | None, b: Values | None) -> bool:
    return (
        a is not None
        and b is not None
        and a.dtype == b.dtype
        and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    )


def _rounding_error(weight: _Weight, wanted: Values | None) -> str | None:
    """Say why a weight is not the certified one rounded to its scale; None where it is."""
    if wanted is None or wanted.shape != weight.values.shape:
        return "matches no weight of the certified file"
    scale = weight.scale.astype(np.float64)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return "has scales that are not above 0"
    steps = wanted.astype(np.float64) / scale
    gap = np.abs(weight.values.astype(np.float64) - weight.zero.astype(np.float64) - steps)
    worst = float(gap.max(initial=0.0))
    if not worst <= _STEP:
        return f"differs from the certified one by {worst:.3g} steps of its scale"
    others = tuple(n for n in range(steps.ndim) if scale.shape[n] == 1)
    largest = np.abs(steps).max(axis=others, initial=0.0)
    if weight.values.dtype == np.int8 and ((largest < _LEAST_STEPS) & (largest > 0)).any():
        return (
            f"is rounded to {float(largest.min()):.2g} steps; the quantiser gives it {_LEAST_STEPS} or more"
        )
    return None
