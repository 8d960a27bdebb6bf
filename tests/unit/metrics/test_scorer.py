"""Metrics agree with scikit-learn and with PyTorch, and the bound on their change by rounding holds."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from glprune.metrics.rounding import largest_change, near_ties, output_steps
from glprune.metrics.scorer import Scorer, auroc, r2_score
from glprune.metrics.segments import decide, decision_change, defined_metrics, segment_metrics
from glprune.model.task import Task
from glprune.schema.metrics import METRICS

FORMS = [
    (Scorer("binary"), 1),
    (Scorer("binary"), 2),
    (Scorer("binary", "probabilities"), 1),
    (Scorer("binary", "probabilities"), 2),
    (Scorer("multiclass"), 4),
    (Scorer("multiclass", "probabilities"), 4),
    (Scorer("regression"), 1),
    (Scorer("distillation"), 3),
]
IDS = [f"{scorer.kind}-{scorer.output}-{width}" for scorer, width in FORMS]


def sample(scorer, width, rows=200, seed=0):
    rng = np.random.default_rng(seed)
    output = rng.normal(size=(rows, width))
    if not scorer.has_classes:
        return output, output + 0.5 * rng.normal(size=output.shape)
    if scorer.output == "probabilities":
        output = (
            1 / (1 + np.exp(-output)) if width == 1 else np.exp(output) / np.exp(output).sum(1, keepdims=True)
        )
    return output, rng.integers(0, max(2, width), rows)


@pytest.mark.parametrize(("scorer", "width"), FORMS[:6], ids=IDS[:6])
def test_log_probabilities_are_those_of_the_training_loss(scorer, width):
    output, target = sample(scorer, width)
    task = Task(scorer.kind, scorer.output, max(2, width), width=width)
    expected = task.log_probabilities(torch.from_numpy(output))
    assert np.allclose(scorer.log_probabilities(output), expected.numpy(), atol=1e-12)
    loss = float(task.loss(torch.from_numpy(output), torch.from_numpy(target)))
    assert scorer.metric("log_loss", output, target) == pytest.approx(loss)


@pytest.mark.parametrize("ties", [False, True])
def test_the_metrics_of_two_classes_are_scikit_learns(ties):
    scorer = Scorer("binary")
    output, target = sample(scorer, 1, seed=4)
    output = output.round() if ties else output
    probability = 1 / (1 + np.exp(-output[:, 0]))
    found = scorer.metrics(output, target)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(target, output[:, 0]))
    assert found["accuracy"] == sk.accuracy_score(target, probability > 0.5)
    assert found["log_loss"] == pytest.approx(sk.log_loss(target, probability))
    assert found["brier_score"] == pytest.approx(sk.brier_score_loss(target, probability))


def test_the_metrics_of_values_are_scikit_learns():
    output, target = sample(Scorer("regression"), 1)
    found = Scorer("regression").metrics(output, target[:, 0])
    assert found["r2"] == pytest.approx(sk.r2_score(target, output))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(target, output))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(target, output))
    output, target = sample(Scorer("distillation"), 3)
    pooled = sk.r2_score(target, output, multioutput="variance_weighted")
    assert r2_score(output, target) == pytest.approx(pooled)
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(output), torch.from_numpy(target)).mean()
    assert Scorer("distillation").metric("cosine", output, target) == pytest.approx(float(cosine))


def test_auroc_is_that_of_all_pairs_exactly():
    score, positive = np.array([0.0, 1.0, 1.0, 2.0, 0.0]), np.array([0, 0, 1, 1, 1], dtype=bool)
    pairs = [(p > n) + 0.5 * (p == n) for p in score[positive] for n in score[~positive]]
    assert auroc(score, positive) == sum(pairs) / len(pairs)


def each_row(steps, output):
    """The step of every row, in the shape of the outputs."""
    return steps.reshape(-1, *[1] * (output.ndim - 1))


@pytest.mark.parametrize("outlier", [1, 1e6], ids=["alike", "one large row"])
@pytest.mark.parametrize(("scorer", "width"), FORMS, ids=IDS)
def test_no_change_of_the_outputs_within_the_step_moves_a_metric_further_than_the_bound(
    scorer, width, outlier
):
    output, target = sample(scorer, width, rows=60, seed=7)
    target = target[:, 0] if scorer.kind == "regression" else target
    if scorer.output == "logits":
        output[5] *= outlier
    rng = np.random.default_rng(1)
    for relative in (1e-4, 1e-2):
        steps = output_steps(output, relative)
        bounds = {name: largest_change(scorer, name, output, target, steps) for name in METRICS[scorer.kind]}
        for _ in range(40):
            moved = output + each_row(steps, output) * rng.choice([-1.0, 1.0], size=output.shape)
            moved = moved.clip(0, 1) if scorer.output == "probabilities" else moved
            for name, bound in bounds.items():
                change = abs(scorer.metric(name, moved, target) - scorer.metric(name, output, target))
                assert change <= bound, (name, relative)


@pytest.mark.parametrize(("scorer", "width"), FORMS, ids=IDS)
def test_one_row_of_large_outputs_does_not_widen_the_bounds_of_the_others(scorer, width):
    if scorer.output == "probabilities":
        return
    output, target = sample(scorer, width, rows=300, seed=3)
    target = target[:, 0] if scorer.kind == "regression" else target
    output[5] *= 1e9
    steps = output_steps(output, 2e-5)
    for name in METRICS[scorer.kind]:
        bound = largest_change(scorer, name, output, target, steps)
        assert bound <= 1e-4 * max(1, abs(scorer.metric(name, output, target))) + 2 / 300, name


def test_the_bound_on_accuracy_counts_rows_near_a_tie_only():
    output, target = np.array([3.0, -2.0, 1e-9, 4.0]), np.array([1, 0, 1, 0])
    steps = np.full(4, 1e-6)
    bound = largest_change(Scorer("binary"), "accuracy", output, target, steps)
    assert bound == pytest.approx(0.25, abs=1e-5)
    assert near_ties(Scorer("binary"), output, steps, 0.5).tolist() == [False, False, True, False]
    assert not near_ties(Scorer("binary"), output, steps, 0.9).any()


def test_the_bound_on_the_calibration_error_counts_rows_that_can_change_their_bin_only():
    edge = np.log(4 / 11)  # a probability of 4 / 15
    logits, target = np.array([edge, -30.0, 30.0, 0.05, -1.3, 2.0]), np.array([1, 0, 1, 0, 0, 1])
    bound = largest_change(Scorer("binary"), "calibration_error", logits, target, np.full(6, 1e-5))
    assert bound == pytest.approx(2 * (11 / 15) / 6, abs=1e-4)
    assert (
        largest_change(Scorer("binary"), "calibration_error", logits[1:], target[1:], np.full(5, 1e-5)) < 2e-5
    )


def test_decisions_are_counted_by_direction():
    scorer = Scorer("binary")
    before, after = (decide(scorer, np.array(logits), 0.5) for logits in ([2.0, -1.0, 3.0], [-2.0, 1.0, 3.0]))
    found = decision_change(before, after, {0})
    assert (found.flipped, found.to_adverse, found.to_favourable) == (2, 1, 1)
    assert (found.adverse_original, found.adverse_final) == (1, 1)
    assert decision_change(before, after, None).to_adverse is None


def test_a_metric_that_the_rows_do_not_define_is_none():
    found = defined_metrics(Scorer("binary"), np.array([1.0, 2.0]), np.array([1, 1]))
    assert found["auroc"] is None
    assert found["accuracy"] == 1


def test_a_segment_of_a_constant_target_has_no_r2_and_no_interval_of_it():
    output, _ = sample(Scorer("regression"), 1, rows=30)
    found = {m.name: m for m in segment_metrics(Scorer("regression"), output, output, np.ones(30), 0)}
    assert (found["r2"].final, found["r2"].intervals) == (None, None)
    assert found["rmse"].intervals is not None
