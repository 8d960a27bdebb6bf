"""95 % confidence intervals of metrics and of their differences between networks, paired over rows.

AUROC has DeLong's standard error. The other metrics are computed again on rows drawn with replacement, the
same rows for every network; the intervals are bias-corrected percentiles of these. Where there are so many
rows that this would take long, the standard error comes from the influence of every row. A calibration error
is too high on few rows by a bias that no resample shows; its interval allows for all that the bias can be.
What is not defined, such as R2 of a constant target, or metrics of outputs that are no numbers, has none.

References:
    Leone, Nelson and Nottingham (1961), "The folded normal distribution", Technometrics 3, 543-550.
    Hanley and Lippman-Hand (1983), "If nothing goes wrong, is everything all right?", JAMA 249, 1743-1745.
    Efron (1981), "Nonparametric standard errors and confidence intervals", Can. J. Stat. 9, 139-158.
    DeLong, DeLong and Clarke-Pearson (1988), "Comparing the areas under two or more correlated receiver
    operating characteristic curves", Biometrics 44, 837-845.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glprune.metrics.calibration import Floats, calibration_gaps
from glprune.metrics.influence import auroc_components, row_influences, standard_error
from glprune.metrics.scorer import as_values
from glprune.schema.metrics import METRICS, RANGES
from glprune.schema.report import Interval, PairedIntervals

if TYPE_CHECKING:
    from glprune.metrics.scorer import Scorer

RESAMPLES = 2000
_MAX_OPERATIONS = 5e9  # of all resamples of one network: three networks take three seconds
_DRAW = 50  # operations that drawing a row costs
_CHUNK = 1_000_000  # rows drawn at a time
_NORMAL = NormalDist()
_LEVEL = 0.975
_CONSTANT = 1e-12  # share of the mean square below which the variance of a resample is round-off
QUANTILE = _NORMAL.inv_cdf(_LEVEL)
MIN_ROWS = {"r2": 3}
"""Fewest rows of an interval of a metric; 2 of others. Half of the resamples of two rows are constant."""

Range = tuple[float | None, float | None]
Parts = tuple[Floats, ...]
Networks = Mapping[str, ArrayLike]


@dataclass(frozen=True)
class _Statistic:
    """A metric as a function of means over rows.

    Attributes:
        moments: What is averaged, shape (n, k).
        value: Maps means, shape (b, k), to the metric, shape (b,).
    """

    moments: Floats
    value: Callable[[Floats], Floats]


def confidence_intervals(
    scorer: Scorer, outputs: Networks, target: ArrayLike, seed: int
) -> dict[str, PairedIntervals]:
    """Compute intervals of every metric of a task.

    Args:
        scorer: Computes the metrics of the task.
        outputs: Name -> view of the outputs of a network on the same rows. Differences are taken from the
            first one.
        target: The targets.
        seed: Seed of the resamples.

    Returns:
        Metric -> its intervals; empty for a single row. What is not defined is left out.
    """
    target = np.asarray(target)
    given = {network: output for network, output in outputs.items() if not scorer.has_nan(output)}
    names = [name for name in METRICS[scorer.kind] if len(target) >= MIN_ROWS.get(name, 2)]
    if not given or not names:
        return {}
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # what overflows is not defined
        found = _measured(scorer, names, given, target, seed)
    if next(iter(outputs)) not in given:  # what differences are taken from
        found = {name: x.model_copy(update={"differences": {}}) for name, x in found.items()}
    return {name: intervals for name, intervals in found.items() if intervals.values}


def _measured(
    scorer: Scorer, names: Sequence[str], outputs: Networks, target: NDArray[Any], seed: int
) -> dict[str, PairedIntervals]:
    resampled = [name for name in names if name != "auroc"]
    statistics = {
        (name, network): _statistic(scorer, name, output, target)
        for name in resampled
        for network, output in outputs.items()
    }
    # of one network, so that the method does not depend on how many are compared
    columns = sum(statistic.moments.shape[1] for statistic in statistics.values()) // len(outputs)
    if RESAMPLES * len(target) * (columns + _DRAW) <= _MAX_OPERATIONS:
        found = _bootstrap(statistics, list(outputs), seed)
    else:
        found = {name: _by_influence(scorer, name, outputs, target) for name in resampled}
    found = {name: found[name] if name in found else _delong(scorer, outputs, target) for name in names}
    if "calibration_error" in found:
        values = {n: calibration_interval(statistics["calibration_error", n].moments) for n in outputs}
        found["calibration_error"] = found["calibration_error"].model_copy(update={"values": values})
    return {name: _of_no_error(name, intervals, target) for name, intervals in found.items()}


def calibration_interval(gaps: Floats) -> Interval:
    """Interval of a calibration error, the sum over bins of |mean gap|, that is valid on few rows.

    The absolute value of a mean with standard error s exceeds that of its expectation by sqrt(2 / pi) s on
    average where that is 0, and by less elsewhere (Leone, Nelson and Nottingham, 1961). The lower end takes
    all of this off, beside 1.96 standard errors; the upper end takes nothing off.

    Args:
        gaps: Gap of every row in the column of its bin, shape (n, n_bins).
    """
    value = float(np.abs(gaps.mean(axis=0)).sum())
    errors = gaps.std(axis=0) / math.sqrt(len(gaps))
    reach, bias = QUANTILE * math.sqrt(float(np.square(errors).sum())), math.sqrt(2 / math.pi) * errors.sum()
    return Interval(low=max(0.0, value - float(bias) - reach), high=min(1.0, value + reach))


def _of_no_error(metric: str, found: PairedIntervals, target: NDArray[Any]) -> PairedIntervals:
    """Widen intervals without a width, of networks that are always right or always wrong.

    For AUROC the rows are those of the rarer class.
    """
    if metric not in ("accuracy", "auroc"):
        return found
    rows = (
        len(target) if metric == "accuracy" else int(np.bincount(target.astype(np.int64), minlength=2).min())
    )
    reach = no_error_reach(rows)

    def widened(interval: Interval) -> Interval:
        if interval.low < interval.high or interval.low not in (0.0, 1.0):
            return interval
        return Interval(low=1 - reach, high=1.0) if interval.low else Interval(low=0.0, high=reach)

    return found.model_copy(update={"values": {n: widened(v) for n, v in found.values.items()}})


def no_error_reach(rows: float) -> float:
    """Return the largest share of errors that rows without one leave possible: 1 - 0.025 ** (1 / rows).

    References:
        Hanley and Lippman-Hand (1983), see above.
    """
    return float(1 - (1 - _LEVEL) ** (1 / max(1, rows)))


def _statistic(scorer: Scorer, metric: str, output: ArrayLike, target: NDArray[Any]) -> _Statistic:
    if metric == "calibration_error":
        gaps = calibration_gaps(scorer.log_probabilities(output), target)
        return _Statistic(gaps, lambda means: np.abs(means).sum(axis=1))
    if metric not in ("r2", "rmse"):
        return _Statistic(row_influences(scorer, metric, output, target)[:, None], lambda means: means[:, 0])
    found, wanted = as_values(output, target)
    squares = np.square(found - wanted).mean(axis=1, keepdims=True)
    if metric == "rmse":
        return _Statistic(squares, lambda means: np.sqrt(means[:, 0]))
    centred = wanted - wanted.mean(axis=0)
    total = np.square(centred).mean(axis=1, keepdims=True)
    return _Statistic(np.concatenate([squares, total, centred], axis=1), _explained)


def _explained(means: Floats) -> Floats:
    """R2 from the means of squared errors, squared targets and targets."""
    with np.errstate(divide="ignore", invalid="ignore"):  # such resamples have no value
        spread = means[:, 1] - np.square(means[:, 2:]).mean(axis=1)
        spread[spread <= _CONSTANT * means[:, 1]] = np.nan
        values: Floats = 1 - means[:, 0] / spread
    return values


def _bootstrap(
    statistics: Mapping[tuple[str, str], _Statistic], networks: list[str], seed: int
) -> dict[str, PairedIntervals]:
    """Compute every metric on the same resamples."""
    moments = np.concatenate([statistic.moments for statistic in statistics.values()], axis=1)
    rows = len(moments)
    sums = np.concatenate([moments.sum(axis=0, keepdims=True), *_resampled_sums(moments, seed)])
    ends = np.cumsum([s.moments.shape[1] for s in statistics.values()])
    parts = np.split(sums / rows, ends[:-1], axis=1)
    values = {key: s.value(part) for (key, s), part in zip(statistics.items(), parts, strict=True)}
    first, *others = networks
    return {
        name: PairedIntervals(
            method="bootstrap",
            resamples=RESAMPLES,
            seed=seed,
            values=_known((network, _bias_corrected(values[name, network])) for network in networks),
            differences=_known(
                (network, _bias_corrected(values[name, network] - values[name, first])) for network in others
            ),
        )
        for name in dict.fromkeys(name for name, _ in statistics)
    }


def _resampled_sums(moments: Floats, seed: int) -> Iterator[Floats]:
    """Yield the sums of the moments over rows drawn with replacement, shape (b, k), RESAMPLES in all."""
    generator, rows = np.random.default_rng(seed), len(moments)
    size = max(1, _CHUNK // rows)
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        drawn = generator.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        # the product of matrices of a library depends on the number of its threads in the last digit
        yield np.einsum("ij,jk->ik", times.astype(np.float64), moments)


def _known(intervals: Iterable[tuple[str, Interval | None]]) -> dict[str, Interval]:
    return {network: interval for network, interval in intervals if interval is not None}


def _interval(low: float, high: float) -> Interval | None:
    """Return an interval; None where an end is not finite."""
    return Interval(low=low, high=high) if math.isfinite(low) and math.isfinite(high) else None


def _bias_corrected(values: Floats) -> Interval | None:
    """Interval of a statistic from its value, the first one, and those on resamples.

    Resamples without a value, such as R2 where all targets are equal, are left out. None where the statistic
    itself has no value.
    """
    value, found = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not math.isfinite(value) or not len(found):
        return None
    below = float((found < value).mean() + (found == value).mean() / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 0.025), 0.975))
    levels = [_NORMAL.cdf(2 * bias + sign * QUANTILE) for sign in (-1, 1)]
    low, high = np.quantile(found, levels).tolist()
    return _interval(min(low, value), max(high, value))


def _by_influence(scorer: Scorer, metric: str, outputs: Networks, target: NDArray[Any]) -> PairedIntervals:
    parts = {
        network: (row_influences(scorer, metric, output, target),) for network, output in outputs.items()
    }
    return _normal("influence", RANGES[metric], parts)


def _delong(scorer: Scorer, outputs: Networks, target: NDArray[Any]) -> PairedIntervals:
    logs = {network: scorer.log_probabilities(output) for network, output in outputs.items()}
    parts = {n: auroc_components(found[:, 1] - found[:, 0], target == 1) for n, found in logs.items()}
    return _normal("delong", RANGES["auroc"], parts)


def _normal(
    method: Literal["delong", "influence"], limits: Range, parts: Mapping[str, Parts]
) -> PairedIntervals:
    """Intervals of 1.96 standard errors to either side.

    Args:
        method: How the parts were computed.
        limits: Least and largest value of the metric.
        parts: Network -> independent groups of rows, whose means' errors add up; the mean of the first is the
            metric.
    """
    first, *others = parts
    low, high = limits
    reach = None if low is None or high is None else high - low
    return PairedIntervals(
        method=method,
        resamples=None,
        seed=None,
        values=_known((network, _around(found, limits)) for network, found in parts.items()),
        differences=_known(
            (
                network,
                _around(
                    tuple(a - b for a, b in zip(parts[network], parts[first], strict=True)),
                    (None if reach is None else -reach, reach),
                ),
            )
            for network in others
        ),
    )


def _around(parts: Parts, limits: Range) -> Interval | None:
    """Interval around the mean of the first part; all that is possible where a part has no two rows.

    None where the mean is not finite.
    """
    low, high = limits
    if low is not None and high is not None and any(len(part) < 2 for part in parts):
        return Interval(low=low, high=high)
    value = float(parts[0].mean())
    reach = QUANTILE * math.hypot(*(standard_error(part) for part in parts))
    if not math.isfinite(value + reach):
        return None
    return Interval(
        low=value - reach if low is None else max(low, value - reach),
        high=value + reach if high is None else min(high, value + reach),
    )
