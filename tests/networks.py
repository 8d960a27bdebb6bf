"""Small networks and splits the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from glprune.data import TensorSplit


class WideAndDeep(nn.Module):
    """The raw input is read by three layers, one of them through a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(6, 4)
        self.deep = nn.Linear(10, 5)
        self.out = nn.Linear(5, 2)
        self.wide = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.cat([x, torch.relu(self.branch(x))], dim=1)
        return self.out(torch.relu(self.deep(hidden))) + self.wide(x)


class ResidualNorm(nn.Module):
    """A residual stream under LayerNorm, whose units cannot be cut exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.entry(x)
        return self.out(stream + torch.relu(self.inner(self.norm(stream))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 4)
        self.cell = nn.GRU(4, 4, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(self.entry(x)[:, None, :])[0][:, -1])


def mlp(act: type[nn.Module] = nn.ReLU, norm: bool = False, inputs: int = 6, outputs: int = 1) -> nn.Module:
    """A perceptron of widths inputs-7-5-outputs, with BatchNorm of non-trivial statistics on request."""

    def norms(width: int) -> list[nn.Module]:
        if not norm:
            return []
        layer = nn.BatchNorm1d(width)
        layer.running_mean = torch.randn(width)
        layer.running_var = torch.rand(width) + 0.5
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
        return [layer]

    return nn.Sequential(
        *norms(inputs),
        nn.Linear(inputs, 7),
        *norms(7),
        act(),
        nn.Linear(7, 5),
        *norms(5),
        act(),
        nn.Linear(5, outputs),
    ).eval()


def convolution() -> nn.Module:
    """A network over 3 sensor channels of 8 steps, flattened after the convolutions."""
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Conv1d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 2),
    ).eval()


def split(inputs: Tensor, target: Tensor) -> TensorSplit:
    return TensorSplit((inputs,), target)


def fit_binary(network: nn.Module, inputs: tuple[Tensor, ...], target: Tensor, steps: int) -> None:
    """Train a network of one logit on all rows at once, in place; ``target`` is 0.0 or 1.0, shape (rows,)."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(*inputs)[:, 0], target).backward()
        optimizer.step()


def write_planted(
    folder: Path, network: str, recipe: str, rows: int, row_group_size: int | None = None
) -> Path:
    """A folder with eight columns, a label that needs three of them, a network trained on it and a recipe.

    ``network`` is a module whose ``build()`` makes the network of one logit.
    """
    x = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    y = x[:, 0] + x[:, 1] * x[:, 2] > 0
    columns = {f"f{i}": pa.array(x[:, i]) for i in range(8)} | {"y": pa.array(y.astype(int))}
    pq.write_table(pa.table(columns), folder / "data.parquet", row_group_size=row_group_size)
    (folder / "network.py").write_text(network)
    (folder / "recipe.yaml").write_text(recipe)
    scope: dict = {}
    exec(network, scope)
    torch.manual_seed(0)
    built = scope["build"]()
    fit_binary(built, (torch.from_numpy(x),), torch.from_numpy(y).float(), 60)
    torch.save(built.state_dict(), folder / "model.pt")
    return folder
