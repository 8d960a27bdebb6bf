"""Allow in an ONNX file only the fields that the exporters write, so that nothing else can hide in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from glprune.audit.findings import Found
from glprune.schema.strict_json import StrictError, read_json

MAX_TEXT = 256
"""Characters of a name, or of an attribute that is text."""
_FIELDS = {
    "ModelProto": {
        "ir_version", "opset_import", "producer_name", "producer_version", "graph", "metadata_props"
    },
    "OperatorSetIdProto": {"domain", "version"},
    "StringStringEntryProto": {"key", "value"},
    "GraphProto": {"name", "node", "initializer", "input", "output"},
    "NodeProto": {"name", "op_type", "domain", "input", "output", "attribute"},
    "AttributeProto": {"name", "type", "f", "i", "s", "t", "g", "floats", "ints", "strings"},
    "TensorProto": {
        "name", "dims", "data_type", "raw_data",
        "float_data", "int32_data", "int64_data", "double_data", "uint64_data"
    },
    "ValueInfoProto": {"name", "type"},
    "TypeProto": {"tensor_type", "sequence_type", "optional_type"},
    "Tensor": {"elem_type", "shape"},
    "Sequence": {"elem_type"},
    "Optional": {"elem_type"},
    "TensorShapeProto": {"dim"},
    "Dimension": {"dim_value", "dim_param"},
}  # fmt: skip
_VALUE_OF_TYPE = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}
_VALUES = frozenset(_VALUE_OF_TYPE.values())
_REASONS = {
    "functions": "functions are not allowed: they hide what nodes compute",
    "sparse_initializer": "sparse tensors are not allowed",
    "ref_attr_name": "takes an attribute from a function",
    "string_data": "tensors of text are not allowed",
}
_JSON = ("glprune.inputs", "glprune.classes")
METADATA = {
    *_JSON,
    "glprune.version",
    "glprune.task",
    "glprune.signature",
    "glprune.output",
    "glprune.quantized",
}


def check_contents(model: ModelProto) -> Iterator[Found]:
    """Find fields that no exporter of glprune fills, long texts, and foreign metadata."""
    yield from _metadata(model)
    waiting: list[tuple[str, Message]] = [("", model)]
    while waiting:
        place, message = waiting.pop()
        for field, value in message.ListFields():
            where = f"{place}/{field.name}"
            if not value and field.message_type is None:
                continue  # set, and empty
            if field.name not in _FIELDS.get(message.DESCRIPTOR.name, ()):
                yield where, _REASONS.get(field.name, "is not empty, and no exporter of glprune fills it")
            elif field.message_type is None:
                yield from _texts(where, value) if field.name != "raw_data" else ()
            elif field.name != "metadata_props":
                inner = [value] if isinstance(value, Message) else value
                waiting += [(f"{where}/{n}", m) for n, m in enumerate(inner)]
        yield from _values(place, message)


def _texts(where: str, value: Any) -> Iterator[Found]:
    """Require short, printable texts."""
    if isinstance(value, int | float):
        return
    for text in [value] if isinstance(value, str | bytes) else value:
        if isinstance(text, int | float):
            return
        shown = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
        if len(shown) > MAX_TEXT or not shown.isprintable():
            what = f"is a text of {len(shown):,} characters; {MAX_TEXT} at most, all printable, are allowed"
            yield where, what


def _values(place: str, message: Message) -> Iterator[Found]:
    """Require attributes that hold the value of their type alone, and no text in place of numbers."""
    if isinstance(message, AttributeProto):
        held = {f.name for f, value in message.ListFields() if value and f.name in _VALUES}
        if message.type not in _VALUE_OF_TYPE or held - {_VALUE_OF_TYPE[message.type]}:
            yield place, f"attribute {message.name[:60]!r} holds {sorted(held)}, not only what its type says"
    elif isinstance(message, TensorProto) and message.data_type == TensorProto.STRING:
        yield place, _REASONS["string_data"]
    elif (
        isinstance(message, NodeProto)
        and message.op_type == "Constant"
        and any(a.type in (AttributeProto.STRING, AttributeProto.STRINGS) for a in message.attribute)
    ):
        yield place, "is a constant text"


def _metadata(model: ModelProto) -> Iterator[Found]:
    """Require metadata by glprune, each key once, in one way to write them; C7 compares what they say."""
    keys = Counter(p.key for p in model.metadata_props)
    for key, count in keys.items():
        if count > 1 or key not in METADATA:
            reason = "appears twice" if count > 1 else "is not written by glprune"
            yield "metadata_props", f"key {key[:60]!r} {reason}"
    for entry in model.metadata_props:
        if entry.key in _JSON and not _is_compact(entry.value):
            yield "metadata_props", f"{entry.key!r} is not JSON without spaces"


def _is_compact(text: str) -> bool:
    try:
        value = read_json(text.encode())
    except StrictError:
        return False
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) == text
