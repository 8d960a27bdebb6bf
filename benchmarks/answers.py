"""What a method is given and what it hands back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dataset import DataSet
from torch import nn


@dataclass(frozen=True)
class Problem:
    """A data set with its trained network.

    Attributes:
        state: File of the network's state dict.
        folder: An empty folder to work in.
    """

    data: DataSet
    network: nn.Module
    state: Path
    folder: Path
    seed: int


class Clock:
    """Seconds since it was made: wall clock, and processor time of this process (one thread)."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


@dataclass(frozen=True)
class Answer:
    """At most k features. A method may answer several times for one k: the best on validation rows counts.

    Attributes:
        seconds: Wall and processor seconds until this answer, without training of the given network.
        search: Processor seconds of them until the features were chosen and the network refitted, where the
            method goes on after that: proofs, an exported file, a report.
        own: Predictions of the method's own model on the validation and the test split, as
            `network.predict` returns them, if it has one that reads these features alone.
    """

    k: int
    features: tuple[int, ...]
    seconds: tuple[float, float]
    own: tuple[np.ndarray, np.ndarray] | None = None
    search: float | None = None


Emit = Callable[[Answer], None]
Method = Callable[[Problem, Emit], None]
