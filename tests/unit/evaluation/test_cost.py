"""The cost that ``inspect`` states, against the passes that a run makes: within a factor of two."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import glprune
from glprune.evaluation.cost import FORWARD
from glprune.schema.recipe_loading import load_recipe
from tests.networks import write_planted
from tests.paths import ROOT

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y, classes: [0, 1]}
export: {exporter: torchscript}
target: {max_features: 3}
report: {baselines: false}
"""
RECIPES = {
    "features": [],
    "features and hidden, baselines": [
        "target.max_hidden=9",
        "penalty.hidden.strength=1",
        "report.baselines=true",
    ],
    "budget": ["target={macs: 50%}", "penalty.hidden.strength=1", "penalty.input_strengths=[0.5, 1, 2]"],
    "drop": ["target={max_drop: {metric: auroc, amount: 0.02}}"],
    "lambda": ["target={lambda: 0.01}", "refit.epochs=10"],
    "frontier": ["target={frontier: [6, 4, 3]}", "refit.patience=5"],
    "path of full-batch steps": ["search=path", "train.epochs=0", "train.full_batch_steps=60"],
}


class Passes:
    """Counts the rows that networks take, those of calls without gradients for a third."""

    def __init__(self) -> None:
        self.rows, self.depth = 0.0, 0

    def enter(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.depth == 0 and inputs:
            self.rows += len(inputs[0]) * (1.0 if torch.is_grad_enabled() else FORWARD)
        self.depth += 1

    def leave(self, module: torch.nn.Module, inputs: object, output: object) -> None:
        self.depth -= 1


@contextmanager
def counted() -> Iterator[Passes]:
    passes = Passes()
    handles = [
        register_module_forward_pre_hook(passes.enter),
        register_module_forward_hook(passes.leave, always_call=True),
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("cost"), NETWORK, RECIPE, 500)


def ratio(recipe, model, out):
    stated = glprune.inspect(recipe, model)
    with counted() as passes:
        glprune.run(recipe, model, out)
    return stated.passes / (passes.rows / stated.rows["train"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_passes_stated_are_within_a_factor_of_two_of_those_made(folder, tmp_path, name):
    recipe = load_recipe(folder / "recipe.yaml", RECIPES[name])
    assert 0.5 <= ratio(recipe, folder / "model.pt", tmp_path / "out") <= 2


@pytest.mark.slow
def test_the_passes_of_the_example_are_within_a_factor_of_two(tmp_path):
    recipe = load_recipe(ROOT / "recipes/german_credit.yaml", ["export.exporter=torchscript"])
    assert 0.5 <= ratio(recipe, ROOT / "examples/german_credit/model.pt", tmp_path / "out") <= 2


def test_resamples_and_drop_costs_add_to_the_cost(folder):
    def passes(*changes):
        return glprune.inspect(load_recipe(folder / "recipe.yaml", list(changes)), folder / "model.pt").passes

    alone = passes()
    four = passes("stability={n_resamples: 4}")
    assert passes("stability={n_resamples: 8}") - alone == pytest.approx(2 * (four - alone), abs=2)
    assert passes("stability={n_resamples: 4, drop_cost: true}") > four > alone
