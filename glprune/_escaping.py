"""Escape text from untrusted files, so that terminals and pages show it and do not interpret it."""

from __future__ import annotations

import unicodedata

_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def escape_for_terminal(text: str) -> str:
    """Escape every character of a text that is not printable, such as those of terminal sequences."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def escape_for_page(text: str, keep: str = "") -> str:
    """Escape control characters, marks of writing direction and surrogates in a text for a page.

    Args:
        text: The text.
        keep: Characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in _INVISIBLE else _escape(c) for c in text)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
