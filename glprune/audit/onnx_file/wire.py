"""Count the records of an ONNX file in its bytes, before a parser makes objects of them.

A record of two bytes becomes an object of a hundred, and checkers walk nested graphs again at every level, so
that a small file could take gigabytes and hours. The limits are far above the sizes of trained networks.

References:
    Protocol Buffers, "Encoding", on tags, varints and length-delimited records.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor
from onnx import ModelProto

MAX_FIELDS, MAX_RECORDS = 2_000_000, 300_000
MAX_DEPTH = 8
"""Graphs within graphs; a loop in a branch is two."""
_DELIMITED, _GROUPS = 2, (3, 4)
_FIXED = {1: 8, 5: 4}
_GRAPH = "onnx.GraphProto"
_VARINT_BYTES = 10


class TooLargeError(ValueError):
    """The bytes hold more, or deeper, records than any honest model."""


def check_records(raw: bytes) -> None:
    """Refuse a file with too many fields or graphs nested too deeply; other faults are the parser's.

    Raises:
        TooLargeError: It is such a file.
    """
    waiting: list[tuple[int, int, Descriptor, int]] = [(0, len(raw), ModelProto.DESCRIPTOR, 0)]
    total = records = 0
    while waiting:
        start, end, record, depth = waiting.pop()
        depth += record.full_name == _GRAPH
        if depth > MAX_DEPTH:
            raise TooLargeError(f"graphs are nested deeper than {MAX_DEPTH} levels")
        while start < end:
            total += 1
            if total > MAX_FIELDS:
                raise TooLargeError(f"holds more than {MAX_FIELDS:,} fields")
            key, start = _varint(raw, start)
            start, inner = _skip(raw, start, key & 7)
            field = record.fields_by_number.get(key >> 3)
            kind = field.message_type if field is not None and inner is not None else None
            if kind is None or inner is None:
                continue
            records += 1
            if records > MAX_RECORDS:
                raise TooLargeError(f"holds more than {MAX_RECORDS:,} nodes, attributes and other records")
            waiting.append((inner, min(start, end), kind, depth))


def _skip(raw: bytes, start: int, wire_type: int) -> tuple[int, int | None]:
    """Return the position after a value, and where it starts if it is length-delimited."""
    if wire_type == _DELIMITED:
        size, start = _varint(raw, start)
        return start + size, start
    if wire_type in _FIXED:
        return start + _FIXED[wire_type], None
    if wire_type in _GROUPS:
        return start, None
    return _varint(raw, start)[1], None


def _varint(raw: bytes, start: int) -> tuple[int, int]:
    """Read a number; the parser refuses one that is cut off or too long."""
    value = shift = 0
    for position in range(start, min(start + _VARINT_BYTES, len(raw))):
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    return value, len(raw)
