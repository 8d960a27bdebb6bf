"""The metric with its standard error agrees with the metric itself, the bootstrap and the jackknife."""

import pytest
import torch

from glprune.model.task import Task
from glprune.model.validation_score import ValidationScore, score_output

CASES = [
    (Task("binary", "logits", 2), "auroc"),
    (Task("binary", "logits", 2), "accuracy"),
    (Task("binary", "logits", 2, width=2), "log_loss"),
    (Task("multiclass", "logits", 4, width=4), "accuracy"),
    (Task("multiclass", "logits", 4, width=4), "log_loss"),
    (Task("binary", "logits", 2), "brier_score"),
    (Task("multiclass", "logits", 4, width=4), "brier_score"),
    (Task("regression", "logits", 0), "r2"),
    (Task("regression", "logits", 0), "rmse"),
    (Task("regression", "logits", 0), "mae"),
    (Task("distillation", "logits", 0), "r2"),
    (Task("distillation", "logits", 0), "rmse"),
    (Task("distillation", "logits", 0), "cosine"),
]
NAMES = [f"{task.kind}-{metric}" for task, metric in CASES]


def rows(task, count, seed):
    """Outputs of two networks of unequal noise, and targets."""
    generator = torch.Generator().manual_seed(seed)
    width = {"binary": task.width, "multiclass": 4, "regression": 1, "distillation": 3}[task.kind]
    signal = torch.randn(count, width, generator=generator)
    if task.kind == "binary":
        margin = signal[:, 0] if width == 1 else signal[:, 1] - signal[:, 0]
        target = (margin + torch.randn(count, generator=generator) > 0.5).long()
    elif task.kind == "multiclass":
        target = (signal + torch.randn(count, 4, generator=generator)).argmax(1)
    else:
        target = signal + 0.5 * torch.randn(count, width, generator=generator)
        target = target[:, 0] if task.kind == "regression" else target
    noise = torch.randn(count, width, generator=generator)
    return signal + 0.2 * noise, signal + 1.5 * noise.flip(0), target


@pytest.mark.parametrize(("task", "metric"), CASES, ids=NAMES)
def test_the_influences_have_the_metric_as_mean(task, metric):
    output, _, target = rows(task, 301, 0)
    score = score_output(task, metric, output, target)
    assert score.value == task.metric(metric, output, target)
    assert float(score.influences.mean()) == pytest.approx(score.value, abs=1e-6)


@pytest.mark.parametrize(("task", "metric"), CASES, ids=NAMES)
def test_standard_errors_agree_with_the_bootstrap(task, metric):
    first, second, target = rows(task, 400, 1)
    scores = [score_output(task, metric, output, target) for output in (first, second)]
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randint(400, (400,), generator=generator) for _ in range(600)]
    values = torch.tensor(
        [[task.metric(metric, output[pick], target[pick]) for output in (first, second)] for pick in drawn]
    )
    assert scores[0].standard_error == pytest.approx(float(values[:, 0].std()), rel=0.15)
    gain = scores[0].gain_over(scores[1])
    differences = values[:, 0] - values[:, 1]
    assert gain.standard_error == pytest.approx(float(differences.std()), rel=0.15)
    assert gain.exceeds(2)  # the first network has less noise
    assert not scores[1].gain_over(scores[0]).exceeds(0)


def test_the_standard_error_of_auroc_counts_ties_as_delong_does():
    task = Task("binary", "logits", 2)
    output = torch.tensor([0.0, 1.0, 1.0, 2.0, 0.0, 1.0])
    target = torch.tensor([0, 0, 1, 1, 0, 1])
    score = score_output(task, "auroc", output, target)
    # placements by hand: of the positives (1, 2, 1) among (0, 1, 0) and the reverse
    positives, negatives = [5 / 6, 1.0, 5 / 6], [1.0, 2 / 3, 1.0]
    assert score.value == pytest.approx(sum(positives) / 3)
    unbiased = ((6 - 1) / 6 * 3 / (3 - 1)) ** 0.5
    assert score.influences.tolist() == pytest.approx(
        [
            score.value + 2 * unbiased * (p - score.value)
            for p in (negatives[0], negatives[1], positives[0], positives[1], negatives[2], positives[2])
        ]
    )


@pytest.mark.parametrize("positives", [2, 3, 30])
def test_the_standard_error_of_auroc_is_that_of_delong_with_few_positives(positives):
    output, _, _ = rows(Task("binary", "logits", 2), 100, 3)
    target = torch.arange(100) < positives
    score = score_output(Task("binary", "logits", 2), "auroc", output, target.long())
    margin = output.double().flatten()
    above = (margin[target][:, None] > margin[~target][None]).double()
    variance = above.mean(1).var() / positives + above.mean(0).var() / (100 - positives)
    assert score.standard_error == pytest.approx(float(variance.sqrt()), rel=1e-9)


def test_equal_networks_neither_gain_nor_lose():
    task = Task("regression", "logits", 0)
    output, _, target = rows(task, 50, 3)
    score = score_output(task, "r2", output, target)
    gain = score.gain_over(score)
    assert (gain.mean, gain.standard_error, gain.exceeds(0)) == (0.0, 0.0, False)


def test_the_lower_loss_decides_between_equal_metrics():
    first = ValidationScore("accuracy", 0.5, torch.ones(2), 0.7)
    assert first.rank > ValidationScore("accuracy", 0.5, torch.ones(2), 0.8).rank
    assert (
        ValidationScore("mae", 0.5, torch.ones(2), 0.8).rank
        > ValidationScore("mae", 0.6, torch.ones(2), 0.1).rank
    )


def test_a_perfect_regression_has_no_standard_error():
    task = Task("regression", "logits", 0)
    target = torch.arange(5.0)
    assert score_output(task, "rmse", target, target).standard_error == 0.0
