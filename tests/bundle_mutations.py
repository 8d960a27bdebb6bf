"""Change one file of a bundle at random, each format in its own way; ``choose(n)`` answers 0..n-1.

A change may be followed, as a dishonest producer would do it: digests, sizes, page, summary and manifest are written
anew.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from glprune.schema import bundle as bundles
from glprune.schema.strict_json import StrictError, read_json
from glprune.schema.strict_yaml import parse
from tests.bundle_fixtures import Copy, follow, write_list
from tests.mutations import ODD, Choose, altered, garbled

_ODD_NUMBERS = (
    0, 1, -1, 2, 7, 8, 127, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63)
)  # fmt: skip
_NAMES = (
    "", "x", "../x", "\0", "ai.onnx.ml", "com.microsoft", "If", "Loop", "Add", "Identity", "RandomNormal",
    "a" * 5000,
)  # fmt: skip
_MARKUP = (
    "<script>x</script>", "<!-- x -->", "<!--", "<![CDATA[x]]>", "<?x?>", "<style>x{}</style>", "<svg>",
    "</svg>", "<svg><svg>", "<img src=x>", "<p onclick=x>", "<p hidden>", '<a href="javascript:x">', "&#0;",
    "&#xD800;", "&x;", "</table>", "<table>", "</p", "<p ", "<use href='#a'/>", "<text>9</text>",
    "<a" + " b=1" * 300 + ">", "<b>" * 3000, "\ufeff", "\u202e", "<foreignObject>", "<textarea>", "<title>",
    "<plaintext>", "<base href=x>", "<p style=x>",
)  # fmt: skip
_ADDED = (
    "x", "frontier/2.safetensors", "frontier.json", "proxy.json", "model.int8.onnx", "original.onnx",
    "signatures/manifest.tsr", "signatures/x.dsse.json",
)  # fmt: skip
_NOT_FOLLOWED = (bundles.PAGE, bundles.SUMMARY)
"""Files that a producer who lies there does not write again."""

Change = Callable[[bytes, Choose], bytes]


def change(copy: Copy, others: Sequence[Path], choose: Choose) -> tuple[str, bool]:
    """Change one file of a bundle.

    Args:
        copy: The bundle.
        others: Other bundles, to take files from.
        choose: Decides.

    Returns:
        The name of the file, and whether the change was followed.
    """
    names = sorted(p.relative_to(copy.folder).as_posix() for p in copy.folder.rglob("*") if p.is_file())
    name, follows = names[choose(len(names))], choose(2) == 1
    match choose(8):
        case 0:
            name = _change_folder(copy, name, names, others, choose)
        case 1 | 2:
            (copy / name).write_bytes(_bytes((copy / name).read_bytes(), choose))
        case _:
            for _ in range(1 + choose(2)):
                made = _CHANGES.get(Path(name).suffix, _bytes)((copy / name).read_bytes(), choose)
                (copy / name).write_bytes(made)
    follows = follows and name != bundles.MANIFEST
    if follows:
        if name not in _NOT_FOLLOWED:
            with contextlib.suppress(Exception):  # a report that cannot be shown
                _follow_sizes(copy)
                follow(copy)
        write_list(copy)
    return name, follows


def _change_folder(
    copy: Copy, name: str, names: Sequence[str], others: Sequence[Path], choose: Choose
) -> str:
    """Drop a file, add one, or give one the content of another."""
    content = (copy / names[choose(len(names))]).read_bytes()
    match choose(4):
        case 0:
            (copy / name).unlink()
            return name
        case 1:
            content = (others[choose(len(others))] / name).read_bytes()
        case 2:
            name = _ADDED[choose(len(_ADDED))]
            (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(content)
    return name


def _follow_sizes(copy: Copy) -> None:
    """State the sizes of the other ONNX files."""
    report = copy.json()
    if (copy / bundles.INT8).exists() and report["quantized"]:
        report["quantized"]["bytes"] = (copy / bundles.INT8).stat().st_size
    if (copy / bundles.ORIGINAL).exists():
        report["size"]["onnx_bytes_before"] = (copy / bundles.ORIGINAL).stat().st_size
    copy.write(report)


def _bytes(raw: bytes, choose: Choose) -> bytes:
    """Flip a bit, cut the end off, append, or change bytes like a text."""
    match choose(4):
        case 0 if raw:
            at = choose(len(raw))
            return raw[:at] + bytes([raw[at] ^ 1 << choose(8)]) + raw[at + 1 :]
        case 1:
            return raw[: choose(len(raw) + 1)]
        case 2:
            return raw + bytes(choose(9)) + b"\n" * choose(2)
    return garbled(raw, choose)


# --------------------------------------------------------------------------- JSON and YAML


def _json(raw: bytes, choose: Choose) -> bytes:
    """Change values, keys and types; or give a key twice, nest deeply, write other spaces."""
    kind = choose(8)
    if kind == 0:
        at = raw.find(b"{", choose(len(raw) + 1))
        return raw[: at + 1] + b'"schema": 1, "schema": 2, ' + raw[at + 1 :]
    if kind == 1:
        at, depth = raw.find(b": ", choose(len(raw) + 1)) + 2, (50, 2000, 200_000)[choose(3)]
        return raw[:at] + b"[" * depth + b"]" * depth + raw[raw.find(b",", at) :]
    try:
        value = read_json(raw)
    except StrictError:
        value = []
    if kind > 2:
        value = _value(value, choose)
    return json.dumps(value, indent=1 + choose(2), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _recipe(raw: bytes, choose: Choose) -> bytes:
    """Change a value of the tree and write it as JSON, or put tokens of YAML in."""
    if choose(2):
        return garbled(raw, choose)
    return json.dumps(_value(parse(raw.decode(), "")[0], choose), indent=1).encode()


def _value(value: Any, choose: Choose) -> Any:
    for _ in range(1 + choose(2)):
        value = altered(value, choose) if choose(2) else _moved(value, choose)
    return value


def _moved(value: Any, choose: Choose) -> Any:
    """Replace one part by another one, or by nearly the same."""
    value = json.loads(json.dumps(value))
    found = list(_places(value))
    if not found:
        return value
    parent, key = found[choose(len(found))]
    old = parent[key]
    match choose(5):
        case 0:
            other, name = found[choose(len(found))]
            parent[key] = json.loads(json.dumps(other[name]))
        case 1:
            parent[key] = [old] if isinstance(old, str) else str(old)
        case 2 if isinstance(old, int | float):
            parent[key] = old * (1 + 1e-12) if choose(2) else float(old)
        case 3 if isinstance(old, str):
            parent[key] = garbled(old.encode(), choose).decode("utf-8", "replace")
        case 4 if isinstance(old, list):
            parent[key] = old[::-1]
        case _:
            parent[key] = ODD[choose(len(ODD))]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Return every container with each of its keys."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        for key in at if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ():
            yield at, key
            waiting.append(at[key])


# --------------------------------------------------------------------------- ONNX


def _onnx(raw: bytes, choose: Choose) -> bytes:
    """Change fields of the message, or append bytes that no reader needs."""
    model = onnx.ModelProto()
    model.ParseFromString(raw)
    if choose(8) == 0:  # an unknown field, or a second message that is merged
        return raw + (b"\xfa\x3e\x01x", raw, b"\x08\x0a", b"\x3a\x00", b"\x3a\x80\x00")[choose(5)]
    for _ in range(1 + choose(3)):
        _change_message(model.graph if choose(2) else model, choose)
    return model.SerializeToString(deterministic=True)


def _change_message(message: Message, choose: Choose) -> None:
    """Set, empty, repeat or reorder one field of a message or of a message inside it."""
    present = [f for f, _ in message.ListFields()]
    inner = [f for f in present if f.type == FieldDescriptor.TYPE_MESSAGE]
    if inner and choose(5):
        at = inner[choose(len(inner))]
        part = getattr(message, at.name)
        if not at.is_repeated:
            _change_message(part, choose)
        elif choose(6):
            _change_message(part[choose(len(part))], choose)
        else:
            _change_list(part, choose)
        return
    fields = present if present and choose(4) else message.DESCRIPTOR.fields
    at = fields[choose(len(fields))]
    if choose(5) == 0:
        message.ClearField(at.name)
    else:
        with contextlib.suppress(ValueError, TypeError):  # a number outside the type
            _set_field(message, at, choose)


def _change_list(parts: Any, choose: Choose) -> None:
    at, other = choose(len(parts)), choose(len(parts))
    match choose(3):
        case 0:
            del parts[at]
        case 1:
            parts.add().CopyFrom(parts[at])
        case 2:
            first = type(parts[at])()
            first.CopyFrom(parts[at])
            parts[at].CopyFrom(parts[other])
            parts[other].CopyFrom(first)


def _set_field(message: Message, at: Any, choose: Choose) -> None:
    part = getattr(message, at.name)
    if at.type == FieldDescriptor.TYPE_MESSAGE:
        added = part.add() if at.is_repeated else part
        added.SetInParent()
        _change_message(added, choose)
    elif not at.is_repeated:
        setattr(message, at.name, _scalar(at, part, choose))
    elif part and choose(2):
        part[choose(len(part))] = _scalar(at, part[0], choose)
    else:
        part.extend([_scalar(at, None, choose)] * (1, 2, 1000)[choose(3)])


def _scalar(at: Any, old: Any, choose: Choose) -> Any:
    match at.type:
        case FieldDescriptor.TYPE_STRING:
            return (*_NAMES, garbled((old or "").encode(), choose).decode("utf-8", "replace"))[
                choose(len(_NAMES) + 1)
            ]
        case FieldDescriptor.TYPE_BYTES:
            return _bytes(old or b"", choose)
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return (0.0, 1.5, -1e30, float("nan"), float("inf"))[choose(5)]
        case FieldDescriptor.TYPE_ENUM:
            return at.enum_type.values[choose(len(at.enum_type.values))].number
    return (old or 0) + 1 if choose(3) == 0 else _ODD_NUMBERS[choose(len(_ODD_NUMBERS))]


# --------------------------------------------------------------------------- the other formats


def _tensors(raw: bytes, choose: Choose) -> bytes:
    """Change the size of the header of a safetensors file, the header or the values."""
    size = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + size], raw[8 + size :]
    match choose(5):
        case 0:
            odd = (0, 1, size - 1, size + 1, len(raw), 1 << 24, 1 << 31, -1)[choose(8)]
            return (odd % (1 << 64)).to_bytes(8, "little") + raw[8:]
        case 1:
            header += b" " * (1 + choose(64))
        case 2:
            data = _bytes(data, choose)
        case _:
            header = _json(header, choose)
    return len(header).to_bytes(8, "little") + header + data


def _page(raw: bytes, choose: Choose) -> bytes:
    """Put markup into a page; drop, double, move or garble a tag."""
    tags = [found.start() for found in re.finditer(b"<", raw)]
    if not tags:
        return _bytes(raw, choose)
    at, end = tags[choose(len(tags))], tags[choose(len(tags))]
    close = raw.find(b">", at) + 1
    match choose(6):
        case 0:
            return raw[:at] + raw[close:]
        case 1:
            return raw[:close] + raw[at:close] + raw[close:]
        case 2:
            return raw[:end] + raw[at:close] + raw[end:]
        case 3:
            return raw[:at] + garbled(raw[at:close], choose) + raw[close:]
    return raw[:at] + _MARKUP[choose(len(_MARKUP))].encode("utf-8", "surrogatepass") + raw[at:]


_CHANGES: dict[str, Change] = {
    ".json": _json,
    ".onnx": _onnx,
    ".safetensors": _tensors,
    ".html": _page,
    ".md": _page,
    ".yaml": _recipe,
}
