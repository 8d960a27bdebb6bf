"""Read YAML 1.2 from untrusted files as plain values, with the line of every key.

Values are text, numbers, true, false, null, lists and mappings with text keys. Anchors, aliases, tags, merge
keys, duplicate keys, several documents, deep nesting and numbers beyond 64 bits are refused, so that a short
file gives a small value and can be read in one way only.

ruamel's round-trip loader also knows lines, but builds the whole value, aliases included, before it can be
checked; this reader checks the parser's events first.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from glprune._files import unreadable_reason
from glprune.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
_CORE = "tag:yaml.org,2002:"
_BASES = {"0b": 2, "0o": 8, "0x": 16}
Lines = dict[tuple[Any, ...], int]
"""Path of a key or list item -> its line, from 1."""
_Scalar = str | int | float | bool | None


def read_text(source: Path) -> str:
    """Read a UTF-8 file of at most a megabyte.

    Raises:
        RecipeError: The file is missing, not a regular file, too long or not UTF-8.
    """
    reason = unreadable_reason(source)
    if reason is not None:
        raise RecipeError(f"{source} {reason}; name a YAML file.")
    with source.open("rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{source} has {source.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError(f"{source}:{line}: not UTF-8; save the file as UTF-8.") from None


def parse(text: str, name: str) -> tuple[dict[str, Any], Lines]:
    """Parse YAML text that holds a mapping.

    Args:
        text: The YAML text.
        name: Name of the file, for messages.

    Returns:
        The mapping, and the line of every key and list item by its path.

    Raises:
        RecipeError: The text is not a mapping of the values above; the message gives file, line and fix.
    """
    reader = _Reader(text, name)
    try:
        tree = reader.document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join((error.problem or "not YAML").split())
        raise RecipeError(f"{name}:{mark.line + 1 if mark else 1}: {problem}; correct the YAML.") from None
    except ReaderError as error:
        raise RecipeError(
            f"{name}:{text.count(chr(10), 0, error.position) + 1}: holds the control character "
            f"U+{ord(text[error.position]):04X}; is it a text file in UTF-8?"
        ) from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{name}:1: not YAML ({type(error).__name__}); correct the YAML.") from None
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(f"{name}:1: should be a mapping of keys, this is {found}.")
    return tree, reader.lines


def nearest_line(lines: Mapping[tuple[Any, ...], int], keys: Sequence[Any]) -> int | None:
    """Return the line of a key, or of the nearest key that contains it."""
    path = tuple(keys)
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def dump(tree: Mapping[str, Any], null_keys: Collection[str] = (), verbatim: Collection[str] = ()) -> str:
    """Write a mapping as YAML without the keys that are null.

    Args:
        tree: The mapping, of plain values.
        null_keys: Keys that are written although they are null.
        verbatim: Keys whose values are written as they are, null or not.
    """

    def without_null(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: inner if key in verbatim else without_null(inner)
                for key, inner in value.items()
                if inner is not None or key in null_keys
            }
        return [without_null(inner) for inner in value] if isinstance(value, list) else value

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 4096
    yaml.dump(without_null(tree), stream)
    return stream.getvalue()


class _Reader:
    """Builds values from the parser's events, so that nothing is built before it is checked."""

    def __init__(self, text: str, name: str) -> None:
        self.name, self.lines = name, Lines()
        self._yaml = YAML(typ="safe", pure=True)
        self._events: Iterator[Event] = self._yaml.parse(text)

    def document(self) -> Any:
        """Read the only document of the file; None if the file is empty."""
        next(self._events)  # start of the stream
        start = next(self._events)
        if isinstance(start, StreamEndEvent):
            return None
        assert isinstance(start, DocumentStartEvent)
        if start.version not in (None, (1, 2)) or start.tags:
            raise self._refused(start, "directives (%YAML, %TAG) are not allowed; remove them")
        value = self._value(next(self._events), ())
        next(self._events)  # end of the document
        following = next(self._events)
        if not isinstance(following, StreamEndEvent):
            raise self._refused(following, "a second document begins; keep one")
        return value

    def _value(self, event: Event, path: tuple[Any, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise self._refused(event, f"nested deeper than {MAX_DEPTH} levels; correct the YAML")
        self._refuse_references(event)
        if isinstance(event, MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path)
        assert isinstance(event, ScalarEvent)
        return self._scalar(event, path)

    def _refuse_references(self, event: Event) -> None:
        """Refuse anchors, aliases and tags, which make a value more than the text that is written."""
        assert isinstance(event, NodeEvent)
        tag = getattr(event, "tag", None)
        if isinstance(event, AliasEvent) or event.anchor is not None or tag is not None:
            mark = "*" if isinstance(event, AliasEvent) else "&"
            found = f"{mark}{event.anchor}" if event.anchor is not None else str(tag).replace(_CORE, "!!")
            raise self._refused(event, f"anchors, aliases and tags ({found[:40]}) are not allowed here")

    def _mapping(self, path: tuple[Any, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event, path)
            if key in found:
                raise self._refused(event, f'found duplicate key "{key[:60]}"; keep one')
            inner = (*path, key)
            self.lines[inner] = event.start_mark.line + 1
            found[key] = self._value(next(self._events), inner)
        return found

    def _key(self, event: Event, path: tuple[Any, ...]) -> str:
        self._refuse_references(event)
        if not isinstance(event, ScalarEvent):
            raise self._refused(event, "a key is a list or mapping, not text; remove the extra '?' or '{'")
        kind = self._value_type(event)
        if kind == "merge":
            raise self._refused(event, "merge keys (<<) are not allowed here; write the keys out")
        # the numbers of axes are keys that YAML reads as numbers
        if kind != "str" and not (kind == "int" and path[:-1] == ("export", "dynamic_axes")):
            raise self._refused(event, f"key {event.value[:40] or 'null'} is not text; put it in quotes")
        return self._text(event)

    def _sequence(self, path: tuple[Any, ...]) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            inner = (*path, len(found))
            self.lines[inner] = event.start_mark.line + 1
            found.append(self._value(event, inner))
        return found

    def _value_type(self, event: ScalarEvent) -> str:
        """Return the type that YAML 1.2 reads a scalar as: str, int, float, bool, null, ..."""
        tag = self._yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
        return str(tag).rpartition(":")[2]

    def _scalar(self, event: ScalarEvent, path: tuple[Any, ...]) -> _Scalar:
        kind, plain = self._value_type(event), event.value.replace("_", "").lower()
        if kind == "null":
            return None
        if kind == "bool":
            return bool(plain == "true")
        if kind == "int":
            return self._integer(event, plain)
        if kind == "float":
            return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        if kind == "timestamp":
            where = ".".join(map(str, path))
            raise self._refused(
                event, f"{where}: {event.value[:40]} is not text, a number or a list; put it in quotes"
            )
        return self._text(event)

    def _integer(self, event: ScalarEvent, plain: str) -> int:
        base = _BASES.get(plain.lstrip("+-")[:2], 10)
        try:
            value = int(plain, base) if len(plain) < 80 else 2**63
        except ValueError:  # such as 0x_
            raise self._refused(event, f"{event.value[:40]} is not a number; put text in quotes") from None
        if not -(2**63) <= value < 2**63:
            raise self._refused(event, f"{event.value[:40]} does not fit 64 bits; use a smaller number")
        return value

    def _text(self, event: ScalarEvent) -> str:
        invalid = next((c for c in event.value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
        if invalid is not None:
            raise self._refused(event, f"text holds {invalid!r}, which no name or file can hold; remove it")
        return str(event.value)

    def _refused(self, event: Event, reason: str) -> RecipeError:
        return RecipeError(f"{self.name}:{event.start_mark.line + 1}: {reason}.")
