"""Weights that a forward divides by their own norm are found, and no others."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from glprune.pruning.own_norms import self_divided_weights
from glprune.pruning.planner import plan_units

X = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
DIVIDED = {
    "by its norm": lambda w: w / w.norm(),
    "by the norms of its rows": lambda w: F.normalize(w, dim=1),
    "by the norms of its columns": lambda w: F.normalize(w, dim=0),
    "by a root of squares": lambda w: w * torch.rsqrt(w.square().sum(1, keepdim=True) + 1e-8),
    "by a power": lambda w: w * w.square().sum().pow(-0.5),
    "by its sum": lambda w: w / w.sum(0),
    "by its largest value": lambda w: w / w.abs().amax(),
    "by its deviation": lambda w: (w - w.mean()) / w.std(),
    "by a layer norm": lambda w: F.layer_norm(w, (6,)),
    "by a singular value": lambda w: w / (torch.ones(4) @ w @ torch.ones(6)),
    "by a cosine": lambda w: w * F.cosine_similarity(w, torch.ones(4, 6))[:, None],
}
KEPT = {
    "as it is": lambda w: w,
    "scaled": lambda w: w / 3.0,
    "by a learned scale": lambda w: w / torch.ones(4, 1),
    "softmax": lambda w: torch.softmax(w, 1),
    "by a constant's norm": lambda w: w / torch.ones(4, 6).norm(),
    "minus its mean": lambda w: w - w.mean(1, keepdim=True),
}


class Net(nn.Module):
    def __init__(self, change, after=lambda h, w: h):
        super().__init__()
        torch.manual_seed(0)
        self.entry, self.out, self.scale = nn.Linear(6, 4), nn.Linear(4, 1), nn.Parameter(torch.ones(4, 1))
        self.change, self.after = change, after

    def forward(self, x):
        weight = self.change(self.entry.weight) / self.scale
        return self.out(torch.relu(self.after(F.linear(x, weight, self.entry.bias), self.entry.weight)))


@pytest.mark.parametrize("name", DIVIDED)
def test_a_weight_divided_by_what_is_reduced_from_it_is_found(name):
    assert self_divided_weights(Net(DIVIDED[name]).eval(), (X,)) == {"entry.weight"}


@pytest.mark.parametrize("name", KEPT)
def test_other_weights_are_not(name):
    assert not self_divided_weights(Net(KEPT[name]).eval(), (X,))


def test_a_division_of_what_the_weight_computes_counts_and_that_of_data_does_not():
    after = Net(lambda w: w, lambda h, w: h / w.norm(dim=1)).eval()
    assert self_divided_weights(after, (X,)) == {"entry.weight"}
    data = Net(lambda w: w, lambda h, w: (h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True)).eval()
    assert not self_divided_weights(data, (X,))
    assert not self_divided_weights(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 1)), (X,))


def test_units_that_it_reads_are_refused_by_its_name_and_those_it_produces_are_not():
    sets = {
        s.name: s for s in plan_units(Net(DIVIDED["by the norms of its rows"]).eval(), (X,), (1,), ("x",))
    }
    assert (
        sets["x"].refused
        == "'entry.weight', which reads them, is divided by its own norm and cannot be shrunk"
    )
    assert sets["entry"].refused is None


def test_units_whose_weights_are_zero_at_zero_stay_cuttable():
    assert all(s.refused is None for s in plan_units(Net(KEPT["as it is"]).eval(), (X,), (1,), ("x",)))
