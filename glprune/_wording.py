"""Counts in sentences."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """Return a whole number and its noun, such as ``1 feature`` or ``1,200 features``.

    Args:
        number: The count.
        noun: The noun in the singular; its plural ends with an s.
    """
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"
