"""Allow in ``report.html`` only the elements and attributes that its template and matplotlib write.

Text between pictures is compared with the report elsewhere. A picture is read by two parsers, of HTML and of
XML, that must see the same: what one of them would skip or correct, a browser could read in a third way.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from xml.parsers.expat import ExpatError, ParserCreate

_MAX_TAGS = 1_000_000
_NUMBER = r"-?\d{1,9}(?:\.\d{1,20})?(?:e-?\d{1,3})?"
_NUMBERS = rf"{_NUMBER}(?:[ ,]{{1,2}}{_NUMBER})*"
_WORDS, _IDENTIFIER = r"[a-z]*(?: [a-z]+)*", r"[A-Za-z][\w-]*"
_COLOR, _SIZE = r"none|#[0-9a-f]{3,8}|[a-z]{3,20}", r"\d{1,2}(?:\.\d{1,6})?px"
_FONTS = r"[A-Za-z' ,-]*"
_DECLARATIONS = {
    **dict.fromkeys(("fill", "stroke"), _COLOR),
    **dict.fromkeys(("opacity", "fill-opacity", "stroke-opacity", "stroke-width"), _NUMBER),
    **dict.fromkeys(("stroke-miterlimit", "stroke-dashoffset"), _NUMBER),
    **dict.fromkeys(("stroke-linejoin", "stroke-linecap", "text-anchor", "fill-rule"), "[a-z]+"),
    **dict.fromkeys(("font-style", "font-weight", "font-stretch", "font-variant"), r"[a-z-]+|\d{3}"),
    "stroke-dasharray": rf"none|{_NUMBERS}",
    "font-size": _SIZE,
    "font-family": _FONTS,
    "font": rf"(?:[a-z]+ |\d{{3}} )*{_SIZE}{_FONTS}",
}
_SHEET = re.compile(r"\*\{stroke-linejoin: [a-z]{1,9}; stroke-linecap: [a-z]{1,9}\}")
_TRANSFORM = rf"(?:(?:translate|rotate|scale|matrix)\({_NUMBERS}\) ?)+"
_PLACE = {"x": _NUMBER, "y": _NUMBER, "style": "", "transform": _TRANSFORM}
_CLIP = {"clip-path": r"url\(#p[0-9a-f]{1,20}\)"}
_DRAWN_ID = r"[mpC][0-9a-f_]{1,40}"
Allowed = Mapping[str, Mapping[str, str]]
_PICTURE: Allowed = {
    "svg": {
        "width": r"\d{1,4}(?:\.\d+)?pt",
        "height": r"\d{1,5}(?:\.\d+)?pt",
        "viewbox": _NUMBERS,
        "version": r"1\.1",
        "xmlns": r"http://www\.w3\.org/2000/svg",
        "xmlns:xlink": r"http://www\.w3\.org/1999/xlink",
    },
    "g": _PLACE | _CLIP | {"id": r"[A-Za-z][A-Za-z.]*(?:2d)?_\d{1,6}"},
    "defs": {},
    "style": {"type": "text/css"},
    "clippath": {"id": _DRAWN_ID},
    "rect": _PLACE | {"width": _NUMBER, "height": _NUMBER},
    "path": _PLACE | _CLIP | {"id": _DRAWN_ID, "d": r"[MLHVCSQTAZmlhvcsqtaz0-9e., +-]*"},
    "use": _PLACE | {"xlink:href": rf"#{_DRAWN_ID}"},
    "text": _PLACE,
    "tspan": _PLACE | {"x": _NUMBERS, "y": _NUMBERS},
}
_TEXT_ELEMENTS = (
    "article", "b", "body", "br", "caption", "code", "col", "colgroup", "dd", "div", "dl", "dt", "em",
    "figcaption", "figure", "footer", "h1", "h2", "h3", "h4", "h5", "head", "header", "hr", "i", "li",
    "main", "nav", "p", "pre", "section", "small", "span", "strong", "style", "sub", "summary", "sup",
    "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
)  # fmt: skip
_PAGE: Allowed = {name: {"class": _WORDS, "id": _IDENTIFIER} for name in _TEXT_ELEMENTS} | {
    "a": {"href": f"#{_IDENTIFIER}", "class": _WORDS},
    "details": {"open": "", "class": _WORDS},
    "html": {"lang": "[A-Za-z-]+"},
    "meta": {
        "charset": "utf-8",
        "http-equiv": "Content-Security-Policy",
        "name": "viewport",
        "content": r"[A-Za-z0-9 ';:=,.-]*",
    },
    "ol": {"class": _WORDS, "start": r"\d+"},
    "svg": {},
    **{name: {"class": _WORDS, "colspan": r"\d{1,3}"} for name in ("td", "th")},
}
_FOREIGN_STYLE = re.compile(r"url\s*\(|@import|position\s*:|z-index|content\s*:\s*[\"']|\\|<", re.IGNORECASE)
Event = tuple[str, str, tuple[tuple[str, str], ...]]
"""What a parser saw: a role, a name or text, and the attributes of a start tag."""


def check_page(text: str) -> Iterator[str]:
    """Find markup between the pictures that no template writes.

    Args:
        text: The page, with pictures that are empty.
    """
    if text.count("<") > _MAX_TAGS:
        yield f"has more than {_MAX_TAGS:,} tags"
        return
    inside = ""
    for role, name, attributes in _html_events(text):
        if role == "start":
            inside = name
            yield from _unknown(name, attributes, _PAGE)
        elif role in ("comment", "other") and name.lower() != "doctype html":
            yield f"contains {name[:40]!r}, which no report needs"
        elif role == "text" and inside == "style" and (found := _FOREIGN_STYLE.search(name)):
            yield f"has a style sheet with {found[0]!r}"
        elif role == "end":
            inside = ""


def check_picture(picture: str) -> Iterator[str]:
    """Find everything in a picture that matplotlib does not write.

    Args:
        picture: From ``<svg`` to ``</svg>``, both included.
    """
    if picture.count("<") > _MAX_TAGS:
        yield f"has more than {_MAX_TAGS:,} tags"
        return
    try:
        events = _xml_events(picture)
    except ExpatError as error:
        yield f"is not well-formed ({error})"
        return
    if events != _html_events(picture):
        yield "is read differently by parsers of HTML and of XML"
        return
    yield from _drawn_twice(events)
    inside = ""
    for role, name, attributes in events:
        if role == "start":
            inside = name
            yield from _unknown(name, attributes, _PICTURE)
        elif role == "other" or (role == "comment" and re.search(r"[<>]|--", name)):
            yield f"contains {name[:40]!r}, which no report needs"
        elif role == "text" and inside == "style" and name.strip() and not _SHEET.fullmatch(name.strip()):
            yield f"has the style sheet {name.strip()[:40]!r}"
        elif role == "end":
            inside = ""


def _drawn_twice(events: Sequence[Event]) -> Iterator[str]:
    """Require that what is drawn again is a path: other elements could draw each other without end."""
    attributes = [(name, key, value) for _, name, given in events for key, value in given]
    paths = {f"#{value}" for name, key, value in attributes if (name, key) == ("path", "id")}
    for _, key, value in attributes:
        if key == "xlink:href" and value not in paths:
            yield f"draws {value[:40]!r}, which is no path"


def _unknown(name: str, attributes: Sequence[tuple[str, str]], allowed: Allowed) -> Iterator[str]:
    """Find what a tag has that is not allowed."""
    if name not in allowed:
        yield f"contains <{name[:40]}>, which no report needs"
        return
    for key, value in attributes:
        pattern = allowed[name].get(key)
        known = pattern is not None and (_is_style(value) if key == "style" else re.fullmatch(pattern, value))
        if not known:
            yield f"contains <{name} {key[:40]}={value[:60]!r}>, which no report needs"
    if len({key for key, _ in attributes}) < len(attributes):
        yield f"gives <{name}> an attribute twice"


def _is_style(text: str) -> bool:
    """Whether a style has only the declarations of lines, fills and fonts."""
    for declaration in text.removesuffix(";").split(";"):
        name, _, value = declaration.strip().partition(": ")
        if name not in _DECLARATIONS or not re.fullmatch(_DECLARATIONS[name], value):
            return False
    return True


class _Html(HTMLParser):
    """Lists what the HTML parser sees."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.events.append(("start", tag, tuple((key, _spaced(value or "")) for key, value in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.events.append(("end", tag, ()))

    def handle_data(self, data: str) -> None:
        self.events.append(("text", data, ()))

    def handle_comment(self, data: str) -> None:
        self.events.append(("comment", data, ()))

    def handle_decl(self, decl: str) -> None:
        self.events.append(("other", decl, ()))

    def handle_pi(self, data: str) -> None:
        self.events.append(("other", data, ()))

    def unknown_decl(self, data: str) -> None:
        self.events.append(("other", data, ()))


