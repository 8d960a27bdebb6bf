"""YAML 1.2 as plain values with the line of every key, from files nobody vouches for.

Values are text, numbers, true, false, null, lists and mappings with text keys. Anchors, aliases, tags,
merge keys, duplicate keys, several documents, deep nesting and numbers past 64 bits are refused, so
that a short file stays a small value and has one reading.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def read_text(source: Path) -> str:
    """Read a short UTF-8 file.

    Raises:
        RecipeError: It is missing, no plain file, longer than a megabyte or not UTF-8.
    """
    why = unreadable_reason(source)
    if why is not None:
        raise RecipeError(f"{source} {why}; name a YAML file.")
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
    """Read a mapping of keys.

    Args:
        text: The YAML.
        name: The file, for messages.

    Returns:
        The mapping, and the line of every key and list item by its path.

    Raises:
        RecipeError: One line with file, line and the mend.
    """
    reader = _Reader(text, name)
    try:
        tree = reader.document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join((error.problem or "not YAML").split())
        raise RecipeError(f"{name}:{mark.line + 1 if mark else 1}: {problem}; mend the YAML.") from None
    except ReaderError as error:
        raise RecipeError(
            f"{name}:{text.count(chr(10), 0, error.position) + 1}: holds the control character "
            f"U+{ord(text[error.position]):04X}; is it a text file in UTF-8?"
        ) from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{name}:1: not YAML ({type(error).__name__}); mend the YAML.") from None
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(f"{name}:1: should be a mapping of keys, this is {found}.")
    return tree, reader.lines


class _Reader:
    """Builds values from the parser's events, so that what is refused is refused before it is built."""

    def __init__(self, text: str, name: str) -> None:
        self.name, self.lines = name, Lines()
        self._yaml = YAML(typ="safe", pure=True)
        self._events: Iterator[Event] = self._yaml.parse(text)

    def document(self) -> Any:
        """The one document of the file; None where it is empty."""
        next(self._events)  # the stream's start
        start = next(self._events)
        if isinstance(start, StreamEndEvent):
            return None
        assert isinstance(start, DocumentStartEvent)
        if start.version not in (None, (1, 2)) or start.tags:
            raise self._refused(start, "directives (%YAML, %TAG) are not allowed; remove them")
        value = self._value(next(self._events), ())
        next(self._events)  # the document's end
        following = next(self._events)
        if not isinstance(following, StreamEndEvent):
            raise self._refused(following, "a second document begins; keep one")
        return value

    def _value(self, event: Event, at: tuple[Any, ...]) -> Any:
        if len(at) > MAX_DEPTH:
            raise self._refused(event, f"nested deeper than {MAX_DEPTH}; mend the YAML")
        self._plain(event)
        if isinstance(event, MappingStartEvent):
            return self._mapping(at)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(at)
        assert isinstance(event, ScalarEvent)
        return self._scalar(event, at)

    def _plain(self, event: Event) -> None:
        """Refuse what makes a value more than what is written."""
        assert isinstance(event, NodeEvent)
        tag = getattr(event, "tag", None)
        if isinstance(event, AliasEvent) or event.anchor is not None or tag is not None:
            mark = "*" if isinstance(event, AliasEvent) else "&"
            found = f"{mark}{event.anchor}" if event.anchor is not None else str(tag).replace(_CORE, "!!")
            raise self._refused(event, f"anchors, aliases and tags ({found[:40]}) are not allowed here")

    def _mapping(self, at: tuple[Any, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event, at)
            if key in found:
                raise self._refused(event, f'found duplicate key "{key[:60]}"; keep one')
            here = (*at, key)
            self.lines[here] = event.start_mark.line + 1
            found[key] = self._value(next(self._events), here)
        return found

    def _key(self, event: Event, at: tuple[Any, ...]) -> str:
        self._plain(event)
        if not isinstance(event, ScalarEvent):
            raise self._refused(event, "a key is a list or mapping, not text; is there a '?' or '{' too many")
        kind = self._kind(event)
        if kind == "merge":
            raise self._refused(event, "merge keys (<<) are not allowed here; write the keys out")
        # the numbers of axes are keys that YAML reads as numbers
        if kind != "str" and not (kind == "int" and at[:-1] == ("export", "dynamic_axes")):
            raise self._refused(event, f"key {event.value[:40] or 'null'} is not text; put it in quotes")
        return self._text(event)

    def _sequence(self, at: tuple[Any, ...]) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            here = (*at, len(found))
            self.lines[here] = event.start_mark.line + 1
            found.append(self._value(event, here))
        return found

    def _kind(self, event: ScalarEvent) -> str:
        tag = self._yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
        return str(tag).rpartition(":")[2]

    def _scalar(self, event: ScalarEvent, at: tuple[Any, ...]) -> str | int | float | bool | None:
        kind, plain = self._kind(event), event.value.replace("_", "").lower()
        if kind == "null":
            return None
        if kind == "bool":
            return plain == "true"
        if kind == "int":
            return self._whole(event, plain)
        if kind == "float":
            return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        if kind == "timestamp":
            where = ".".join(map(str, at))
            raise self._refused(
                event, f"{where}: {event.value[:40]} is not text, a number or a list; put it in quotes"
            )
        return self._text(event)

    def _whole(self, event: ScalarEvent, plain: str) -> int:
        base = _BASES.get(plain.lstrip("+-")[:2], 10)
        try:
            value = int(plain, base) if len(plain) < 80 else 2**63
        except ValueError:  # such as 0x_
            raise self._refused(event, f"{event.value[:40]} is no number; put text in quotes") from None
        if not -(2**63) <= value < 2**63:
            raise self._refused(event, f"{event.value[:40]} does not fit 64 bits; take a smaller number")
        return value

    def _text(self, event: ScalarEvent) -> str:
        odd = next((c for c in event.value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
        if odd is not None:
            raise self._refused(event, f"text holds {odd!r}, which no name or file can; remove it")
        return str(event.value)

    def _refused(self, event: Event, why: str) -> RecipeError:
        return RecipeError(f"{self.name}:{event.start_mark.line + 1}: {why}.")
