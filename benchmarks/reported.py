"""Kinds of data on which an independent benchmark found glprune behind, built anew for development."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from dataset import DataSet, Feature, divided, names, singles, synthetic

WIDTHS = (64, 32)


def overtrained(seed: int) -> DataSet:
    """2,000 rows, 50 columns, 8 matter; a fifth of all labels is flipped, and its network fits them all."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2000, 50))
    signal = x[:, 0] - x[:, 1] + np.tanh(2 * x[:, 2]) + x[:, 3] * x[:, 4]
    signal = signal + np.abs(x[:, 5]) - np.sin(2 * x[:, 6]) + 0.8 * x[:, 7]
    y = (signal > np.median(signal)) ^ (rng.random(2000) < 0.2)
    made = synthetic("overtrained", "binary", x, y.astype(np.int64), singles(names(50)), range(8), seed)
    return replace(made, overtrain=True)


def spectra(seed: int) -> DataSet:
    """215 spectra of 100 channels: broad bands of five substances, a baseline, scatter; the target is one.

    Neighbouring channels correlate by more than 0.99. The target saturates: a linear model is not enough.
    """
    rng = np.random.default_rng(seed)
    place = np.linspace(0, 1, 100)
    centres, widths = np.array([0.15, 0.35, 0.5, 0.62, 0.85]), np.array([0.09, 0.12, 0.07, 0.15, 0.1])
    bands = np.exp(-(((place - centres[:, None]) / widths[:, None]) ** 2) / 2)
    amounts = rng.gamma(2.0, 0.5, size=(215, 5))
    scatter = 1 + 0.1 * rng.standard_normal((215, 1))
    baseline = rng.normal(0, 0.3, (215, 1)) + rng.normal(0, 0.3, (215, 1)) * place
    x = scatter * (amounts @ bands) + baseline + 0.005 * rng.standard_normal((215, 100))
    y = np.tanh(amounts[:, 2]) + 0.02 * rng.standard_normal(215)
    return divided("spectra", "regression", x, y, singles(names(100)), (4, 10), WIDTHS, seed)


def expression(seed: int) -> DataSet:
    """190 samples of 7 classes, 500 genes in modules that rise and fall together; 10 mark each class."""
    rng = np.random.default_rng(seed)
    y = np.arange(190) % 7
    module = rng.integers(0, 25, size=500)
    x = 0.8 * rng.standard_normal((190, 25))[:, module] + rng.standard_normal((190, 500))
    markers = rng.permutation(500)[:70].reshape(7, 10)
    for label, genes in enumerate(markers):
        x[np.ix_(y == label, genes)] += rng.uniform(2.0, 4.0, size=10)
    return divided("expression", "multiclass", x, y, singles(names(500)), (4, 10, 20), WIDTHS, seed)


def staff(seed: int) -> DataSet:
    """1,470 employees, 30 fields of 2 to 9 levels, 16 % leave; 12 fields matter, none of them much."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(2, 10, size=30)
    codes = [rng.choice(n, size=1470, p=rng.dirichlet(np.full(n, 3.0))) for n in levels]
    effects = rng.normal(0, np.linspace(0.8, 0.2, 12)[:, None], size=(12, 9))
    logit = np.sum([effect[code] for effect, code in zip(effects, codes[:12], strict=True)], axis=0)
    for a, b in ((0, 1), (2, 5)):
        logit = logit + np.where((codes[a] + codes[b]) % 2 == 0, 0.5, -0.5)
    logit = logit + rng.logistic(size=1470)
    y = (logit > np.quantile(logit, 0.84)).astype(np.int64)
    x, features = one_hot(codes, levels.tolist())
    return divided("staff", "binary", x, y, features, (6, 12), WIDTHS, seed)


def copies(seed: int) -> DataSet:
    """3,000 rows, 40 columns: 6 originals matter, each has two copies with correlation 0.98, 22 are noise.

    Recall counts the originals, as the target is made of them: a copy costs accuracy.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3000, 40))
    for column in range(6, 18):
        x[:, column] = 0.98 * x[:, column % 6] + np.sqrt(1 - 0.98**2) * x[:, column]
    signal = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + np.abs(x[:, 3]) + np.tanh(2 * x[:, 4]) - 0.8 * x[:, 5]
    y = signal + 0.15 * rng.standard_normal(3000)
    return synthetic("copies", "regression", x, y, singles(names(40)), range(6), seed)


def interactions(seed: int) -> DataSet:
    """5,000 rows, 34 columns, 4 matter, none of them alone: the sign of one product, and another product."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5000, 34))
    logit = 2 * np.sign(x[:, 0] * x[:, 1]) + 2.5 * x[:, 2] * x[:, 3]
    y = (rng.random(5000) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return synthetic("interactions", "binary", x, y, singles(names(34)), range(4), seed)


def one_hot(codes: list[np.ndarray], levels: list[int]) -> tuple[np.ndarray, tuple[Feature, ...]]:
    """Columns of categorical features, and the columns of each."""
    x = np.concatenate([np.eye(n)[code] for n, code in zip(levels, codes, strict=True)], axis=1)
    ends = np.cumsum(levels)
    named = enumerate(zip(levels, ends, strict=True))
    return x, tuple((f"f{i}", tuple(range(end - n, end))) for i, (n, end) in named)


SETS: tuple[Callable[[int], DataSet], ...] = (overtrained, spectra, expression, staff, copies, interactions)
