"""Count the multiply-accumulates of an ONNX file for one row, from the shapes of its tensors in a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto

from glprune.audit.onnx_reader import subgraphs

Sizes = Mapping[str, Sequence[int]]
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3}  # where the second factor is not input 1


def measured_macs(model: ModelProto, rows: Mapping[str, NDArray[Any]]) -> int | None:
    """Run a model on one row and count its multiply-accumulates.

    Args:
        model: The model.
        rows: Its inputs, of which the first row is used.

    Returns:
        The count; None where it is unknown, as for products in a loop, or where the model does not run.
    """
    if not _is_countable(model):
        return None
    content, names = _with_sizes(model)
    feed = {name: x[:1] for name, x in rows.items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found = dict(zip(names, session.run(names, feed), strict=True)) if names else {}
    except Exception:  # noqa: BLE001 - the runtime raises several kinds of its own
        return None
    return _macs(model, {name: x.shape for name, x in (feed | found).items()})


def _is_countable(model: ModelProto) -> bool:
    """Whether all products are in the main graph: those of a loop or a branch depend on the data."""
    nodes = (node for node in model.graph.node)
    inner = (graph for node in nodes for graph in subgraphs(node))
    return not any(_has_products(graph) for graph in inner)


def _has_products(graph: GraphProto) -> bool:
    return any(node.op_type in _COUNTS or any(map(_has_products, subgraphs(node))) for node in graph.node)


def _with_sizes(model: ModelProto) -> tuple[bytes, list[str]]:
    """Return the model with the tensors that its products read and write as outputs, and their names.

    Args:
        model: The model; it is not changed.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    given = {value.name for value in model.graph.input}
    wanted: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type in _COUNTS:
            wanted |= dict.fromkeys(name for name in (*node.input, *node.output[:1]) if name)
    names = [name for name in wanted if name not in stored | given]
    extended = ModelProto()
    extended.CopyFrom(model)
    shown = {value.name for value in model.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in shown)
    return extended.SerializeToString(), names


def _macs(model: ModelProto, sizes: Sizes) -> int:
    """Count the multiply-accumulates: matrix products, convolutions and recurrent layers.

    Args:
        model: The model.
        sizes: Name of a tensor -> its shape for one row.
    """
    known = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer} | dict(sizes)
    return sum(_COUNTS[node.op_type](node, known) for node in model.graph.node if node.op_type in _COUNTS)


def _matrix_product(node: NodeProto, sizes: Sizes) -> int:
    """Each number of the output is a sum over the last axis of the first factor."""
    left = sizes[node.input[0]]
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(sizes[node.output[0]]) * (left[0] if transposed else left[-1])


def _convolution(node: NodeProto, sizes: Sizes) -> int:
    """Each number of the output, or of the input of a transposed one, meets a kernel of its group."""
    weight = sizes[node.input[_WEIGHT.get(node.op_type, 1)]]
    numbers = sizes[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]]
    return math.prod(numbers) * math.prod(weight[1:])


def _recurrent(node: NodeProto, sizes: Sizes) -> int:
    """Each step multiplies the input and the state by the weights of every gate, in every direction."""
    steps = math.prod(sizes[node.input[0]][:2])
    return steps * sum(math.prod(sizes[name]) for name in node.input[1:3])


def _einsum(node: NodeProto, sizes: Sizes) -> int:
    """A product over all letters of the equation; letters may stand for axes of any of the factors."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) < 2 or "." in equation:
        return 0
    letters: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        letters |= dict(zip(term, sizes[name], strict=True))
    return math.prod(letters.values())


_COUNTS: dict[str, Callable[[NodeProto, Sizes], int]] = {
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"), _matrix_product),
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"), _convolution),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "Einsum": _einsum,
}
