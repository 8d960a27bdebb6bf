"""How firm the choice of features is: the figures by hand, the draws, and whole runs on a planted problem."""

import copy
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jsonschema import Draft202012Validator

import glprune
from glprune.data import LoaderSplit
from glprune.data.dataloader import Fingerprint
from glprune.evaluation.stability import draw_resample, measure_stability
from glprune.report.stability_index import false_bound, jaccard, nogueira, stable
from glprune.runtime.checkpoint import CheckpointLog, Step, checkpoints
from glprune.schema import bundle as bundles
from glprune.schema.recipe import InputSpec, StabilitySpec
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Report, Resample, report_schema
from glprune.search.policy import NO_RULES
from glprune.search.worker_setup import indexable_split
from glprune.training.distillation import TeacherSplit
from tests.networks import fit_binary

FIELDS = [f"f{i}" for i in range(9)]
PLANTED = ["f0", "f1"]
NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
target: {max_features: 3}
train: {epochs: 3, n_lambdas: 5, batch_size: 64, lambda_min_ratio: 0.1, full_batch_steps: 5}
refit: {epochs: 5}
export: {exporter: torchscript}
stability: {n_resamples: 6, drop_cost: true, threshold: 0.8}
workers: {engine: local, processes: 2}
seed: 1
"""


def bits(*rows):
    return np.array([[c == "1" for c in row] for row in rows])


# --- figures ---------------------------------------------------------------------------------


def test_nogueiras_index_and_its_interval_equal_a_hand_computed_example():
    """p = (1, 2/3, 1/3, 0), s^2 = (0, 1/3, 1/3, 0), k/d = 1/2: 1 - (1/6) / (1/4) = 1/3, variance 8/243."""
    index = nogueira(bits("1100", "1010", "1100"))
    assert index.value == pytest.approx(1 / 3)
    assert index.high - index.value == pytest.approx(1.959964 * (8 / 243) ** 0.5, abs=1e-6)
    assert index.low + index.high == pytest.approx(2 / 3)


def test_nogueiras_index_is_1_for_equal_choices_and_least_for_opposite_ones():
    same = nogueira(bits("1100", "1100", "1100"))
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    assert nogueira(bits("1100", "0011")).value == pytest.approx(-1)  # -1 / (n - 1) is the least
    assert nogueira(bits("1111", "1111")) is None
    assert nogueira(bits("0000", "0000")) is None


def test_nogueiras_index_of_random_choices_is_near_0_and_its_interval_covers_that():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        index = nogueira(random.random((40, 30)) < 0.3)
        assert abs(index.value) < 0.1
        covered += index.low <= 0 <= index.high
    assert 180 <= covered <= 200


def test_jaccard_is_the_mean_over_pairs_and_two_empty_choices_agree():
    assert jaccard(bits("1100", "1010", "1100")) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert jaccard(bits("00", "00", "10")) == pytest.approx(1 / 3)


def test_the_bound_on_falsely_kept_features_is_left_out_where_it_says_nothing():
    often = np.zeros((10, 100), dtype=bool)
    often[:, :5] = True
    assert stable(often, 0.9) == 5
    assert false_bound(often, 0.9) == pytest.approx(25 / (0.8 * 100))
    assert false_bound(often[:, :8], 0.6) is None  # 25 / (0.2 * 8) is above the 5 kept
    seldom = np.eye(10, dtype=bool)
    assert stable(seldom, 0.9) == 0
    assert false_bound(seldom, 0.9) is None


# --- draws -----------------------------------------------------------------------------------


def test_halves_come_in_complementary_pairs_and_keep_the_shares_of_the_classes():
    labels = np.array([0] * 61 + [1] * 20 + [2] * 8)
    for number in range(0, 6, 2):
        first, second = (draw_resample(labels, 0.5, 7, n) for n in (number, number + 1))
        assert sorted([*first, *second]) == list(range(89))
        for half in (first, second):
            counts = np.bincount(labels[half], minlength=3)
            assert (abs(counts - np.array([30.5, 10, 4])) <= 1).all()
    assert not np.array_equal(draw_resample(labels, 0.5, 7, 0), draw_resample(labels, 0.5, 7, 2))
    np.testing.assert_array_equal(draw_resample(labels, 0.5, 7, 3), draw_resample(labels, 0.5, 7, 3))
    assert not np.array_equal(draw_resample(labels, 0.5, 7, 3), draw_resample(labels, 0.5, 8, 3))


@pytest.mark.parametrize(("share", "rows"), [(0.1, 10), (0.3, 30), (0.8, 80), (1.0, 100)])
def test_another_share_is_drawn_anew_each_time(share, rows):
    labels = np.array([0] * 90 + [1] * 10)
    first, second = (draw_resample(labels, share, 0, n) for n in (0, 1))
    assert len(first) == len(second) == rows
    assert len(set(first)) == rows
    assert abs(int(labels[first].sum()) - rows / 10) <= 1
    assert np.array_equal(first, second) == (share == 1)


def test_rows_of_a_shuffling_loader_are_held_in_one_order():
    rows = torch.utils.data.TensorDataset(torch.randn(50, 3), torch.arange(50) % 2)
    loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)
    split = LoaderSplit(loader, (InputSpec(),), "binary", Fingerprint(50), False, "train")
    first, second = indexable_split(split, 3), indexable_split(split, 3)
    assert first.rows == 50
    torch.testing.assert_close(first.inputs[0], second.inputs[0], rtol=0, atol=0)
    taught = indexable_split(TeacherSplit(split, lambda inputs: 2 * inputs[0]), 3)
    torch.testing.assert_close(taught.target, 2 * first.inputs[0])
    assert indexable_split(first, 3) is first


def test_batches_that_do_not_fit_together_are_refused_in_one_line():
    batches = [(torch.zeros(2, n), torch.zeros(2)) for n in (3, 4)]
    ragged = LoaderSplit(batches, (InputSpec(),), "regression", Fingerprint(4), False, "train")
    with pytest.raises(glprune.DataError, match="pad to one length"):
        indexable_split(ragged, 0)


# --- recipes ---------------------------------------------------------------------------------


BAD = [
    ("{n_resamples: 5}", "n_resamples: 5 is odd; halves come in complementary pairs, use 6"),
    ("{n_resamples: 1, subsample: 0.4}", "use at least 2"),
    ("{n_resamples: 0}", "set drop_cost: true"),
    ("{n_resamples: -2}", "stability.n_resamples should be at least 0"),
    ("{subsample: 0}", "stability.subsample should be above 0"),
    ("{subsample: 1.5}", "stability.subsample should be at most 1"),
    ("{subsample: 1, seeds: recipe}", "set seeds: per_resample"),
    ("{threshold: 0.5}", "stability.threshold should be above 0.5"),
    ("{seeds: mine}", "stability.seeds should be 'per_resample' or 'recipe'"),
    ("{n_resample: 4}", "Did you mean 'n_resamples'?"),
]


@pytest.mark.parametrize(("section", "message"), BAD)
def test_mistakes_in_the_section_are_named(tmp_path, section, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    with pytest.raises(glprune.RecipeError) as caught:
        load_recipe(path, [f"stability={section}"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_contradictions_with_other_sections_are_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    bare = ["penalty={inputs: null, hidden: {strength: 1}}", "target={lambda: 0.1}"]
    with pytest.raises(glprune.RecipeError, match=r"stability\.n_resamples needs penalty\.inputs"):
        load_recipe(path, bare)
    assert load_recipe(path, [*bare, "stability={n_resamples: 0, drop_cost: true}"]).stability.drop_cost
    with pytest.raises(glprune.RecipeError, match="varies only the shuffling"):
        load_recipe(path, ["stability={subsample: 1}", "train.batch_size=all"])
    assert load_recipe(path, ["stability=null"]).stability is None
    defaults = load_recipe(path, ["stability={}"]).stability
    assert (defaults.n_resamples, defaults.subsample, defaults.drop_cost) == (50, 0.5, False)


# --- runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two features that decide the target and seven that say nothing, and a network trained on all."""
    folder = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 9))
    z = 2 * x[:, 0] + 1.5 * x[:, 1] + 0.5 * random.normal(size=600)
    columns = {name: x[:, i] for i, name in enumerate(FIELDS)} | {"y": np.where(z > 0, "yes", "no")}
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    network = scope["build"]()
    inputs, target = torch.tensor(x, dtype=torch.float32), torch.tensor(z > 0).float()
    fit_binary(network, (inputs,), target, 150)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(folder, told):
    return glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "out", on_event=told.append)


