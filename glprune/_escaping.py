"""Text from files nobody vouches for: shown, never obeyed, with nothing hidden in it."""

from __future__ import annotations

import unicodedata

_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def escape_for_terminal(text: str) -> str:
    """Text for a terminal: whatever cannot be printed, escape sequences above all, is spelled out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _spelled(c) for c in text)


def escape_for_page(text: str, keep: str = "") -> str:
    """Text for a page: control characters, marks of writing direction and half characters are spelled out.

    Args:
        text: The text.
        keep: Characters that may stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in _INVISIBLE else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