def _html_events(text: str) -> list[Event]:
    """List what an HTML parser sees, up to a tag that does not end: read as text, it takes quadratic time."""
    parser = _Html()
    parser.feed(text)
    if "<" in parser.rawdata:
        return [*_joined(parser.events), ("other", parser.rawdata[:40], ())]
    parser.close()
    return _joined(parser.events)


def _xml_events(text: str) -> list[Event]:
    """List what an XML parser sees; names in lower case, as HTML has them.

    Raises:
        ExpatError: The text is not well-formed XML.
    """
    events: list[Event] = []

    def start(name: str, attributes: list[str]) -> None:
        pairs = zip(attributes[::2], attributes[1::2], strict=True)
        events.append(("start", name.lower(), tuple((key.lower(), _spaced(value)) for key, value in pairs)))

    parser = ParserCreate()
    parser.ordered_attributes = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: events.append(("end", name.lower(), ()))
    parser.CharacterDataHandler = lambda data: events.append(("text", data, ()))
    parser.CommentHandler = lambda data: events.append(("comment", data, ()))
    parser.ProcessingInstructionHandler = lambda name, data: events.append(("other", f"{name} {data}", ()))
    parser.StartCdataSectionHandler = lambda: events.append(("other", "CDATA", ()))
    parser.Parse(text, True)
    return _joined(events)


def _joined(events: Sequence[Event]) -> list[Event]:
    """Join texts that follow each other: parsers cut them in different places."""
    found: list[Event] = []
    for is_text, together in itertools.groupby(events, lambda event: event[0] == "text"):
        group = list(together)
        found += [("text", "".join(name for _, name, _ in group), ())] if is_text else group
    return found


def _spaced(value: str) -> str:
    """Write line ends as XML reads them in attributes."""
    return re.sub(r"[\t\n\r]", " ", value)