def test_planted_features_are_kept_in_every_resample_and_no_noise_is(result):
    """A third feature may stay: of noise, and often the same, since all begin with one trained network."""
    share = {f.name: f.kept_share for f in result.report.features}
    assert all(share[name] == 1 for name in PLANTED)
    noise = [share[name] for name in FIELDS if name not in PLANTED]
    assert max(noise) < 1
    assert np.mean(noise) < 0.3


def test_the_figures_are_those_of_the_supports_in_the_report(result):
    record = result.report.stability
    assert len(record.resamples) == 6
    assert len({r.seed for r in record.resamples}) == 6
    assert {r.rows for r in record.resamples} == {180}
    supports = bits(*(r.kept for r in record.resamples))
    assert (supports.sum(axis=1) <= record.limit).all()
    assert record.limit == sum(f.status == "kept" for f in result.report.features)
    assert [f.kept_in for f in result.report.features] == supports.sum(axis=0).tolist()
    assert record.nogueira == nogueira(supports).value
    assert record.nogueira_interval is None  # of six resamples
    assert record.jaccard == jaccard(supports)
    assert record.stable == stable(supports, 0.8)
    assert record.false_bound == false_bound(supports, 0.8)


def test_dropping_a_planted_feature_costs_more_than_dropping_noise(result):
    costs = result.report.drop_costs
    kept = [f.name for f in result.report.features if f.status == "kept"]
    assert [c.feature for c in costs.features] == kept
    assert len(kept) == 3
    for split in ("valid", "test"):
        before = getattr(costs, f"refitted_{split}")
        loss = {c.feature: before - getattr(c, split) for c in costs.features}
        (noise,) = (loss[name] for name in kept if name not in PLANTED)
        assert min(loss[name] for name in PLANTED) > 0.05
        assert abs(noise) < 0.01
    shipped = next(m for m in result.report.performance if m.name == costs.metric)
    assert costs.test == shipped.final


