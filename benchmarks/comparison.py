"""What a results file says over many data sets at once: ranks, differences, recall and time.

A data set is the unit of every statement; its numbers of features and its seeds are repeats of it. Figures
of one set and seed are paired, as every method was given the same rows and network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

Record = dict[str, Any]
Gaps = dict[str, dict[int, float]]  # set -> seed -> mean over k of our figure minus theirs
LEVEL, DRAWS = 0.05, 4000
LEAST_SEEDS = 3  # below them a method has no rank, as ranks are over the seeds that all methods share


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over sets, 1 the best; two that differ by less than `critical` are not told apart.

    Attributes:
        p: Of Friedman's test that all methods are alike.
    """

    methods: tuple[str, ...]
    means: tuple[float, ...]
    critical: float
    p: float
    sets: int


def ranks(records: Sequence[Record]) -> Ranks | None:
    """The ranks of methods that were run on three seeds of every set at least; None of two methods."""
    sets = list(dict.fromkeys(r["set"] for r in records))
    seeds: dict[str, dict[str, set[int]]] = {}
    for r in records:
        if r["method"] != "network":
            seeds.setdefault(r["method"], {}).setdefault(r["set"], set()).add(r["seed"])
    methods = [m for m, on in seeds.items() if all(len(on.get(s, ())) >= LEAST_SEEDS for s in sets)]
    rows = [set_figures([r for r in records if r["set"] == name], methods) for name in sets]
    figures = np.array([row for row in rows if row is not None])
    if len(figures) < 2 or len(methods) < 3:
        return None
    means, order = mean_ranks(figures), np.argsort(mean_ranks(figures), kind="stable")
    return Ranks(
        tuple(methods[i] for i in order),
        tuple(float(means[i]) for i in order),
        critical_difference(len(methods), len(figures)),
        float(friedmanchisquare(*figures.T).pvalue),
        len(figures),
    )


def set_figures(records: Sequence[Record], methods: Sequence[str]) -> list[float] | None:
    """Each method's figure on one set: the mean over k of the mean over the seeds that all who answer share.

    A method without an answer for some k is last. None where no k has a shared seed.
    """
    figures = []
    for k in sorted({r["k"] for r in records if r["method"] != "network"}):
        tests: dict[str, dict[int, float]] = {m: {} for m in methods}
        for r in records:
            if r["k"] == k and r["method"] in tests and r["status"] == "done":
                tests[r["method"]][r["seed"]] = r["test"]
        shared = (
            set.intersection(*(set(found) for found in tests.values() if found))
            if any(tests.values())
            else ()
        )
        if shared:
            figures.append([np.mean([f[s] for s in shared]) if f else -np.inf for f in tests.values()])
    return np.mean(figures, axis=0).tolist() if figures else None


def mean_ranks(figures: np.ndarray) -> np.ndarray:
    """Of figures (sets, methods), greater is better; equal ones share the mean of their ranks."""
    return rankdata(-figures, axis=1).mean(axis=0)


def critical_difference(methods: int, sets: int, level: float = LEVEL) -> float:
    """Nemenyi's critical difference of mean ranks: safe for all pairs of methods at once (Demšar 2006)."""
    quantile = float(studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * sets))


def gaps(records: Sequence[Record], ours: str, theirs: str) -> Gaps:
    """The differences of two methods where both have an answer."""
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for r in records:
        if r["status"] == "done":
            found.setdefault((r["set"], r["seed"], r["k"]), {})[r["method"]] = r["test"]
    several: dict[str, dict[int, list[float]]] = {}
    for (name, seed, _), tests in found.items():
        if ours in tests and theirs in tests:
            several.setdefault(name, {}).setdefault(seed, []).append(tests[ours] - tests[theirs])
    return {
        name: {seed: float(np.mean(v)) for seed, v in by_seed.items()} for name, by_seed in several.items()
    }


def pooled(differences: Gaps, level: float = LEVEL, draws: int = DRAWS) -> tuple[float, float, float]:
    """The mean over sets, each counting the same, and its interval by bootstrap over sets, then seeds."""
    values = [np.array(list(by_seed.values())) for by_seed in differences.values()]
    rng, count = np.random.default_rng(0), len(values)
    again = np.stack([v[rng.integers(len(v), size=(draws, count, len(v)))].mean(axis=2) for v in values])
    chosen = rng.integers(count, size=(draws, count))
    means = again[chosen, np.arange(draws)[:, None], np.arange(count)].mean(axis=1)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(np.mean([v.mean() for v in values])), float(low), float(high)


def signed_rank(differences: Gaps) -> float:
    """p of Wilcoxon's signed-rank test of the sets' mean differences."""
    means = [float(np.mean(list(by_seed.values()))) for by_seed in differences.values()]
    return float(wilcoxon(means).pvalue) if any(means) else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """p values safe for all of them at once (Holm 1979)."""
    adjusted, least = [0.0] * len(ps), 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(ps) - place) * ps[i]))
        adjusted[i] = least
    return adjusted


def verdicts(differences: Gaps) -> tuple[list[str], list[str], list[str]]:
    """Sets ahead, level and behind by one standard error over the seeds."""
    ahead, level, behind = [], [], []
    for name, by_seed in differences.items():
        values = list(by_seed.values())
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        mean = float(np.mean(values))
        (ahead if mean > error else behind if mean < -error else level).append(name)
    return ahead, level, behind


def recalls(records: Sequence[Record]) -> dict[str, dict[str, list[float]]]:
    """method -> set -> recall of every answer, where the truth is known."""
    found: dict[str, dict[str, list[float]]] = {}
    for r in records:
        if r["status"] == "done" and "recall" in r and r["method"] != "network":
            found.setdefault(r["method"], {}).setdefault(r["set"], []).append(r["recall"])
    return found


def time_ratios(
    records: Sequence[Record], ours: str, clock: str, theirs: str
) -> dict[tuple[str, int], float]:
    """(set, k) -> our processor time by a clock of the records over theirs, summed over shared seeds."""
    seconds: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    for r in records:
        if r["status"] == "done" and r["method"] in (ours, theirs):
            cell = seconds.setdefault((r["set"], r["k"]), {}).setdefault(r["seed"], {})
            cell[r["method"]] = r[clock if r["method"] == ours else "cpu_seconds"]
    found = {}
    for place, by_seed in seconds.items():
        pairs = [cell for cell in by_seed.values() if len(cell) == 2]
        if pairs:
            found[place] = sum(p[ours] for p in pairs) / sum(p[theirs] for p in pairs)
    return found
