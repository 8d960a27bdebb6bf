"""Measure the network as it was loaded, and judge whether it is the network that was trained.

A network whose inputs were scaled elsewhere, or whose columns or classes have another order, runs and can
even be pruned and refitted; the report would then praise the refit. What gives it away are its metrics before
anything is changed. Every comparison allows for its standard error, so that few rows accuse no weak network.

References:
    Mann and Whitney (1947), "On a test of whether one of two random variables is stochastically larger than
    the other", Ann. Math. Stat. 18, 50-60: the standard error of the area under the ROC curve at chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from glprune._wording import counted
from glprune.metrics.influence import standard_error
from glprune.metrics.scorer import auroc
from glprune.model.outputs import as_array
from glprune.model.validation_score import row_influences
from glprune.schema.metrics import HIGHER_IS_BETTER, inline, metric_text

if TYPE_CHECKING:
    from glprune.model.task import Task

Predictions = Mapping[str, tuple[Tensor, Tensor]]
"""Split -> the outputs that the task is measured on, and the targets, both rows first."""
ALL = "all rows"
_ERRORS = 2.0  # standard errors that a finding on all rows exceeds
_SPLIT_ERRORS = 3.0  # on one of several splits: one of them is the worst by chance
_CHANCE, _NEAR, _WEAK = 0.5, 0.55, 0.6  # AUROC: at chance, near it, and of a weak network
_ODDS, _GROSS_ERRORS = 2.0, 3.0  # of mean score and base rate; a gross disagreement exceeds both
_HOPELESS_R2 = -0.5  # of all rows; no weak network is worse, whatever the standard error
_BIAS_ERRORS = 3.0  # standard errors of the mean residual
_MAX_CLASSES = 20  # whose ranks are compared, the most frequent first
_IS_SUM = 1e-3
_VISIBLE = 0.005  # gain of a metric that is worth a hint


@dataclass(frozen=True)
class SplitMetrics:
    """Every metric of the original network on one split.

    Attributes:
        split: ``train``, ``valid`` or ``test``.
        rows: Number of its rows.
        metrics: Metric -> value.
    """

    split: str
    rows: int
    metrics: Mapping[str, float]

    def __str__(self) -> str:
        values = ", ".join(f"{inline(name)} {metric_text(value)}" for name, value in self.metrics.items())
        return f"{self.split} ({counted(self.rows, 'row')}) {values}"


@dataclass(frozen=True)
class Original:
    """What was measured of the original network.

    Attributes:
        splits: Its metrics on every split; empty without labels.
        doubts: What speaks against its being the network that was trained, in words.
        hints: What would make it predict better as it is, where nothing speaks against it.
    """

    splits: tuple[SplitMetrics, ...] = ()
    doubts: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def measure_original(task: Task, predictions: Predictions, labels: Sequence[str] = ()) -> Original:
    """Measure the outputs of the original network on every split and compare them with chance."""
    splits = [
        SplitMetrics(name, len(target), task.metrics(output, target))
        for name, (output, target) in predictions.items()
    ]
    return Original(tuple(splits), tuple(find_doubts(task, predictions, labels)))


def find_doubts(task: Task, predictions: Predictions, labels: Sequence[str] = ()) -> list[str]:
    """Return what speaks against the network's being the one that was trained; empty if nothing does.

    Args:
        task: Computes the metrics.
        predictions: Outputs of the original network.
        labels: The classes in the order of the outputs; without them classes are numbered from 1.
    """
    if not predictions:
        return []
    pooled = _pooled(predictions)
    sets = {ALL: pooled, **predictions}
    if task.kind == "regression":
        found = [_explains_nothing(task, name, *pair) for name, pair in sets.items()]
        return [text for text in found if text][:1]
    ranks = [_ranks_at_random(task, name, *pair) for name, pair in sets.items()]
    found = [
        *[text for text in ranks if text][:1],
        _exceeds_priors(task, *pooled),
        _misses_base_rate(task, *pooled, labels),
        _is_read_wrongly(task, *pooled),
    ]
    return [text for text in found if text]


def unmet_expectations(task: Task, predictions: Predictions, expected: Mapping[str, float]) -> list[str]:
    """Return the expected metrics that the test split contradicts, with what was found.

    Args:
        task: Computes the metrics.
        predictions: Outputs of the original network.
        expected: Metric -> value.
    """
    output, target = predictions["test"]
    unmet = []
    for name, value in expected.items():
        found = task.metric(name, output, target)
        error = standard_error(row_influences(task, name, output, target))
        if not abs(found - value) <= _ERRORS * error + rounding(value):
            unmet.append(f"{name} {value:g} is expected and {found:.4f} +- {error:.4f} was found")
    return unmet


def rounding(value: float) -> float:
    """Return half a unit of the last digit in which a number is written."""
    decimals = repr(value).partition(".")[2]
    return 0.5 * 10.0 ** -len(decimals) if decimals.isdecimal() else 0.0


def main_metric(task: Task, predictions: Predictions) -> float:
    """Return the task's default metric on the rows of all splits."""
    return task.metric(task.default_metric, *_pooled(predictions))


def sure_gain(task: Task, before: Predictions, after: Predictions) -> bool:
    """Whether other predictions for the same rows have a surely and visibly better default metric."""
    name = task.default_metric
    old, new = (row_influences(task, name, y, target) for y, target in map(_pooled, (before, after)))
    gain = new - old if HIGHER_IS_BETTER[name] else old - new
    return bool(gain.mean() > max(_SPLIT_ERRORS * standard_error(gain), _VISIBLE))


