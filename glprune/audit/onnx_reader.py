"""Read an ONNX file without trusting it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from glprune.audit.onnx_file.wire import TooLargeError, check_records

_DTYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64", TensorProto.BOOL: "bool"}
_RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"
}  # fmt: skip
READS_ONLY_SIZES = ("Shape", "Size")
_KNOWN = helper.get_all_tensor_dtypes()
_VALUES = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


class NotOnnxError(ValueError):
    """The bytes are not an ONNX model."""


def parse(raw: bytes) -> ModelProto:
    """Parse an ONNX file.

    Raises:
        NotOnnxError: The bytes are not an ONNX model.
    """
    model = ModelProto()
    try:
        check_records(raw)
        model.ParseFromString(raw)
    except TooLargeError as error:
        raise NotOnnxError(str(error)) from None
    except (DecodeError, RecursionError, ValueError) as error:
        raise NotOnnxError(f"not an ONNX model ({str(error)[:80]})") from None
    return model


def canonical(model: ModelProto, raw: bytes) -> bool:
    """Whether the bytes are the canonical form of the model: nothing appended, merged, hidden or unknown."""
    known = ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    written: bytes = known.SerializeToString(deterministic=True)
    return written == raw


def input_shapes(model: ModelProto) -> dict[str, list[int | str]]:
    """Map each input to its sizes; a name is a dynamic size."""
    return {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """Return the data type of an input or output, as NumPy names it; a number for other types."""
    element = value.type.tensor_type.elem_type
    return _DTYPES.get(element, f"type {element}")


def properties(model: ModelProto) -> dict[str, str]:
    """Return the metadata of the file; the last value of a duplicate key."""
    return {p.key: p.value for p in model.metadata_props}


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Return the subgraphs of a node, such as the branches of If."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """Return the main graph and all subgraphs, outermost first."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for node in graph.node for inner in subgraphs(node)]


def tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Return every tensor in the file with its place."""
    for graph in all_graphs(model):
        for tensor in graph.initializer:
            yield f"initializer {tensor.name!r}", tensor
        for node in graph.node:
            for attribute in node.attribute:
                where = f"{place(node)} attribute {attribute.name[:60]!r}"
                if attribute.HasField("t"):
                    yield where, attribute.t
                for tensor in attribute.tensors:
                    yield where, tensor


class StorageError(ValueError):
    """The values of a tensor cannot be trusted as stored."""


def read_values(tensor: TensorProto) -> NDArray[Any]:
    """Return the values of a tensor.

    Raises:
        StorageError: They are not stored once, in this file, in the data type and the shape of the tensor.
    """
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise StorageError("its values are outside the file")
    if sum([tensor.HasField("raw_data"), *(len(getattr(tensor, name)) > 0 for name in _VALUES)]) > 1:
        raise StorageError("it has values twice")
    if tensor.HasField("segment"):
        raise StorageError("it is a segment of a tensor")
    if tensor.data_type not in _KNOWN:
        raise StorageError(f"its data type, number {tensor.data_type}, is undefined or unknown")
    try:
        values: NDArray[Any] = numpy_helper.to_array(tensor)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.shape != tuple(tensor.dims):
        raise StorageError("its values do not fit its data type and shape")
    return values


def values_or_none(tensor: TensorProto) -> NDArray[Any] | None:
    """Return the values of a tensor; None where they cannot be trusted as stored, which C6 says."""
    try:
        return read_values(tensor)
    except StorageError:
        return None


def initializers(graph: GraphProto) -> dict[str, NDArray[Any]]:
    """Map names to values of the initializers that can be trusted as stored."""
    read = ((tensor.name, values_or_none(tensor)) for tensor in graph.initializer)
    return {name: values for name, values in read if values is not None}


def random_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Return nodes whose output does not follow from their inputs alone, or that are in training mode."""
    return (node for node in graph.node if node.op_type in _RANDOM or _trains(node))


def _trains(node: NodeProto) -> bool:
    """Whether an operator with a training mode may be in it."""
    modes = {a.name: a.i for a in node.attribute}
    if modes.get("training_mode", 0) or not modes.get("is_test", 1):
        return True
    if node.op_type == "Dropout":
        return any(node.input[2:])  # the mode is an input
    return node.op_type == "BatchNormalization" and any(node.output[1:])


def consumed(node: NodeProto) -> set[str]:
    """Return what a node can read: its inputs, and the names its subgraphs take from enclosing graphs."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        local = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        local |= {name for inner in graph.node for name in inner.output}
        names |= ({o.name for o in graph.output} | set().union(*map(consumed, graph.node))) - local
    return names


def place(node: NodeProto) -> str:
    """Name a node in a finding."""
    return f"node {node.name[:60]!r} ({node.op_type[:40]})"


def constants(graph: GraphProto) -> dict[str, NDArray[Any]]:
    """Map names to values of integer initializers and Constant nodes, such as the indices of a Gather."""
    found = {n: x for n, x in initializers(graph).items() if x.dtype in (np.int64, np.int32)}
    for node in graph.node:
        if node.op_type != "Constant" or len(node.output) != 1 or len(node.attribute) != 1:
            continue
        attribute = node.attribute[0]
        if attribute.name == "value" and (values := values_or_none(attribute.t)) is not None:
            found[node.output[0]] = values
        elif attribute.name == "value_ints":
            found[node.output[0]] = np.asarray(attribute.ints, dtype=np.int64)
    return found
