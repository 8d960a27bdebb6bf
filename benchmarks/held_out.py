"""Sets that are looked at once; `sets.py` states the rule."""

from __future__ import annotations

from collections.abc import Callable

from dataset import DataSet

SETS: tuple[Callable[[int], DataSet], ...] = ()
