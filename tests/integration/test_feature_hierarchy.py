"""Runs whose features lie in fields and sources: whole sources leave, or a union of overlapping groups stays."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import glprune
from glprune.audit.checks.figures.consistency import check_consistency
from glprune.audit.verify import verify
from glprune.errors import RecipeError
from glprune.report.html import render_html
from glprune.schema import bundle as bundles
from glprune.schema.recipe_loading import load_recipe
from tests.networks import fit_binary

FEATURES = [
    "income",
    "spending",
    "late_1",
    "late_2",
    "late_3",
    "limit_1",
    "limit_2",
    "likes",
    "posts",
    "friends",
]
NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
penalty:
  KIND
target: {max_features: 5}
train: {epochs: 2, n_lambdas: 4, batch_size: 120, full_batch_steps: 20, n_stages: 2}
refit: {epochs: 5}
seed: 2
export: {exporter: torchscript}
"""
TREE = """kind: tree_group_lasso
  groups:
    delays: ["late_*"]
    limits: [limit_1, limit_2]
    bureau: [delays, limits]
    social: [likes, posts, friends]
"""
LATENT = """kind: latent_group_lasso
  weights: fisher
  groups:
    bank: [income, spending]
    bureau: ["late_*", spending]
    limits: ["limit_*", late_1]
    social: [likes, posts, friends, limit_2]
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Tiny networks: a second thread only waits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Income, spending and delays decide; likes, posts and friends are noise."""
    folder = tmp_path_factory.mktemp("sources")
    x = np.random.default_rng(0).normal(size=(600, 10)).astype(np.float32)
    y = x[:, 0] + x[:, 1] * x[:, 2] + 0.7 * x[:, 3] > 0
    columns = {name: x[:, n] for n, name in enumerate(FEATURES)} | {"y": y.astype(int)}
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "network.py").write_text(NETWORK)
    torch.manual_seed(0)
    scope: dict = {}
    exec(NETWORK, scope)
    network = scope["build"]()
    fit_binary(network, (torch.from_numpy(x),), torch.from_numpy(y).float(), 80)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def run(folder, name, kind, addition="", size=5):
    recipe = folder / f"{name}.yaml"
    recipe.write_text(
        RECIPE.replace("KIND", kind).replace("max_features: 5", f"max_features: {size}") + addition
    )
    return glprune.run(recipe, folder / "model.pt", folder / name)


def status(result):
    return {f.name: f.status for f in result.report.features}


def test_a_source_of_noise_leaves_as_a_whole_and_the_bundle_can_be_verified(folder):
    result = run(folder, "tree", TREE)
    groups = {g.name: g for g in result.report.penalty.groups}
    assert list(groups) == ["delays", "limits", "bureau", "social"]
    assert groups["bureau"].features == ["late_1", "late_2", "late_3", "limit_1", "limit_2"]
    assert groups["social"].kept == []
    gone = [f for f in result.report.features if f.name in groups["social"].features]
    assert {f.norm_selected for f in gone} == {0.0}
    assert {f.stage_exit for f in gone} == {1}
    assert {"income", "spending"} <= {name for name, fate in status(result).items() if fate == "kept"}
    assert result.report.removal.difference <= 1e-5
    assert next(p.kkt_zero for p in result.report.path if p.selected) < 0.05
    assert "social: 0 of 3 kept" in render_html(result.report)
    assert verify(result.bundle, isolated=False).exit_code == 0
    check_that_changed_groups_are_found(result)


def check_that_changed_groups_are_found(result):
    files = {path.name: path.read_bytes() for path in result.bundle.iterdir() if path.is_file()}
    recipe = load_recipe(result.bundle / bundles.RECIPE)
    assert check_consistency(result.report, recipe, files) == []
    for change, where in (
        ({"kept": ["likes"]}, "/penalty/groups/3/kept"),
        ({"features": ["like"]}, "/penalty/groups/3/features"),
        ({"name": "asocial"}, "/penalty/groups"),
    ):
        *groups, last = result.report.penalty.groups
        penalty = result.report.penalty.model_copy(
            update={"groups": [*groups, last.model_copy(update=change)]}
        )
        changed = result.report.model_copy(update={"penalty": penalty})
        assert where in {finding.where for finding in check_consistency(changed, recipe, files)}


@pytest.mark.parametrize("size", [5, 6])
def test_the_kept_features_are_a_union_of_overlapping_groups(folder, size):
    result = run(folder, f"latent-{size}", LATENT, size=size)
    kept = {name for name, fate in status(result).items() if fate == "kept"}
    groups = {g.name: set(g.features) for g in result.report.penalty.groups}
    whole = [features for features in groups.values() if features <= kept]
    assert set().union(*whole) == kept
    assert 0 < len(kept) <= size
    for candidate in result.report.selection.comparison.candidates:
        found = set(candidate.features)
        assert set().union(*(f for f in groups.values() if f <= found)) == found
    assert result.report.penalty.weights == "fisher"


def test_a_feature_that_must_stay_stays_where_its_source_leaves(folder):
    result = run(folder, "required", TREE, "policy: {must_keep: [likes]}\n")
    assert status(result)["likes"] == "kept"
    assert (status(result)["posts"], status(result)["friends"]) == ("removed", "removed")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            TREE.replace("limit_1", "limt_1"),
            "wrong.yaml:9: penalty.groups.limits: no feature or group 'limt_1'. Did you mean 'limit_1'?",
        ),
        (
            TREE.replace("[likes,", "[late_1, likes,"),
            "it shares 'late_1' with 'delays', and neither holds the other",
        ),
        (
            TREE.replace("social:", "income:"),
            "penalty.groups.income: a feature has this name; rename the group.",
        ),
        (TREE.replace("[likes,", "['nothing*', likes,"), "no feature or group 'nothing*'"),
    ],
)
def test_groups_that_are_wrong_are_refused_with_their_line(folder, kind, message):
    with pytest.raises(RecipeError) as error:
        run(folder, "wrong", kind)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
