"""Take a batch of a loader apart: its inputs in the network's order, and its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glprune.errors import DataError

IsArray = Callable[[object], bool]


def split_batch(batch: Any, inputs: int, kind: str, is_array: IsArray) -> tuple[Any, Any]:
    """Split a batch into inputs and target; distillation ignores the target.

    Args:
        batch: ``(x, y)``, ``((x1, x2), y)`` or ``({name: x}, y)``; for distillation the target may be
            missing.
        inputs: Number of inputs.
        kind: The task.
        is_array: Whether a value is an array, of the kind that the caller reads.

    Raises:
        DataError: The batch is no pair.
    """
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    if kind != "distillation":
        if not pair:
            raise DataError(f"a batch is {type(batch).__name__}, not a pair (inputs, target).")
        return batch[0], batch[1]
    # with two inputs a pair of tensors is the inputs; with one it is the input and a label
    if pair and (inputs == 1 or not is_array(batch[0])):
        return batch[0], batch[1]
    return batch, None


def ordered_inputs(raw: Any, names: Sequence[str], is_array: IsArray) -> list[Any]:
    """Return the array of each input, in the network's order.

    Args:
        raw: An array, several of them, or a mapping by input name.
        names: Names of the inputs.
        is_array: Whether a value is an array.

    Raises:
        DataError: An input is missing, or is no array.
    """
    if isinstance(raw, Mapping):
        missing = [name for name in names if name not in raw]
        if missing:
            raise DataError(f"a batch has no input {missing[0]!r}; it has {', '.join(map(str, raw))}.")
        raw = [raw[name] for name in names]
    found = [raw] if is_array(raw) else raw
    if not isinstance(found, list | tuple) or len(found) != len(names) or not all(is_array(x) for x in found):
        raise DataError(f"a batch should hold {len(names)} input tensor(s); it holds {_contents(found)}.")
    return list(found)


def _contents(found: Any) -> str:
    """Describe what a batch holds instead of tensors."""
    if isinstance(found, list | tuple):
        return f"{len(found)}: {', '.join(type(x).__name__ for x in found)}"
    return type(found).__name__
