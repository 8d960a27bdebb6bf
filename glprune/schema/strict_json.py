"""Read JSON from untrusted files: duplicate keys, NaN, deep nesting and invalid bytes are refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

_MAX_DEPTH = 64
_MAX_VALUES = 4_000_000  # a value takes up to a hundred times its bytes in memory
_MAX_CONTAINERS = 1_000_000  # an object of one key takes two hundred bytes
_MAX_LENGTH = 1_000_000  # of a list: each wrong value of it is an error of its schema


class StrictError(ValueError):
    """The bytes are not strict JSON."""


def read_json(raw: bytes) -> Any:
    """Parse strict JSON.

    Raises:
        StrictError: Not UTF-8 or not JSON, a duplicate key, NaN or Infinity, a number too large for a
            double, nesting deeper than 64 levels, more than 4 million values, or a million lists and objects.
    """
    if raw.count(b",") > _MAX_VALUES:
        raise StrictError(f"holds more than {_MAX_VALUES:,} values")
    if raw.count(b"[") + raw.count(b"{") > _MAX_CONTAINERS:
        raise StrictError(f"holds more than {_MAX_CONTAINERS:,} lists and objects")
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
    except OverflowError:  # parse again to name it; a hook for every number doubles the time
        json.loads(raw, parse_float=_float)
        raise
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object whose keys are distinct."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        duplicate = next(name for name, times in counts.items() if times > 1)
        raise StrictError(f"key {duplicate[:60]!r} appears twice")
    return found


def _constant(text: str) -> Any:
    raise StrictError(f"{text} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise StrictError(f"{text[:30]} is too large a number")
    return value


def _check_values(value: Any) -> None:
    """Refuse infinite numbers, long lists and deep nesting, level by level, without recursion."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        if math.inf in level or -math.inf in level:
            raise OverflowError
        nested = [v for v in level if isinstance(v, dict | list)]
        if any(len(v) > _MAX_LENGTH for v in nested):
            raise StrictError(f"holds a list or object of more than {_MAX_LENGTH:,} values")
        level = [child for v in nested for child in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return
    raise StrictError(f"nested deeper than {_MAX_DEPTH} levels")
