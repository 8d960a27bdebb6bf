"""How wide intervals may be: no right one is refused, by `verify` or on own rows, and wide ones are."""

import numpy as np
import pytest

from glprune.audit.checks.figures.interval_reach import TestRows as Rows
from glprune.audit.checks.figures.interval_reach import farthest
from glprune.audit.evaluation.figures import Figure, judge
from glprune.metrics import confidence_intervals as module
from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.metrics.scorer import Scorer
from glprune.metrics.segments import defined_metrics
from glprune.schema.report import Interval


def drawn(rng, kind, rows, skill):
    """Outputs and targets of a network that is as good, or as overconfident, as said."""
    separation, scale = skill
    if kind == "regression":
        target = rng.normal(size=rows)
        return (target + rng.standard_t(3, size=rows) / (1 + separation))[:, None], target
    if kind == "binary":
        target = (rng.random(rows) < 0.3).astype(int)
        return scale * ((2 * target - 1) * separation + 1.3 * rng.normal(size=rows))[:, None], target
    target = rng.integers(0, 4, rows)
    return scale * (1.5 * separation * np.eye(4)[target] + rng.normal(size=(rows, 4))), target


SKILLS = [(0.0, 0.01), (0.3, 1), (1, 5), (2.5, 1), (2.5, 4), (4, 1)]


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("skill", SKILLS)
def test_no_right_interval_reaches_further_than_value_and_rows_allow(kind, skill, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 300)
    rng, scorer, bounded = np.random.default_rng(0), Scorer(kind), 0
    for rows in (5, 20, 48, 200, 1000):
        for _ in range(8):
            output, target = drawn(rng, kind, rows, skill)
            found = confidence_intervals(scorer, {"final": output}, target, 0)
            values = defined_metrics(scorer, output, target)
            classes = (int((target == 1).sum()), int((target == 0).sum())) if kind == "binary" else None
            known = Rows(rows, classes, 1.0 if kind == "binary" else 2.0)
            for name, value in values.items():
                reach = farthest(name, value, values["brier_score"], known) if value is not None else None
                if reach is not None:
                    interval, bounded = found[name].values["final"], bounded + 1
                    assert value - interval.low <= reach[0] + 1e-9, (name, rows)
                    assert interval.high - value <= reach[1] + 1e-9, (name, rows)
    assert bounded >= 80


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("skill", SKILLS)
def test_right_intervals_are_not_too_wide_for_own_rows(kind, skill, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 300)
    rng, scorer, checked = np.random.default_rng(1), Scorer(kind), 0
    for stated_rows, rows in ((60, 400), (400, 60), (200, 200)) * 3:
        (known, stated), (own, found) = (measured(rng, scorer, n, skill) for n in (stated_rows, rows))
        for name in stated:
            if stated[name] is None or found[name] is None:
                continue
            interval, rarer = own[0][name].values["final"], own[1] if name == "auroc" else None
            right = Figure(
                "all rows",
                "final",
                name,
                stated[name],
                found[name],
                stated_interval=known[0][name].values["final"],
                interval=interval,
                stated_rows=stated_rows,
                rows=rows,
                rarer=rarer,
            )
            (judged,) = judge([right], "own rows")
            assert "times as wide" not in judged.reason, (name, stated_rows, rows)
            checked += 1
    assert checked >= 20


def measured(rng, scorer, rows, skill):
    output, target = drawn(rng, scorer.kind, rows, skill)
    found = confidence_intervals(scorer, {"final": output}, target, 0)
    rarer = int(min((target == 0).sum(), (target == 1).sum()))
    return (found, rarer), defined_metrics(scorer, output, target)


@pytest.mark.parametrize(
    ("metric", "value", "half"),
    [
        ("auroc", 0.85, 0.02),
        ("log_loss", 0.4, 0.03),
        ("brier_score", 0.12, 0.01),
        ("calibration_error", 0.05, 0.02),
        ("rmse", 1.0, 0.05),
        ("r2", 0.6, 0.03),
    ],
)
@pytest.mark.parametrize("ratio", [0.25, 1, 4])
def test_an_interval_that_is_many_times_as_wide_disagrees_whatever_its_value(metric, value, half, ratio):
    rows, times = 1000, 12 / np.sqrt(ratio)
    stated = Interval(low=value - times * half, high=value + times * half)
    own = Interval(low=value - half, high=value + half)
    figure = Figure(
        "all rows",
        "final",
        metric,
        value,
        value,
        stated_interval=stated,
        interval=own,
        stated_rows=int(rows * ratio),
        rows=rows,
        rarer=300 if metric == "auroc" else None,
    )
    (judged,) = judge([figure], "own rows")
    assert judged.agrees is False
    assert "12.0 times as wide as its rows allow" in judged.reason