def test_report_json_fits_the_published_schema_and_the_page_shows_it(result):
    text = (result.bundle / "report.json").read_text()
    Draft202012Validator(report_schema()).validate(json.loads(text))
    page = (result.bundle / "report.html").read_text()
    for shown in (
        "Resamples that kept it",
        "6 of 6",
        "Stability of the selection",
        "of 6 resamples of half the training rows",
        "Cost of dropping one more feature",
        "nothing, refitted",
    ):
        assert shown in page
    assert "over resamples, seeds and splits" not in page
    assert "over networks trained again" in page


def test_a_report_without_the_measurement_says_so(result):
    from glprune.report.html import render_html

    plain = result.report.model_dump(by_alias=True) | {"stability": None, "drop_costs": None}
    page = render_html(Report.model_validate(plain))
    assert "Resamples that kept it" not in page
    assert "Cost of dropping" not in page


def test_progress_is_told_and_no_scratch_file_is_left(result, told):
    from glprune.runtime.events import Progress

    parts = [e for e in told if isinstance(e, Progress)]
    assert [e.done for e in parts if e.what == "resamples"] == list(range(1, 7))
    assert [e.done for e in parts if e.what == "refits"] == [1, 2, 3, 4]
    assert {path.name for path in result.bundle.iterdir()} == {*bundles.FILES, bundles.MANIFEST}


@pytest.mark.slow
def test_nothing_depends_on_the_number_of_processes(result, folder):
    recipe = load_recipe(folder / "recipe.yaml", ["workers.processes=1"])
    again = glprune.run(recipe, folder / "model.pt", folder / "one").report
    assert again.stability == result.report.stability
    assert again.drop_costs == result.report.drop_costs
    assert again.features == result.report.features


LOADER = """
import multiprocessing
import torch
from torch.utils.data import DataLoader, TensorDataset

def rows(split):
    g = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
    return DataLoader(TensorDataset(torch.randn(80, 9, generator=g)), batch_size=20, shuffle=True)

def failing(split):
    if multiprocessing.parent_process() is not None:
        raise OSError("the disk of the worker is gone")
    return rows(split)
"""


def loaded(folder, loader, *changes):
    """A recipe over a loader without labels."""
    (folder / "loader.py").write_text(LOADER)
    settings = [
        "task=distillation",
        f'data={{loader: "loader.py:{loader}"}}',
        "train={epochs: 1, n_lambdas: 3, full_batch_steps: 2, lambda_min_ratio: 0.2}",
        "refit.epochs=1",
        *changes,
    ]
    return load_recipe(folder / "recipe.yaml", settings)


@pytest.mark.slow
def test_a_shuffling_loader_without_labels_is_resampled(folder):
    recipe = loaded(folder, "rows", "stability={n_resamples: 2, subsample: 0.25}", "workers.processes=1")
    report = glprune.run(recipe, folder / "model.pt", folder / "loaded").report
    assert [r.rows for r in report.stability.resamples] == [20, 20]
    assert not report.stability.pairs
    assert report.stability.false_bound is None
    assert report.drop_costs is None


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line_of_its_own_kind_and_leaves_nothing(folder):
    recipe = loaded(folder, "failing", "stability={n_resamples: 2}", "workers.processes=1")
    with pytest.raises(glprune.DataError, match="the disk of the worker is gone") as caught:
        glprune.run(recipe, folder / "model.pt", folder / "failed")
    assert "\n" not in str(caught.value)
    assert not (folder / "failed").exists()
    assert not list(folder.glob(".failed*"))


