"""Networks of several sizes from one run, and another of them shipped from the bundle without a search."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import glprune
from glprune import pipeline
from glprune.audit.checks.figures.consistency import check_consistency
from glprune.audit.checks.figures.frontier import check_points
from glprune.audit.parsed_bundle import open_bundle
from glprune.audit.verify import verify
from glprune.cli.main import main
from glprune.errors import UsageError
from glprune.runtime import checkpoint as journals
from glprune.runtime.checkpoint import CheckpointLog
from glprune.schema import bundle as bundles
from glprune.schema.bundle import digest
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Interval
from glprune.training.refit import Refit
from glprune.training.solver import PointSolver
from tests.networks import write_planted

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y, validation: {folds: 1}}
target: {frontier: [3, 9, 5]}
train: {epochs: 2, n_lambdas: 3, batch_size: 64, full_batch_steps: 2, n_stages: 2, stage_refit_epochs: 1}
refit: {epochs: 2, batch_size: all}
export: {exporter: torchscript}
seed: 1
"""
TIMES = ("timing", "latency")


@pytest.fixture(scope="module", autouse=True)
def one_latency():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "LATENCY_BATCHES", (1,))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("frontier"), NETWORK, RECIPE, 301, row_group_size=40)


@pytest.fixture(scope="module")
def whole(folder):
    """The bundle of a run with a frontier."""
    return run(folder, folder / "whole")


@pytest.fixture(scope="module")
def another(whole):
    """A size that the run did not ship, and the bundle of it."""
    size = next(p.size for p in reversed(whole.report.frontier.points) if not p.shipped)
    return size, glprune.select(whole.bundle, size)


@pytest.fixture
def copy(whole, folder, tmp_path):
    """A copy of the bundle beside copies of its recipe, model and data."""
    for name in ("recipe.yaml", "network.py", "data.parquet", "model.pt"):
        shutil.copy(folder / name, tmp_path / name)
    return shutil.copytree(whole.bundle, tmp_path / "whole")


def run(folder, out, *overrides, **options):
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    return glprune.run(recipe, folder / "model.pt", out, **options)


def facts(bundle):
    report = json.loads((bundle / "report.json").read_text())
    return digest(bundle / "model.onnx"), {k: v for k, v in report.items() if k not in TIMES}


def test_every_size_is_found_from_the_largest_down_and_one_ships(whole):
    frontier = whole.report.frontier
    assert [p.size for p in frontier.points] == [8, 5, 3]
    assert [len(p.features) for p in frontier.points] == [8, 5, 3]  # the network has 8, and 9 were asked for
    [shipped] = [p for p in frontier.points if p.shipped]
    assert shipped.features == [f.name for f in whole.report.features if f.status == "kept"]
    assert all(p.test_interval.low <= p.test <= p.test_interval.high for p in frontier.points)
    sizes = [p.parameters for p in frontier.points]
    assert sizes == sorted(sizes, reverse=True)


def test_the_bundle_is_verified_and_the_others_are_listed_as_not_checked(whole):
    verdict = verify(whole.bundle)
    assert verdict.exit_code == 0, verdict
    assert any("other networks of the frontier" in sentence for sentence in verdict.not_checked)


def test_a_selected_size_is_the_bundle_of_a_run_that_ships_it(folder, another):
    size, chosen = another
    direct = run(folder, folder / "direct", f"target.max_features={size}")
    assert chosen.bundle == folder / f"whole-{size}"
    assert facts(chosen.bundle) == facts(direct.bundle)
    assert verify(chosen.bundle).exit_code == 0


def test_a_size_is_selected_from_a_frontier_whose_max_features_is_not_in_its_list(folder, tmp_path):
    own = run(folder, tmp_path / "own", "target.frontier=[5]", "target.max_features=3")
    chosen = glprune.select(own.bundle, 5, tmp_path / "five", recipe=folder / "recipe.yaml")
    assert [(p.size, p.shipped) for p in chosen.report.frontier.points] == [(5, True), (3, False)]
    assert verify(chosen.bundle).exit_code == 0


def test_the_figures_of_a_size_are_those_of_its_file_once_it_ships(whole, another):
    size, chosen = another
    stated = next(p for p in whole.report.frontier.points if p.size == size)
    measured = next(m for m in chosen.report.performance if m.name == whole.report.frontier.metric)
    assert stated.test == pytest.approx(measured.final, abs=1e-12)
    assert (stated.parameters, stated.macs) == (
        chosen.report.size.parameters_after,
        chosen.report.size.macs_after,
    )
    assert [p.model_copy(update={"shipped": False}) for p in chosen.report.frontier.points] == [
        p.model_copy(update={"shipped": False}) for p in whole.report.frontier.points
    ]


