"""The one network of a data set, its training, and the metric; the same for every method."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from dataset import DataSet, Split
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

EPOCHS, PATIENCE, LR = 300, 30, 1e-3
OVERTRAIN_EPOCHS = 2000  # at most


def build(columns: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """A perceptron with ReLU: (rows, columns) -> (rows, outputs) logits or values."""
    widths = [columns, *hidden]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def fit(network: nn.Module, data: DataSet, columns: Sequence[int], seed: int) -> nn.Module:
    """Train with Adam; the epoch that is best on the validation split is kept."""
    best, best_score, since = copy.deepcopy(network.state_dict()), _valid_score(network, data, columns), 0
    for _ in epochs(network, data, columns, seed, EPOCHS):
        now, since = _valid_score(network, data, columns), since + 1
        if now > best_score:
            best, best_score, since = copy.deepcopy(network.state_dict()), now, 0
        if since >= PATIENCE:
            break
    network.load_state_dict(best)
    return network.eval()


def overfit(network: nn.Module, data: DataSet, columns: Sequence[int], seed: int) -> nn.Module:
    """Train with Adam until every training row is fitted, whatever the validation split says."""
    for _ in epochs(network, data, columns, seed, OVERTRAIN_EPOCHS):
        prediction = predict(network, data.train.x[:, columns], data.task)
        if _all_fitted(data, prediction):
            break
    return network.eval()


def _all_fitted(data: DataSet, prediction: np.ndarray) -> bool:
    """Whether every class is right, or every value (of standard deviation 1) closer than a tenth."""
    y = data.train.y
    if data.task == "regression":
        return bool((np.abs(prediction - y) < 0.1).all())
    return bool(
        ((prediction > 0.5) == y).all() if data.task == "binary" else (prediction.argmax(1) == y).all()
    )


def epochs(
    network: nn.Module, data: DataSet, columns: Sequence[int], seed: int, count: int
) -> Iterator[None]:
    """Epochs of Adam on the training rows."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(data.train.x[:, columns]), torch.from_numpy(data.train.y)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    for _ in range(count):
        network.train()
        for rows in torch.randperm(len(x)).split(data.batch):
            optimizer.zero_grad()
            loss(network(x[rows]), y[rows], data.task).backward()
            optimizer.step()
        yield


def loss(output: Tensor, y: Tensor, task: str) -> Tensor:
    """Mean loss of a batch."""
    if task == "multiclass":
        return functional.cross_entropy(output, y)
    if task == "binary":
        return functional.binary_cross_entropy_with_logits(output[:, 0], y.float())
    return functional.mse_loss(output[:, 0], y)


@torch.no_grad()
def predict(network: nn.Module, x: np.ndarray, task: str) -> np.ndarray:
    """Probabilities (rows, classes), probability of class 1 (rows,) or values (rows,)."""
    return squash(network.eval()(torch.from_numpy(x)).numpy(), task)


def squash(output: np.ndarray, task: str) -> np.ndarray:
    """What `predict` returns, from logits or values (rows, outputs)."""
    if task == "multiclass":
        return torch.softmax(torch.from_numpy(output).double(), 1).numpy()
    return (
        torch.sigmoid(torch.from_numpy(output[:, 0]).double()).numpy() if task == "binary" else output[:, 0]
    )


def score(task: str, y: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """The metric, and minus the log loss (classes), which orders predictions of equal metric."""
    if task == "regression":
        value = float(r2_score(y, prediction))
        return value, value
    clipped = np.clip(prediction, 1e-12, 1 - 1e-12)
    if task == "binary":
        return float(roc_auc_score(y, prediction)), -float(log_loss(y, clipped))
    shares = clipped / clipped.sum(1, keepdims=True)
    worst = -float(log_loss(y, shares, labels=range(shares.shape[1])))
    return float(accuracy_score(y, prediction.argmax(1))), worst


def _valid_score(network: nn.Module, data: DataSet, columns: Sequence[int]) -> tuple[float, float]:
    prediction = predict(network, data.valid.x[:, columns], data.task)
    if not np.isfinite(prediction).all():
        return -np.inf, -np.inf
    return score(data.task, data.valid.y, prediction)


def train(data: DataSet, seed: int) -> nn.Module:
    """The trained network of a set, over all columns."""
    torch.manual_seed(seed)
    columns = range(data.train.x.shape[1])
    network = build(len(columns), data.hidden, data.outputs)
    return (overfit if data.overtrain else fit)(network, data, list(columns), seed)


def refits(data: DataSet, trained: nn.Module, features: Sequence[int], seed: int) -> list[nn.Module]:
    """The common refit on some features' columns: once from the trained weights, once from scratch."""
    columns = data.columns(features)
    torch.manual_seed(seed)
    scratch = build(len(columns), data.hidden, data.outputs)
    warm = copy.deepcopy(scratch)
    state = dict(trained.state_dict())
    state["0.weight"] = state["0.weight"][:, columns]
    warm.load_state_dict(state)
    return [fit(network, data, columns, seed) for network in (warm, scratch)]


def both(network: nn.Module, data: DataSet, features: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a network over some features' columns on the validation and test split."""
    columns = data.columns(features)
    splits: tuple[Split, Split] = (data.valid, data.test)
    valid, test = (predict(network, split.x[:, columns], data.task) for split in splits)
    return valid, test
