"""The 8-bit file beside the certified one: that it is the same interface, and what of it is in integers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, numpy_helper

from glprune.audit.findings import Finding
from glprune.audit.onnx_reader import held_wrongly, properties
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.schema.report import Quantized

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_INTEGER = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
_ROUNDED, _TURNED = "_quantized", "_Transposed"  # what the quantiser appends to a name
_STEP = 0.51  # half a step, and round-off
PROPERTY = "glprune.quantized"
Values = NDArray[Any]


def products(model: ModelProto) -> tuple[int, int]:
    """How many products (matrices, convolutions) a file computes of 8-bit integers, and how many it has."""
    widened = {name for n in model.graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    found = [n for n in model.graph.node if n.op_type in _PRODUCTS | _INTEGER]
    return sum(_in_integers(n, widened) for n in found), len(found)


def _in_integers(node: NodeProto, widened: set[str]) -> bool:
    """Whether both factors are 8-bit; a runtime fuses a product between (de)quantisations."""
    return node.op_type in _INTEGER or widened.issuperset(node.input[:2])


def check_int8(quantized: Quantized, model: ModelProto, certified: ModelProto) -> list[Finding]:
    """Hold the 8-bit file against the report, and its interface and weights against the certified file."""
    found = itertools.chain(_faults(quantized, model, certified), _weights(model, certified))
    return [Finding(bundles.INT8, where, what) for where, what in found]


def _faults(quantized: Quantized, model: ModelProto, certified: ModelProto) -> Iterator[tuple[str, str]]:
    for side in ("input", "output"):
        if _bytes(getattr(model.graph, side)) != _bytes(getattr(certified.graph, side)):
            yield f"{side}s", f"are not those of {bundles.ONNX}"
    expected = properties(certified) | {PROPERTY: f"int8, {quantized.method}"}
    if properties(model) != expected:
        yield "metadata_props", f"are not those of {bundles.ONNX} and how it was quantised"
    found = products(model)
    if found != (quantized.products, quantized.products_of):
        yield (
            "",
            f"computes {found[0]} of {found[1]} products in integers; the report says "
            f"{quantized.products} of {quantized.products_of}",
        )


def _bytes(values: Iterable[ValueInfoProto]) -> list[bytes]:
    return [v.SerializeToString(deterministic=True) for v in values]


def _weights(model: ModelProto, certified: ModelProto) -> Iterator[tuple[str, str]]:
    """Weights are the certified ones, rounded to their scale; the rest is the same bit for bit."""
    original, own = _held(certified), _held(model)
    axes = {
        node.input[0]: next((a.i for a in node.attribute if a.name == "axis"), 1)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    for name, values in own.items():
        place, base = f"weight {name[:60]!r}", name.removesuffix(_ROUNDED)
        if base != name:
            wanted = original.get(base, _transposed(original.get(base.removesuffix(_TURNED))))
            fault = _rounding_fault(values, wanted, _steps(own, base, values.ndim, axes.get(name, 0)))
            if fault is not None:
                yield place, fault
        elif name in original and not np.array_equal(values, original[name], equal_nan=True):
            yield place, f"is not the one of {bundles.ONNX}"
        elif values.dtype == np.int8 and values.ndim and not name.endswith("_zero_point"):
            yield place, f"is of no weight of {bundles.ONNX}"


def _held(model: ModelProto) -> dict[str, Values]:
    """Name -> value of the initializers that the file itself holds."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if held_wrongly(t) is None}


def _transposed(values: Values | None) -> Values | None:
    return None if values is None else values.T


def _steps(own: Mapping[str, Values], base: str, rank: int, axis: int) -> tuple[Values, Values] | None:
    """Scale and zero point of a weight, as they broadcast against it."""
    pair = []
    for suffix in ("_scale", "_zero_point"):
        values = own.get(base + suffix, own.get(f"{base}{_ROUNDED}{suffix}"))
        if values is None:
            return None
        shape = [1] * rank
        if values.size > 1:
            shape[axis % rank] = values.size
        pair.append(values.reshape(shape if rank else ()).astype(np.float64))
    return pair[0], pair[1]


def _rounding_fault(values: Values, wanted: Values | None, steps: tuple[Values, Values] | None) -> str | None:
    if wanted is None or steps is None or wanted.shape != values.shape:
        return f"is of no weight of {bundles.ONNX}"
    scale, zero = steps
    try:
        gap = np.abs((values.astype(np.float64) - zero) * scale - wanted) / np.abs(scale)
    except ValueError:  # a scale of another length
        return "has scales that do not fit it"
    worst = float(gap.max(initial=0.0))
    return None if worst <= _STEP else f"is off the one of {bundles.ONNX} by {worst:.3g} steps of its scale"