def test_a_selection_trains_nothing_and_can_be_selected_from(another, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it trains")

    monkeypatch.setattr(PointSolver, "solve", refuse)
    monkeypatch.setattr(Refit, "run", refuse)
    size, chosen = another
    again = glprune.select(chosen.bundle, 8, tmp_path / "again")
    assert size != 8
    assert next(p.size for p in again.report.frontier.points if p.shipped) == 8


def test_the_command_writes_the_bundle_and_prints_the_findings(copy, tmp_path):
    done = CliRunner().invoke(main, ["select", str(copy), "--features", "5", "--out", str(tmp_path / "five")])
    assert done.exit_code == 0, done.output
    assert f"bundle: {tmp_path / 'five'}" in done.output
    assert sum(f.status == "kept" for f in glprune.Result.load(tmp_path / "five").report.features) == 5


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_changed_point_is_refused(copy):
    flip(copy / "frontier" / "5.safetensors")
    with pytest.raises(UsageError, match=r"was changed: frontier/5\.safetensors"):
        glprune.select(copy, 5)
    assert verify(copy).exit_code == 1


@pytest.mark.parametrize("name", ["frontier.json", "frontier/3.safetensors"])
def test_a_missing_or_an_added_file_of_the_frontier_is_found(copy, name):
    (copy / name).unlink()
    assert verify(copy).exit_code == 1
    with pytest.raises(UsageError, match="whole"):
        glprune.select(copy, 3)


@pytest.mark.parametrize("name", ["frontier/7.safetensors", "frontier/code.py", "frontier/more"])
def test_a_file_that_is_not_of_the_frontier_is_found(copy, name):
    (copy / name).mkdir() if name.endswith("more") else shutil.copy(copy / "plan.json", copy / name)
    assert verify(copy).exit_code == 1


def test_what_cannot_be_selected_is_refused_in_one_line(copy, tmp_path, audited):
    changed = tmp_path / "changed"
    for name in ("recipe.yaml", "model.pt"):
        changed.mkdir(exist_ok=True)
        (changed / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    (tmp_path / "whole-5").mkdir()
    cases = [
        (7, {}, "has no network of 7 features; its frontier has 8, 5, 3"),
        (5, {}, r"whole-5 exists; choose another --out"),
        (3, {"out": copy / "sub"}, r"sub is inside .*whole, which it would change; give another --out"),
        (3, {"model": "no.pt"}, r"no\.pt: no such model"),
        (3, {"model": changed / "model.pt"}, "is not the model that .*whole was made from"),
        (3, {"recipe": changed / "recipe.yaml"}, "is not the recipe that .*whole was made from"),
    ]
    for size, options, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            glprune.select(copy, size, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"absent: cannot be read .*give the folder of a bundle"):
        glprune.select(tmp_path / "absent", 3)
    with pytest.raises(UsageError, match="has no frontier"):
        glprune.select(audited["slim"], 3)
    (tmp_path / "model.pt").rename(tmp_path / "moved.pt")
    with pytest.raises(UsageError, match=r"no such model, which .*whole names; give --model"):
        glprune.select(copy, 3)
    pq.write_table(pq.read_table(tmp_path / "data.parquet").slice(1), tmp_path / "data.parquet")
    with pytest.raises(UsageError, match=r"the data \(file\) are not what .*whole was made from"):
        glprune.select(copy, 3, model=tmp_path / "moved.pt")
    assert not (tmp_path / "whole-3").exists()


def test_steps_of_another_search_are_refused(copy, monkeypatch):
    record = open_bundle(copy).frontier
    first = record.points[0]
    other = first.model_copy(update={"steps": first.steps[1:]})
    changed = record.model_copy(update={"points": [other, *record.points[1:]]})
    monkeypatch.setattr(
        "glprune.rerun.selection.open_bundle", lambda path: replaced(open_bundle(path), changed)
    )
    with pytest.raises(UsageError, match="does not hold the next step of the search"):
        glprune.select(copy, 3)


def replaced(opened, frontier):
    opened.frontier = frontier
    return opened


def changed_points(report, index, **update):
    points = list(report.frontier.points)
    points[index] = points[index].model_copy(update=update)
    return report.model_copy(update={"frontier": report.frontier.model_copy(update={"points": points})})


def test_a_frontier_that_contradicts_the_report_is_found(whole):
    opened = open_bundle(whole.bundle)
    report, recipe, files = opened.report, opened.recipe, opened.files.contents
    index = next(n for n, p in enumerate(report.frontier.points) if p.shipped)
    assert check_consistency(report, recipe, files) == []
    others = [n for n in range(3) if n != index]
    lies = [
        changed_points(report, index, test=0.123, test_interval=Interval(low=0, high=1)),
        changed_points(report, index, parameters=1),
        changed_points(report, index, shipped=False),
        changed_points(report, others[0], shipped=True),
        changed_points(report, index, features=["f0"]),
        changed_points(report, others[0], size=77),
        changed_points(report, others[0], valid=1.5),
        changed_points(report, others[0], test_interval=None),
        changed_points(report, others[0], test=None),
        changed_points(report, others[0], found_by="trying all sets"),
        changed_points(report, others[-1], features=[f.name for f in report.features]),
        report.model_copy(update={"frontier": report.frontier.model_copy(update={"rule": "the best"})}),
        report.model_copy(update={"frontier": None}),
    ]
    for lie in lies:
        assert check_consistency(lie, recipe, files)


def test_the_figures_of_a_size_follow_from_the_steps_of_the_search(whole):
    opened = open_bundle(whole.bundle)
    report, files = opened.report, opened.files.contents
    index = next(n for n, p in enumerate(report.frontier.points) if not p.shipped and n > 0)
    size = report.frontier.points[index].size

    def found(changed, files=files):
        return [where for where, _ in check_points(changed, opened.frontier, files, standardize=False)]

    assert found(report) == []
    where = f"/frontier/points/{index}"
    assert found(changed_points(report, index, parameters=1)) == [f"{where}/parameters"]
    assert found(changed_points(report, index, valid=0.987654321)) == [f"{where}/valid"]
    first = files[bundles.point_file(report.frontier.points[0].size)]
    assert found(report, files | {bundles.point_file(size): first}) == [f"{where}/parameters"]


def test_the_rule_is_computed_again(whole):
    """A smaller size that noise could not distinguish from the best would have to ship, and no other may."""
    opened = open_bundle(whole.bundle)
    recipe, files, report = opened.recipe, opened.files.contents, opened.report
    index = next(n for n, p in enumerate(report.frontier.points) if p.shipped)
    shipped = report.frontier.points[index]
    if index < 2:
        lie = changed_points(report, 2, gain_standard_error=1.0)
    else:
        lie = changed_points(report, index, gain=-0.5, valid=shipped.valid - 0.5)
    assert any("the rule gives" in finding.what for finding in check_consistency(lie, recipe, files))
    gained = changed_points(report, index, gain=shipped.gain + 0.01)
    assert any("the metrics give" in finding.what for finding in check_consistency(gained, recipe, files))


def test_a_size_that_cannot_be_measured_says_why(whole, tmp_path, monkeypatch):
    def fail(job, removed, network, path):
        raise glprune.ModelError("it cannot be exported.")

    monkeypatch.setattr("glprune.evaluation.frontier.write_shipped", fail)
    report = glprune.select(whole.bundle, 5, tmp_path / "unmeasured").report
    assert [p.reason for p in report.frontier.points if not p.shipped] == ["it cannot be exported."] * 2
    assert [p.test is None for p in report.frontier.points] == [not p.shipped for p in report.frontier.points]
    assert verify(tmp_path / "unmeasured").exit_code == 0


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_frontier(folder, whole, monkeypatch):
    class KilledError(BaseException):
        pass

    monkeypatch.setattr(journals, "_SECONDS", 0.0)
    monkeypatch.setattr(journals, "_SHARE", float("inf"))
    save, kills = CheckpointLog.save_step, 0

    def keep(self, *arguments, **options):
        record = save(self, *arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            raise KilledError
        return record

    monkeypatch.setattr(CheckpointLog, "save_step", keep)
    while True:
        left = [7]
        try:
            resumed = run(folder, folder / "resumed", resume=True)
        except KilledError:
            kills += 1
        else:
            break
    assert kills > 2
    assert facts(resumed.bundle) == facts(whole.bundle)


@pytest.mark.slow
def test_two_processes_write_a_frontier_that_one_selects_from(folder):
    script = (
        "import sys, glprune\n"
        "from glprune.runtime.process_group import init_process_group\n"
        "with init_process_group() as group:\n"
        "    glprune.run('recipe.yaml', 'model.pt', 'two', process_group=group)\n"
    )
    (folder / "script.py").write_text(script)
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace(", validation: {folds: 1}", ""))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "script.py"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        chosen = glprune.select(folder / "two", 3)
    finally:
        (folder / "recipe.yaml").write_text(text)
    stated = glprune.Result.load(folder / "two").report
    assert chosen.report.selection.comparison is not None
    assert chosen.report.selection.comparison.folds == 1  # as in two processes
    assert [p.features for p in chosen.report.frontier.points] == [p.features for p in stated.frontier.points]
    assert verify(chosen.bundle).exit_code == 0
