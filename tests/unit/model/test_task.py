"""Metrics agree with torchmetrics."""

import pytest
import torch
from torchmetrics.functional import classification, regression

from glprune.metrics.scorer import auroc
from glprune.model.task import Task


@pytest.mark.parametrize("rows", [2, 3, 17, 1000, 40_001])
@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_that_of_torchmetrics(rows, ties):
    torch.manual_seed(rows)
    score = torch.randn(rows, dtype=torch.float64)
    target = (torch.rand(rows) < 0.3).long()
    target[:2] = torch.tensor([0, 1])
    if ties:
        score = score.round()
    ranks = torch.unique(score, return_inverse=True)[1].double()
    expected = classification.binary_auroc((ranks + 1) / (ranks.max() + 2), target)
    assert auroc(score, target == 1) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_auroc_of_one_class_is_zero(label):
    assert auroc(torch.randn(5), torch.full((5,), label) == 1) == 0


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("rmse", lambda x, y: regression.mean_squared_error(x, y, squared=False)),
        ("mae", regression.mean_absolute_error),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 1000, 40_001])
def test_errors_of_regression_are_those_of_torchmetrics(name, function, rows):
    torch.manual_seed(rows)
    output, target = torch.randn(2, rows)
    found = Task("regression", "logits", 0).metric(name, output, target)
    assert found == pytest.approx(float(function(output.double(), target.double())), rel=1e-12)
