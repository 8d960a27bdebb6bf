"""Read an ONNX file without trusting it, and what its bytes may and may not hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

_DTYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.BOOL: "bool"}
_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"
}  # fmt: skip
_VALUES = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


class NotOnnxError(ValueError):
    """The bytes are no ONNX model."""


def parse(raw: bytes) -> ModelProto:
    """Parse an ONNX file.

    Raises:
        NotOnnxError: The bytes are no ONNX model.
    """
    model = ModelProto()
    try:
        model.ParseFromString(raw)
    except (DecodeError, RecursionError, ValueError) as error:
        raise NotOnnxError(f"not an ONNX model ({str(error)[:80]})") from None
    return model


def canonical(model: ModelProto, raw: bytes) -> bool:
    """Whether the bytes are the one way to write this model: nothing appended, merged, hidden or unknown."""
    known = ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    return known.SerializeToString(deterministic=True) == raw


def input_shapes(model: ModelProto) -> dict[str, list[int | str]]:
    """Input -> its sizes; a name stands for any length."""
    return {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """The type of an input's or output's values, as NumPy names it; a number where it is another."""
    element = value.type.tensor_type.elem_type
    return _DTYPES.get(element, f"type {element}")


def properties(model: ModelProto) -> dict[str, str]:
    """The file's metadata; the last of a key that is there twice."""
    return {p.key: p.value for p in model.metadata_props}


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs a node holds, such as the branches of If."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph and every graph within, outermost first."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for node in graph.node for inner in subgraphs(node)]


def tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor in the file with the place it is at."""
    for graph in all_graphs(model):
        for tensor in graph.initializer:
            yield f"initializer {tensor.name!r}", tensor
        for node in graph.node:
            for attribute in node.attribute:
                place = f"node {node.name!r} ({node.op_type}) attribute {attribute.name!r}"
                if attribute.HasField("t"):
                    yield place, attribute.t
                for tensor in attribute.tensors:
                    yield place, tensor


def held_wrongly(tensor: TensorProto) -> str | None:
    """Why a tensor's values may not be read as they stand; None where they may."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        return "its values lie outside the file"
    if sum([tensor.HasField("raw_data"), *(len(getattr(tensor, name)) > 0 for name in _VALUES)]) > 1:
        return "it has values twice"
    if tensor.HasField("segment"):
        return "it is a segment of a tensor"
    return None


def random_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes whose output is not a function of their inputs."""
    return (node for node in graph.node if node.op_type in _RANDOM)


def constants(graph: GraphProto) -> dict[str, NDArray[np.generic]]:
    """Name -> value of whole-number initializers and Constant nodes, such as the indices of a Gather."""
    found = {
        t.name: numpy_helper.to_array(t)
        for t in graph.initializer
        if t.data_type in (TensorProto.INT64, TensorProto.INT32) and held_wrongly(t) is None
    }
    for node in graph.node:
        if node.op_type != "Constant" or len(node.output) != 1 or len(node.attribute) != 1:
            continue
        attribute = node.attribute[0]
        if attribute.name == "value" and held_wrongly(attribute.t) is None:
            found[node.output[0]] = numpy_helper.to_array(attribute.t)
        elif attribute.name == "value_ints":
            found[node.output[0]] = np.asarray(attribute.ints, dtype=np.int64)
    return found
