"""Names that a reader cannot tell apart: other normal forms, case, scripts, invisible characters.

References:
    Unicode Technical Standard 39, "Unicode Security Mechanisms", section 4 on confusable characters.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

_ALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "|": "l"})  # in many fonts, after lowering the case
_SPACES = "_-. "


def nfc(name: str) -> str:
    """Return a name in Unicode's normal form C, in which an accented letter is one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spelled_out(name: str) -> str:
    """Return a name in quotes; characters outside ASCII as escapes, so that lookalikes differ."""
    return ascii(name)


def look_alike(a: str, b: str) -> bool:
    """Whether two different names look alike; two of ASCII do where only case or outer marks differ."""
    if a == b:
        return False
    plain = a.isascii() and b.isascii()
    return _folded(a) == _folded(b) if plain else _skeleton(a) == _skeleton(b)


def lookalikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of different names that look alike, each name with the first such one before it."""
    seen: dict[str, list[str]] = {}
    pairs = []
    for name in dict.fromkeys(names):
        before = seen.setdefault(_skeleton(name), [])
        first = next((other for other in before if look_alike(other, name)), None)
        if first is not None:
            pairs.append((first, name))
        before.append(name)
    return pairs


def _skeleton(name: str) -> str:
    """Return a text that names share which look alike."""
    if not name.isascii():
        name = "".join(map(_letter, unicodedata.normalize("NFKD", name)))
    return _folded(name).translate(_ALIKE)


def _folded(name: str) -> str:
    return name.casefold().strip(_SPACES)


@functools.cache
def _letter(character: str) -> str:
    """Return the ASCII characters that one looks like; none for marks and invisible ones, else itself."""
    if character.isascii():
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Mn", "Zl", "Zp"):
        return ""
    from confusable_homoglyphs import confusables  # noqa: PLC0415 - a large table that few names need

    alike = [entry["c"] for entry in confusables.confusables_data.get(character, ())]
    return next((text for text in alike if text.isascii()), character)
