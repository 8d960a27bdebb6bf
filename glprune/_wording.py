"""Counts, numbers and ranges in sentences and names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_EXACT = 2**53  # whole numbers below are exact in float64


def counted(number: float, noun: str) -> str:
    """Return a whole number and its noun, such as ``1 feature`` or ``1,200 features``.

    Args:
        number: The count.
        noun: The noun in the singular; its plural ends with an s.
    """
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def shortened(names: Sequence[str], most: int = 12) -> str:
    """List names, and the number of the others if there are more than ``most``."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def number_text(value: float) -> str:
    """Format a number with few digits."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < _EXACT else f"{value:g}"


def number_texts(values: Sequence[float]) -> tuple[str, ...]:
    """Format distinct numbers with few digits, or with all of them if they would look the same."""
    short = tuple(map(number_text, values))
    return short if len(set(short)) == len(short) else tuple(map(repr, values))


def range_labels(edges: Sequence[float]) -> tuple[str, ...]:
    """Return the names of the ranges that ascending edges, at least one, divide."""
    texts = number_texts(edges)
    middle = [f"{a} to below {b}" for a, b in itertools.pairwise(texts)]
    return (f"below {texts[0]}", *middle, f"{texts[-1]} and above")
