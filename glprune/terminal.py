"""Text from files nobody vouches for, shown on a terminal and never obeyed by it."""

from __future__ import annotations


def plain(text: str) -> str:
    """Text with everything that could steer a terminal, or hide in it, spelled out.

    That is whatever cannot be printed: escape sequences, line ends, marks of writing direction and of no
    width, halves of characters.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
