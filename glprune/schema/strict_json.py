"""JSON with one reading: duplicate keys, NaN, deep nesting and odd bytes are refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

_DEEPEST = 64
_MOST = 4_000_000  # values; each takes up to a hundred times its bytes in memory


class StrictError(ValueError):
    """The bytes are not JSON with one reading."""


def read_json(raw: bytes) -> Any:
    """Read JSON strictly.

    Raises:
        StrictError: Not UTF-8 or not JSON, a duplicate key, NaN or Infinity, a number too large for a
            double, nesting past 64 levels, or more than 4 million values.
    """
    if raw.count(b",") > _MOST:
        raise StrictError(f"holds more than {_MOST:,} values")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise StrictError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise StrictError(f"not UTF-8 at byte {error.start}") from None
    except StrictError:
        raise
    except ValueError as error:
        raise StrictError(f"not JSON ({error})") from None
    try:
        _check_values(value)
    except OverflowError:  # a hook for every number would be half of the time
        json.loads(raw, parse_float=_float)
        raise
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, times in counts.items() if times > 1)
        raise StrictError(f"key {twice[:60]!r} appears twice")
    return found


def _constant(text: str) -> Any:
    raise StrictError(f"{text} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise StrictError(f"{text[:30]} is too large a number")
    return value


def _check_values(value: Any) -> None:
    """Refuse numbers too large and nesting too deep, level by level, without recursion."""
    row = [value]
    for _ in range(_DEEPEST):
        if math.inf in row or -math.inf in row:
            raise OverflowError
        nested = [v for v in row if isinstance(v, dict | list)]
        row = [child for v in nested for child in (v.values() if isinstance(v, dict) else v)]
        if not row:
            return
    raise StrictError(f"nested deeper than {_DEEPEST} levels")
