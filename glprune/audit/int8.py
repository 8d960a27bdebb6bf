"""The 8-bit file beside the certified one: that it is the same interface, and what of it is in integers."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, NodeProto

from glprune import bundle as bundles
from glprune.audit.findings import Finding
from glprune.audit.onnxfile import properties
from glprune.report import Quantized

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_INTEGER = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
PROPERTY = "glprune.quantized"


def products(model: ModelProto) -> tuple[int, int]:
    """How many products (matrices, convolutions) a file computes of 8-bit integers, and how many it has."""
    widened = {name for n in model.graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    found = [n for n in model.graph.node if n.op_type in _PRODUCTS | _INTEGER]
    return sum(_in_integers(n, widened) for n in found), len(found)


def _in_integers(node: NodeProto, widened: set[str]) -> bool:
    """Whether both factors are 8-bit; a runtime fuses a product between (de)quantisations."""
    return node.op_type in _INTEGER or widened.issuperset(node.input[:2])


def check_int8(quantized: Quantized, model: ModelProto, certified: ModelProto) -> list[Finding]:
    """Hold the 8-bit file against the report and the interface of the certified file."""
    return [Finding(bundles.INT8, where, what) for where, what in _faults(quantized, model, certified)]


def _faults(quantized: Quantized, model: ModelProto, certified: ModelProto) -> Iterator[tuple[str, str]]:
    for side in ("input", "output"):
        ours, theirs = (getattr(m.graph, side) for m in (model, certified))
        if [v.SerializeToString(deterministic=True) for v in ours] != [
            v.SerializeToString(deterministic=True) for v in theirs
        ]:
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