def test_too_few_rows_are_refused_before_anything_is_trained(folder):
    recipe = load_recipe(folder / "recipe.yaml", ["stability.subsample=0.005"])
    told = []
    with pytest.raises(glprune.DataError, match=r"recipe\.yaml:\d+: stability\.subsample: 0\.005 of 360"):
        glprune.run(recipe, folder / "model.pt", folder / "few", on_event=told.append)
    assert not any(getattr(e, "name", "").startswith("path") for e in told)


UNITS = SimpleNamespace(refused=None)
FOUR = SimpleNamespace(
    checkpoints=CheckpointLog(),
    rules=NO_RULES,
    input_groups=[SimpleNamespace(units=UNITS, labels=("a", "b", "c", "d"))],
)


def fates(kept, removed):
    """Outcomes of features, as far as they are read here."""
    return [SimpleNamespace(is_kept=True)] * kept + [SimpleNamespace(is_kept=False)] * removed


def test_without_a_removed_feature_there_is_no_choice_to_compare():
    told = []
    assert measure_stability(FOUR, StabilitySpec(), fates(4, 0), None, told.append) is None
    assert any("no selection whose stability" in event.text for event in told)


class Canned:
    """Workers that know their outcomes."""

    def __init__(self, outcomes):
        self.outcomes = outcomes

    def map(self, work, items, done, listener):
        for place, outcome in enumerate(self.outcomes):
            done(place, outcome)


def test_a_resample_that_finds_nothing_is_left_out_and_told():
    part = Resample(seed=0, rows=5, stages=1, lam=1.0, metric=0.5, kept="1100")
    spec, kept = StabilitySpec(n_resamples=4), fates(2, 2)
    found = Canned([part, "target.max_features: 2 cannot be met", part, part])
    record = measure_stability(FOUR, spec, kept, found, lambda event: None)
    assert (len(record.resamples), record.failures) == (3, ["target.max_features: 2 cannot be met"])
    assert record.nogueira == 1
    with pytest.raises(glprune.TargetError, match="3 of 4 resamples failed: no way"):
        measure_stability(FOUR, spec, kept, Canned([part, *["no way"] * 3]), lambda event: None)


def test_stored_resamples_of_another_network_or_type_are_searched_again():
    part = Resample(seed=0, rows=5, stages=1, lam=1.0, metric=0.5, kept="1100")
    job = copy.copy(FOUR)
    log = CheckpointLog()
    wrong = [part.model_dump() | {"kept": "11"}, part.model_dump(exclude={"lam"}), 3]
    stored = {str(number): values for number, values in enumerate([part.model_dump(), *wrong])}
    log.open_step = lambda name, key: Step(name, key, stored)
    job.checkpoints = log
    record = measure_stability(
        job, StabilitySpec(n_resamples=4), fates(2, 2), Canned([part] * 3), lambda event: None
    )
    assert [resample.kept for resample in record.resamples] == ["1100"] * 4


def test_the_interval_and_the_bound_are_shown_where_there_are_any(result):
    from glprune.report.html import render_html
    from glprune.report.sentences import headline

    record = result.report.stability
    more = {"nogueira_interval": {"low": 0.61, "high": 0.82}, "false_bound": 0.37}
    wide = Report.model_validate(
        result.report.model_dump(by_alias=True) | {"stability": record.model_dump() | more}
    )
    assert any("(95 % interval 0.61 to 0.82)" in sentence for sentence in headline(wide))
    page = render_html(wide)
    for shown in ("(0.610 to 0.820)", "0.37", "Meinshausen and Bühlmann", "Shah and Samworth"):
        assert shown in page


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_keeps_what_they_did(folder, tmp_path):
    """The workers hold the other end of the pipe: it is at its end only once all of them are gone."""
    recipe, model, out = (str(p) for p in (folder / "recipe.yaml", folder / "model.pt", tmp_path / "o"))
    command = [sys.executable, "-m", "glprune.cli", "run", recipe, model, "--out", out]
    command += ["--set", "stability.n_resamples=1000", "--set", "workers.processes=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "of 1000 resamples" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    (left,) = checkpoints(tmp_path / "o.unfinished")[-1:]
    records = json.loads(left.read_text())["content"]["records"]
    assert [len(r["values"]) > 0 for r in records if r["name"] == "resamples"] == [True]
