"""The sizes of a frontier and the rule by which one ships."""

from types import SimpleNamespace

import pytest
import torch

from glprune.errors import RecipeError
from glprune.model.validation_score import ValidationScore
from glprune.schema.recipe import Recipe
from glprune.schema.recipe_loading import load_recipe
from glprune.search.portfolio.frontier import FrontierPoint, frontier_sizes, shipped_point

BASE = {"task": "binary", "model": {"factory": "n.py:f"}, "data": {"file": "d.csv", "target": "y"}}


def job(features, required=0, **target):
    recipe = Recipe.model_validate({**BASE, "target": target})
    labels = [f"f{n}" for n in range(features)]
    groups = SimpleNamespace(labels=labels, units=SimpleNamespace(refused=None))
    rules = SimpleNamespace(required=frozenset(labels[:required]))
    return SimpleNamespace(
        recipe=recipe, data=SimpleNamespace(features=labels), input_groups=[groups], rules=rules
    )


def point(size, influences, metric="auroc"):
    influences = torch.tensor(influences, dtype=torch.float64)
    value = float(influences.mean())
    return FrontierPoint(size, None, ValidationScore(metric, value, influences, 0.0), 0)


def test_sizes_go_from_the_largest_down_and_hold_the_one_that_ships():
    assert frontier_sizes(job(20, frontier=[5, 20, 10])) == [20, 10, 5]
    assert frontier_sizes(job(20, frontier=[5, 10], max_features=7)) == [10, 7, 5]


def test_sizes_above_the_number_of_features_are_that_number():
    sizes = frontier_sizes(job(14, frontier=[20, 10**12, 1], max_features=30))
    assert sizes == [14, 1]
    points = [point(size, [1.0, 0.0]) for size in sizes]
    assert shipped_point(points, 30).size == 14
    assert shipped_point(points, 1).size == 1


@pytest.mark.parametrize("features", [1, 3, 20, 61, 5000])
def test_automatic_sizes_have_equal_ratios_from_all_features_to_one(features):
    sizes = frontier_sizes(job(features, frontier="auto"))
    assert (sizes[0], sizes[-1]) == (features, 1)
    assert len(sizes) == min(features, 9) or features == 20
    assert sizes == sorted(set(sizes), reverse=True)


def test_automatic_sizes_do_not_go_below_what_must_stay():
    assert frontier_sizes(job(40, required=6, frontier="auto"))[-1] == 6


def test_the_smallest_size_that_noise_cannot_distinguish_from_the_best_ships():
    rows = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    noise = torch.tensor([0.3, -0.3, 0.3, -0.3, 0.0, 0.0])
    points = [
        point(20, rows.tolist()),
        point(10, (rows - 0.02 + noise).tolist()),
        point(5, (rows - 0.1).tolist()),
    ]
    assert points[0].score.standard_error > 0.1  # 5 is within that of the metric, and worse on every row
    assert shipped_point(points, None).size == 10
    assert shipped_point(points, 20).size == 20


def test_the_rule_knows_metrics_that_are_better_when_lower():
    rows = torch.tensor([0.5, 0.4, 0.6, 0.5])
    worse = rows + torch.tensor([0.11, 0.1, 0.09, 0.1])
    close = rows + torch.tensor([0.1, -0.1, 0.05, -0.04])
    points = [point(size, r.tolist(), "mae") for size, r in ((20, rows), (10, close), (5, worse))]
    assert shipped_point(points, None).size == 10


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{frontier: [5, 5]}", "frontier lists 5 twice"),
        ("{frontier: [5, 0]}", "frontier"),
        ("{frontier: []}", "frontier"),
        ("{frontier: some}", "frontier"),
        ("{frontier: auto, lambda: 0.1}", "give exactly one of max_features, frontier"),
        ("{frontier: auto, macs: 30%}", "give exactly one of max_features, frontier"),
        ("{frontier: auto, max_features: 3, lambda: 0.1}", "give exactly one of max_features, frontier"),
        ("{frontier: auto, max_hidden: 3}", "frontier contradicts max_hidden"),
    ],
)
def test_targets_that_contradict_a_frontier_are_refused(tmp_path, target, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"task: binary\nmodel: {{factory: 'n.py:f'}}\ndata: {{file: d.csv, target: y}}\ntarget: {target}\n"
    )
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_frontier_needs_a_penalty_on_inputs():
    with pytest.raises(ValueError, match=r"target\.frontier needs penalty\.inputs"):
        Recipe.model_validate(
            {**BASE, "target": {"frontier": "auto"}, "penalty": {"inputs": None, "hidden": {"strength": 1.0}}}
        )
