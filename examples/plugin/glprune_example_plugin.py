"""One plugin of every kind that glprune takes; pyproject.toml gives each its name."""

import json
import os
import sqlite3
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from glprune.training.penalties import Penalty


def read_npz(path):
    """``model.loader``: weights that numpy.savez wrote, as a state dict."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def sqlite_rows(split, file, table, features, target):
    """``data.source``: the rows of one split from a table with a column named split."""
    names = ", ".join(f'"{name}"' for name in [*features, target])
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        rows = connection.execute(f'SELECT {names} FROM "{table}" WHERE split = ?', [split]).fetchall()
    values = torch.tensor(rows, dtype=torch.float32)
    data = TensorDataset(values[:, :-1], values[:, -1].long())
    return DataLoader(data, batch_size=64, shuffle=split == "train")


@dataclass(frozen=True)
class GroupElasticNet(Penalty):
    """``penalty.plugin``: ``lam * sum_g weight_g * (||w_g|| + ridge / 2 * ||w_g||**2)``.

    Only what differs from the group LASSO is written: the height and slope of the penalty in a group's
    norm u, and the proximal operator, which shrinks to ``max(0, u - t) / (1 + t * ridge)``.
    """

    ridge: float = 0.1

    @classmethod
    def of(cls, weights, blocks, ridge=0.1):
        """What the entry point names: called with weights, blocks and the recipe's arguments."""
        return cls(weights, ridge)

    def value_of_norms(self, norms):
        """The penalty of each group at its norm, for lambda 1."""
        return self.weights * (norms + self.ridge / 2 * norms.square())

    def derivative(self, norms):
        """The derivative of the height."""
        return self.weights * (1 + self.ridge * norms)

    def prox_(self, blocks, strength, radius=None):
        """Shrink every group in place and return the factors on the norms."""
        factors = super().prox_(blocks, strength)
        ridge = 1 / (1 + strength * self.weights * self.ridge)
        blocks.scale_(ridge)
        factors = factors * ridge
        if radius is not None:
            held = torch.minimum(radius / blocks.norms().clamp(min=1e-30), torch.ones(()))
            blocks.scale_(held)
            factors = factors * held
        return factors


def write_columns(bundle, folder):
    """``export.plugins``: the names of the shipped columns, one a line."""
    contract = json.loads((bundle / "input_schema.json").read_text(encoding="utf-8"))
    names = [column["name"] for given in contract["inputs"] for column in given["columns"]]
    (folder / "columns.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def append_line(result):
    """``run --reporter``: one line for each run in the file that RUNS names."""
    removed = [feature.name for feature in result.report.features if feature.status == "removed"]
    with open(os.environ.get("RUNS", "runs.txt"), "a", encoding="utf-8") as stream:
        stream.write(f"{result.report.title}: removed {', '.join(removed) or 'nothing'}\n")
