"""Compare the 8-bit file with the certified one: interface, weights, and products in integers.

Kernels for processors with AVX2 and without VNNI multiply unsigned activations with signed weights and add
the products in pairs in 16 bits, with saturation. A file is safe if no two weights of one output exceed them.

References:
    Intel (2018), "Lower Numerical Precision Deep Learning Inference and Training", on VPMADDUBSW.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto

from glprune.audit.findings import Finding
from glprune.audit.onnx_file.quantized import compare_graphs
from glprune.audit.onnx_reader import initializers, properties
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.schema.report import Quantized

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_INTEGER = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
PROPERTY = "glprune.quantized"
PAIR_LIMIT = 2**15 - 1
"""The largest sum of two products that a register of 16 bits holds."""
_ACTIVATION, _SIGNED = 255, 128  # largest 8-bit numbers, unsigned and signed
Values = NDArray[Any]


def products(model: ModelProto) -> tuple[int, int]:
    """Count the products (matrices, convolutions) computed with 8-bit integers, and all products."""
    widened = {name for n in model.graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    found = [n for n in model.graph.node if n.op_type in _PRODUCTS | _INTEGER]
    return sum(_in_integers(n, widened) for n in found), len(found)


def _in_integers(node: NodeProto, widened: set[str]) -> bool:
    """Whether both factors are 8-bit; a runtime fuses products between (de)quantisations."""
    return node.op_type in _INTEGER or widened.issuperset(node.input[:2])


def largest_pair(model: ModelProto) -> int:
    """Return the largest sum of two 8-bit products of one output, for the worst activations.

    A kernel may pair any two weights of an output, so that the bound is 255 times the sum of the two largest
    weights of one sign. Unsigned weights are added in 32 bits and count as 0.
    """
    stored, makers = initializers(model.graph), {name: n for n in model.graph.node for name in n.output}
    widened = {name for name, n in makers.items() if n.op_type == "DequantizeLinear"}
    factors = (
        _factor(node, stored, makers)
        for node in model.graph.node
        if node.op_type in _PRODUCTS | _INTEGER and _in_integers(node, widened)
    )
    return max((_ACTIVATION * _largest_sum(rows) for rows in factors), default=0)


def _factor(node: NodeProto, stored: Mapping[str, Values], makers: Mapping[str, NodeProto]) -> Values:
    """Return the second factor of a product, shape (outputs, weights); the worst one for activations."""
    name = node.input[3 if node.op_type.startswith("QLinear") else 1]
    maker = makers.get(name)
    if maker is not None and maker.op_type == "DequantizeLinear":
        name = maker.input[0]
        maker = makers.get(name)
    values = stored.get(name)
    if values is None:
        zero = stored.get(maker.input[2]) if maker is not None and len(maker.input) > 2 else None
        signed = zero is not None and zero.dtype == np.int8
        return np.full((1, 2), -_SIGNED if signed else 0)
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    axis = 0 if "Conv" in node.op_type or transposed else values.ndim - 1
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _largest_sum(rows: Values) -> int:
    """Return the largest absolute sum of two numbers of one sign in a row."""
    if rows.dtype == np.uint8:
        return 0
    widths = np.sort(rows.astype(np.int64), axis=1)
    top, bottom = widths[:, -2:].clip(min=0).sum(axis=1), widths[:, :2].clip(max=0).sum(axis=1)
    return int(max(top.max(initial=0), -bottom.min(initial=0)))


def check_int8(quantized: Quantized, model: ModelProto, certified: ModelProto) -> list[Finding]:
    """Compare the 8-bit file with the report, its interface, nodes and weights with the certified file."""
    found = itertools.chain(
        _interface(quantized, model, certified),
        compare_graphs(model.graph, certified.graph),
        _saturation(quantized, model),
    )
    return [Finding(bundles.INT8, where, what) for where, what in found]


def _interface(quantized: Quantized, model: ModelProto, certified: ModelProto) -> Iterator[tuple[str, str]]:
    for side in ("input", "output"):
        if _bytes(getattr(model.graph, side)) != _bytes(getattr(certified.graph, side)):
            yield f"{side}s", f"are not those of {bundles.ONNX}"
    expected = properties(certified) | {PROPERTY: f"int8, {quantized.method}"}
    if properties(model) != expected:
        yield "metadata_props", f"are not those of {bundles.ONNX} plus the method of quantisation"
    found = products(model)
    if found != (quantized.products, quantized.products_of):
        yield (
            "",
            f"computes {found[0]} of {found[1]} products in integers; the report says "
            f"{quantized.products} of {quantized.products_of}",
        )


def _saturation(quantized: Quantized, model: ModelProto) -> Iterator[tuple[str, str]]:
    """Require weights whose products no kernel saturates, as the report says."""
    found = largest_pair(model)
    if quantized.largest_pair is not None and quantized.largest_pair != found:
        yield "", f"two products of one output reach {found:,}; the report says {quantized.largest_pair:,}"
    if found > PAIR_LIMIT:
        yield (
            "",
            f"two products of one output reach {found:,}, above the {PAIR_LIMIT:,} of 16 bits: on processors "
            "with AVX2 and without VNNI the file answers otherwise",
        )


def _bytes(values: Iterable[ValueInfoProto]) -> list[bytes]:
    return [v.SerializeToString(deterministic=True) for v in values]