def _pooled(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Return outputs and targets of all splits together."""
    outputs, targets = zip(*predictions.values(), strict=True)
    return torch.cat(outputs), torch.cat(targets)


def _ranks_at_random(task: Task, name: str, output: Tensor, target: Tensor) -> str | None:
    """Compare the ranks of the scores with chance: one class against the others, mean over classes."""
    logs = task.log_probabilities(output.double())
    counts = torch.bincount(target, minlength=logs.shape[1])
    number = min(_MAX_CLASSES, len(counts)) if task.kind == "multiclass" else 1
    classes = [1] if number == 1 else counts.argsort(descending=True)[:number].tolist()
    present = [c for c in classes if 0 < counts[c] < len(target)]
    if not present:
        return None
    area = sum(auroc(as_array(_margin(logs, c)), as_array(target == c)) for c in present) / len(present)
    error = sum(_chance_error(int(counts[c]), len(target)) for c in present) / len(present)
    reached = area + _errors(name) * error
    what = "AUROC" if task.kind == "binary" else "mean AUROC of a class against the others"
    if reached < _CHANCE:
        return f"{what} {area:.4f} on {_of(name, target)}: worse than chance"
    if area < _NEAR and reached < _WEAK:
        return f"{what} {area:.4f} on {_of(name, target)}: near chance"
    return None


def _margin(logs: Tensor, number: int) -> Tensor:
    """Return the log-odds of a class, shape (n,), up to the loss of digits where it is certain."""
    others = torch.cat([logs[:, :number], logs[:, number + 1 :]], dim=1)
    return logs[:, number] - others.logsumexp(dim=1)


def _chance_error(positive: int, rows: int) -> float:
    """Return the standard error of the area under the ROC curve of random scores."""
    return math.sqrt((rows + 1) / (12 * positive * (rows - positive)))


def _exceeds_priors(task: Task, output: Tensor, target: Tensor) -> str | None:
    """Compare the log loss with that of the class shares, row by row."""
    losses = functional.nll_loss(task.log_probabilities(output.double()), target, reduction="none")
    shares = _shares(target, task.classes)
    excess = losses + shares.log()[target]
    if excess.mean() > _ERRORS * standard_error(excess):
        return (
            f"log loss {float(losses.mean()):.4f} on {_of(ALL, target)}: more than the "
            f"{float((losses - excess).mean()):.4f} of the class shares alone"
        )
    return None


def _misses_base_rate(task: Task, output: Tensor, target: Tensor, labels: Sequence[str]) -> str | None:
    """Compare the mean score of a class, the one it misses most, with the share of its rows."""
    scores = task.log_probabilities(output.double()).exp()
    scores = scores / scores.sum(dim=1, keepdim=True)
    shares = _shares(target, scores.shape[1])
    number = int((scores.mean(dim=0) - shares).abs().argmax()) if task.kind == "multiclass" else 1
    score, share = float(scores[:, number].mean()), float(shares[number])
    error = standard_error(scores[:, number] - (target == number).double())
    odds = abs(_log_odds(score) - _log_odds(share))
    if abs(score - share) > _GROSS_ERRORS * error and odds > math.log(_ODDS):
        named = repr(labels[number]) if labels else f"{number + 1}"
        return f"mean score of class {named} {score:.3f} for {share:.3f} of the rows"
    return None


def _is_read_wrongly(task: Task, output: Tensor, target: Tensor) -> str | None:
    """Find probabilities that are read as logits: they sum to 1, or predict better as they are."""
    if task.output != "logits" or bool(((output < 0) | (output > 1)).any()):
        return None
    if task.width > 1:
        is_sum = bool(((output.double().sum(dim=1) - 1).abs() < _IS_SUM).all())
        return f"its {task.width} outputs sum to 1 in every row: they are probabilities" if is_sum else None
    as_logits = row_influences(task, "log_loss", output, target)
    flat = output.double().reshape(-1).clamp(1e-12, 1 - 1e-12)
    as_probabilities = functional.binary_cross_entropy(flat, target.double(), reduction="none")
    gain = as_logits - as_probabilities
    if gain.mean() > _ERRORS * standard_error(gain) and len(target) > 1:
        return "its outputs lie in [0, 1] and predict better as probabilities than as logits"
    return None


def _explains_nothing(task: Task, name: str, output: Tensor, target: Tensor) -> str | None:
    """Compare squared errors with those of the mean of the targets, row by row."""
    r2 = task.metric("r2", output, target)
    values = target.double()
    gain = (values - values.mean()).square() - (values - output.double().reshape(-1)).square()
    is_sure = gain.mean() + _errors(name) * standard_error(gain) < 0 and len(target) > 1
    residual = values - output.double().reshape(-1)
    is_biased = abs(residual.mean()) > _BIAS_ERRORS * standard_error(residual)  # as on a logarithmic scale
    if r2 <= 0 and (is_sure or (name == ALL and (is_biased or r2 <= _HOPELESS_R2))):
        return f"{inline('r2')} {metric_text(r2)} on {_of(name, target)}: worse than the mean of the target"
    return None


def _shares(target: Tensor, classes: int) -> Tensor:
    """Return the share of the rows of each class, shape (classes,), float64."""
    return torch.bincount(target, minlength=classes).double() / len(target)


def _log_odds(share: float) -> float:
    clamped = min(max(share, 1e-12), 1 - 1e-12)
    return math.log(clamped / (1 - clamped))


def _errors(name: str) -> float:
    return _ERRORS if name == ALL else _SPLIT_ERRORS


def _of(name: str, target: Tensor) -> str:
    return f"all {len(target):,} rows" if name == ALL else f"the {len(target):,} rows of {name}"
