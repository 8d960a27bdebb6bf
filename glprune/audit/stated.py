"""Hold what a report states against what its tables give."""

from __future__ import annotations

from collections.abc import Iterator

_ROUND_OFF = 1e-9  # the last digits of a sum depend on its order

Found = tuple[str, str]
"""A JSON pointer into the report and what is wrong there."""


def differs(where: str, stated: object, found: object, why: str) -> Iterator[Found]:
    """Tell that a value is another than the one found."""
    if stated != found:
        yield where, f"says {stated}, but {why} {found}"


def off(where: str, stated: float | None, found: float | None, why: str) -> Iterator[Found]:
    """The same for numbers, but for round-off."""
    close = (
        stated is not None and found is not None and abs(stated - found) <= _ROUND_OFF * max(1.0, abs(found))
    )
    if not close:
        yield from differs(where, stated, found, why)
