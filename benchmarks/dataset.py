"""What a data set of the benchmark is, and the parts its makers share: splits, scaling, files of packages.

Columns are float32, standardised with mean and standard deviation of the training rows; a regression
target likewise. A feature is one column or several that live and die together.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

FEW_ROWS, VERY_LARGE = 1000, 2_000_000  # training rows; training rows times columns
Feature = tuple[str, tuple[int, ...]]
Arrays = tuple[np.ndarray, np.ndarray]
Task = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True)
class Split:
    """Rows of one split: x (rows, columns) float32, y class numbers (int64) or values (float32)."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class DataSet:
    """One drawing of a data set.

    Attributes:
        features: (name, column numbers) of every feature, in column order.
        support: The numbers of the features that matter; None where nobody knows.
        ks: The numbers of features to keep.
        hidden: Widths of the hidden layers of its network.
        overtrain: Whether its network is trained until it fits every training row, not to the epoch that is
            best on the validation split.
    """

    name: str
    task: Task
    train: Split
    valid: Split
    test: Split
    features: tuple[Feature, ...]
    support: frozenset[int] | None
    ks: tuple[int, ...]
    hidden: tuple[int, ...]
    overtrain: bool = False

    @property
    def outputs(self) -> int:
        """Width of the network's output: one logit for two classes, one value for a regression."""
        return int(self.train.y.max()) + 1 if self.task == "multiclass" else 1

    @property
    def metric(self) -> str:
        """The metric of every figure."""
        return {"binary": "AUROC", "multiclass": "accuracy", "regression": "R2"}[self.task]

    @property
    def batch(self) -> int:
        """Rows of one training step: 128, or 32 where there are few rows."""
        return 128 if len(self.train.x) >= 1000 else 32

    @property
    def seeds(self) -> int:
        """Seeds of the tables: ten where few rows make noisy figures, three where a run is long."""
        rows, columns = self.train.x.shape
        if rows * columns > VERY_LARGE:
            return 3
        return 10 if rows < FEW_ROWS else 5

    def columns(self, features: Sequence[int]) -> list[int]:
        """The column numbers of some features, in column order."""
        return sorted(c for f in features for c in self.features[f][1])


def names(columns: int) -> list[str]:
    """Names of nameless columns."""
    return [f"x{i}" for i in range(columns)]


def singles(columns: Sequence[str]) -> tuple[Feature, ...]:
    """A feature for each column."""
    return tuple((name, (i,)) for i, name in enumerate(columns))


def synthetic(
    name: str,
    task: Task,
    x: np.ndarray,
    y: np.ndarray,
    features: tuple[Feature, ...],
    support: Sequence[int],
    seed: int,
) -> DataSet:
    """A set of known truth; as many features are asked for as matter."""
    return divided(name, task, x, y, features, (len(support),), (64, 32), seed, frozenset(support))


def divided(
    name: str,
    task: Task,
    x: np.ndarray,
    y: np.ndarray,
    features: tuple[Feature, ...],
    ks: tuple[int, ...],
    hidden: tuple[int, ...],
    seed: int,
    support: frozenset[int] | None = None,
) -> DataSet:
    """Split 60/20/20, stratified by class."""
    parts = shares(y, (0.6, 0.2, 0.2), seed, stratified=task != "regression")
    return scaled(name, task, [(x[p], y[p]) for p in parts], features, ks, hidden, support)


def shares(y: np.ndarray, fractions: Sequence[float], seed: int, *, stratified: bool) -> list[np.ndarray]:
    """The rows of each part, drawn by the seed."""
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(y == c) for c in np.unique(y)] if stratified else [np.arange(len(y))]
    parts: list[list[int]] = [[] for _ in fractions]
    for rows in kinds:
        cuts = np.round(np.cumsum(fractions)[:-1] * len(rows)).astype(int)
        for part, drawn in zip(parts, np.split(rng.permutation(rows), cuts), strict=True):
            part.extend(drawn.tolist())
    return [np.sort(np.array(part)) for part in parts]


def scaled(
    name: str,
    task: Task,
    parts: Sequence[Arrays],
    features: tuple[Feature, ...],
    ks: tuple[int, ...],
    hidden: tuple[int, ...],
    support: frozenset[int] | None = None,
) -> DataSet:
    """A set of the given splits, standardised with the training rows."""
    train_x, train_y = parts[0]
    mean, std = train_x.mean(0), train_x.std(0)
    std = np.where(std > 0, std, 1.0)  # columns constant on the training rows become zero there
    shift, scale = (train_y.mean(), train_y.std()) if task == "regression" else (0, 1)
    kind = np.float32 if task == "regression" else np.int64
    splits = [
        Split(((x - mean) / std).astype(np.float32), ((y - shift) / scale).astype(kind)) for x, y in parts
    ]
    return DataSet(name, task, *splits, features=features, support=support, ks=ks, hidden=hidden)


def package(name: str) -> Path:
    """The folder of an installed package, found without importing it (its imports may be missing)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed; benchmarks/README.md says how.")
    return Path(spec.origin).parent


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    return header, rows


def read_ts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Series (rows, channels, samples) and labels of a .ts file with equal lengths."""
    lines = path.read_text(encoding="utf-8").split("@data")[1].split("\n")
    parts = [line.strip().split(":") for line in lines if line.strip()]
    series = [[[float(v) for v in channel.split(",")] for channel in part[:-1]] for part in parts]
    return np.array(series), np.array([part[-1] for part in parts])
