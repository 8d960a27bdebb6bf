"""Intervals against direct computations: DeLong by all pairs, the bootstrap row by row, scikit-learn's scores."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from glprune.metrics import confidence_intervals as module
from glprune.metrics.confidence_intervals import RESAMPLES, confidence_intervals
from glprune.metrics.segments import defined_metrics
from glprune.model.task import Task
from glprune.schema.metrics import METRICS
from tests.unit.model.test_validation_score import rows

BINARY = Task("binary", "logits", 2)
TASKS = {
    "binary": BINARY,
    "two columns": Task("binary", "logits", 2, width=2),
    "multiclass": Task("multiclass", "logits", 4, width=4),
    "regression": Task("regression", "logits", 0),
    "distillation": Task("distillation", "logits", 0),
}


def pair(task, count, seed=0):
    first, second, target = rows(task, count, seed)
    return {"original": first, "final": second}, target


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("most_operations", [math.inf, 0], ids=["bootstrap", "influence"])
def test_every_interval_holds_its_value_and_its_change(name, most_operations, monkeypatch):
    monkeypatch.setattr(module, "_MAX_OPERATIONS", most_operations)
    task = TASKS[name]
    outputs, target = pair(task, 150)
    found = confidence_intervals(task.scorer, outputs, target, 0)
    assert list(found) == list(METRICS[task.kind])
    for metric, intervals in found.items():
        values = {network: task.metric(metric, output, target) for network, output in outputs.items()}
        for network, value in values.items():
            assert intervals.values[network].low - 1e-6 <= value <= intervals.values[network].high + 1e-6
        change = intervals.differences["final"]
        assert change.low - 1e-6 <= values["final"] - values["original"] <= change.high + 1e-6
        method = "delong" if metric == "auroc" else "bootstrap" if most_operations else "influence"
        assert intervals.method == method
        assert (intervals.resamples, intervals.seed) == (
            (RESAMPLES, 0) if method == "bootstrap" else (None, None)
        )


def test_auroc_has_delongs_standard_error_by_all_pairs():
    outputs, target = pair(BINARY, 90)
    scores = {name: output.reshape(-1).double().numpy() for name, output in outputs.items()}
    y = target.numpy()

    def components(score):
        positive, negative = score[y == 1], score[y == 0]
        pairs = (positive[:, None] > negative).astype(float) + 0.5 * (positive[:, None] == negative)
        return pairs.mean(1), pairs.mean(0)

    def error(by_positive, by_negative):
        return math.sqrt(
            by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(by_negative)
        )

    old, new = components(scores["original"]), components(scores["final"])
    found = confidence_intervals(BINARY.scorer, outputs, target, 0)["auroc"]
    value = roc_auc_score(y, scores["final"])
    assert found.values["final"].low == pytest.approx(value - 1.959964 * error(*new), abs=1e-6)
    change = value - roc_auc_score(y, scores["original"])
    reach = 1.959964 * error(new[0] - old[0], new[1] - old[1])
    assert found.differences["final"].high == pytest.approx(change + reach, abs=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_the_bootstrap_computes_each_metric_on_the_drawn_rows(name, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 40)
    monkeypatch.setattr(module, "_CHUNK", 60 * 7)  # several chunks of unequal length
    task = TASKS[name]
    outputs, target = pair(task, 60, seed=3)
    drawn = np.random.default_rng(5)
    picks = [pick for size in (7,) * 5 + (5,) for pick in drawn.integers(60, size=(size, 60))]
    for metric in (m for m in METRICS[task.kind] if m != "auroc"):
        statistic = module._statistic(task.scorer, metric, outputs["final"].numpy(), target.numpy())
        sums = np.concatenate(list(module._resampled_sums(statistic.moments, 5)))
        expected = [task.metric(metric, outputs["final"][pick], target[pick]) for pick in picks]
        # R2 is relative to the mean of the drawn targets, as the metric itself
        assert statistic.value(sums / 60).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_drop_of_all_rows_alike_is_sure_and_equal_networks_have_no_difference():
    outputs, target = pair(BINARY, 80)
    same = confidence_intervals(
        BINARY.scorer, {"a": outputs["original"], "b": outputs["original"]}, target, 0
    )
    assert all(abs(f.differences["b"].low) < 1e-12 > abs(f.differences["b"].high) for f in same.values())
    task = TASKS["regression"]
    outputs, target = pair(task, 80)
    worse = target + 2 * (outputs["original"].reshape(-1) - target)
    found = confidence_intervals(task.scorer, {"original": outputs["original"], "final": worse}, target, 0)
    doubled = found["mae"].differences["final"], found["mae"].values["original"]
    assert doubled[0].low == pytest.approx(doubled[1].low)  # the change is the error itself


def test_the_seed_decides_the_resamples():
    outputs, target = pair(BINARY, 80)
    first, again, other = (confidence_intervals(BINARY.scorer, outputs, target, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["log_loss"].values != other["log_loss"].values


def test_intervals_hold_the_truth_about_95_times_in_100():
    task, hits, runs = TASKS["regression"], 0, 150
    for seed in range(runs):
        output, _, target = rows(task, 100, seed)
        (interval,) = confidence_intervals(task.scorer, {"a": output}, target, 0)["mae"].values.values()
        hits += interval.low <= math.sqrt(2 / math.pi * (0.5**2 + 0.2**2)) * 1 <= interval.high
    assert 0.89 * runs <= hits <= runs


def test_a_class_with_one_row_says_nothing_of_auroc_and_one_row_nothing_at_all():
    output, target = torch.tensor([0.1, 2.0, -1.0, 0.4]), torch.tensor([0, 1, 0, 0])
    found = confidence_intervals(BINARY.scorer, {"a": output, "b": -output}, target, 0)["auroc"]
    assert (found.values["a"].low, found.values["a"].high) == (0, 1)
    assert (found.differences["b"].low, found.differences["b"].high) == (-1, 1)
    assert confidence_intervals(BINARY.scorer, {"a": output[:1]}, target[:1], 0) == {}


def test_the_brier_score_is_scikit_learns():
    outputs, target = pair(BINARY, 70)
    probability = torch.sigmoid(outputs["final"].reshape(-1).double()).numpy()
    value = BINARY.metric("brier_score", outputs["final"], target)
    assert value == pytest.approx(brier_score_loss(target.numpy(), probability))
    task = TASKS["multiclass"]
    outputs, target = pair(task, 70)
    probabilities = outputs["final"].double().softmax(1)
    by_hand = (probabilities - torch.eye(4)[target]).square().sum(1).mean()
    assert task.metric("brier_score", outputs["final"], target) == pytest.approx(float(by_hand))


def test_the_calibration_error_weighs_the_gap_of_each_bin_by_its_rows():
    task = Task("binary", "probabilities", 2)
    probability = torch.tensor([0.01, 0.02, 0.5, 0.5, 0.5, 1.0])
    target = torch.tensor([0, 1, 1, 1, 0, 1])
    gaps = (2 * abs(0.015 - 1 / 2) + 3 * abs(0.5 - 2 / 3) + 1 * 0.0) / 6
    assert task.metric("calibration_error", probability, target) == pytest.approx(gaps, abs=1e-6)
    task = Task("multiclass", "probabilities", 3, width=3)
    rows_ = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.4, 0.3, 0.3]])
    gaps = (2 * abs(0.9 - 1 / 2) + abs(0.4 - 1)) / 3
    value = task.metric("calibration_error", rows_, torch.tensor([0, 2, 0]))
    assert value == pytest.approx(gaps, abs=1e-6)


def test_a_network_without_an_error_on_few_rows_is_not_certain():
    target = torch.tensor([0] * 20 + [1] * 5)
    right = (target.double() - 0.5)[:, None]
    found = confidence_intervals(BINARY.scorer, {"original": right, "final": -right}, target, 0)
    accuracy, auroc = found["accuracy"].values, found["auroc"].values
    assert accuracy["original"].high == auroc["original"].high == 1
    assert accuracy["original"].low ** 25 == pytest.approx(0.025)  # binomial: 25 of 25 at the lower end
    assert auroc["original"].low ** 5 == pytest.approx(0.025)
    assert (accuracy["final"].low, auroc["final"].low) == (0, 0)
    assert (1 - accuracy["final"].high) ** 25 == pytest.approx(0.025)


@pytest.mark.parametrize("most_operations", [module._MAX_OPERATIONS, 0])
@pytest.mark.parametrize("count", [60, 174, 500, 2000])
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.65])  # calibration errors of 0, 0.05 and 0.1
def test_the_interval_of_a_calibration_error_holds_the_truth(monkeypatch, most_operations, count, shift):
    monkeypatch.setattr(module, "_MAX_OPERATIONS", most_operations)
    monkeypatch.setattr(module, "RESAMPLES", 2)  # the values' intervals need none
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200_000) * 1.8
    stated, true = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-logits - shift))
    truth = float(np.abs(np.bincount((stated * 15).astype(int), stated - true, 15)).sum() / len(true))
    assert truth == pytest.approx({0.0: 0, 0.3: 0.048, 0.65: 0.103}[shift], abs=0.003)
    hits, highs = 0, []
    for _ in range(40):
        drawn = rng.integers(len(true), size=count)
        target = (rng.random(count) < true[drawn]).astype(int)
        outputs = {"original": logits[drawn][:, None]}
        found = confidence_intervals(BINARY.scorer, outputs, target, 0)
        interval = found["calibration_error"].values["original"]
        hits += interval.low <= truth <= interval.high
        highs.append(interval.high)
    assert hits >= 36
    assert np.mean(highs) - truth < 2.2 / math.sqrt(count)  # not valid by being everything


ODD_TARGETS = {
    "constant": np.full(40, 2.0),
    "one of its own": np.eye(40)[0],
    "nearly constant": 1 + 1e-12 * np.random.default_rng(0).normal(size=40),
    "huge": 1e300 * np.random.default_rng(0).normal(size=40),
    "tiny": 1e-200 * np.random.default_rng(0).normal(size=40),
}


@pytest.mark.parametrize("most_operations", [math.inf, 0], ids=["bootstrap", "influence"])
@pytest.mark.parametrize("rows_", [0, 1, 2, 3, 40])
@pytest.mark.parametrize("name", ODD_TARGETS)
def test_what_is_not_defined_has_no_interval(name, rows_, most_operations, monkeypatch):
    monkeypatch.setattr(module, "_MAX_OPERATIONS", most_operations)
    target = ODD_TARGETS[name][:rows_]
    outputs = {"original": np.linspace(-1, 1, 40)[:rows_], "final": np.linspace(-1, 2, 40)[:rows_]}
    scorer = TASKS["regression"].scorer
    found = confidence_intervals(scorer, outputs, target, 0)
    assert set(found) <= {"r2", "rmse", "mae"}
    assert ("r2" in found) <= (rows_ > 2 and name != "constant")
    assert ("mae" in found) == (rows_ > 1) or name == "huge"
    for metric, values in defined_metrics(scorer, outputs["final"], target).items() if rows_ else ():
        if values is not None and metric in found:
            interval = found[metric].values["final"]
            assert interval.low <= values * (1 + 1e-6) + 1e-6
            assert interval.high >= values * (1 - 1e-6) - 1e-6


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression", "distillation"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_without_numbers_has_no_interval_and_the_other_has(kind, bad):
    task = TASKS[kind]
    outputs, target = pair(task, 40)
    good = {name: output.double().numpy().copy() for name, output in outputs.items()}
    good["original"][3] = bad
    found = confidence_intervals(task.scorer, good, target.numpy(), 0)
    alone = confidence_intervals(task.scorer, {"final": good["final"]}, target.numpy(), 0)
    for name, intervals in found.items():
        assert intervals.values["final"] == alone[name].values["final"]
    assert set(found) == set(METRICS[kind])
    if math.isnan(bad) or kind != "binary":
        assert all(i.differences == {} for i in found.values())
        assert all("original" not in i.values for i in found.values())
        assert set(defined_metrics(task.scorer, good["original"], target.numpy()).values()) == {None}
