"""A run that is stopped, at whatever moment and by whatever, goes on to the very same bundle."""

import contextlib
import hashlib
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import glprune
from glprune.runtime import checkpoint as journals
from glprune.runtime.checkpoint import CheckpointLog, checkpoints, pack_tensors
from glprune.runtime.events import Notice, PointDone, Progress, Stage
from glprune.runtime.output_folder import OutputFolder, keeps_work, unfinished_path
from glprune.schema.bundle import digest
from glprune.schema.recipe_loading import load_recipe
from glprune.training.refit import Refit
from glprune.training.solver import PointSolver
from tests.networks import write_planted

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Linear(8, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
penalty: {hidden: {strength: 1}}
target: {max_features: 3, max_hidden: 5}
train: {epochs: 2, n_lambdas: 4, batch_size: 64, full_batch_steps: 4, n_stages: 2}
refit: {epochs: 3}
export: {exporter: torchscript}
seed: 1
"""
TIMES = ("timing", "latency")
QUICK = ["--quiet", "--resume"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("stopped"), NETWORK, RECIPE, 300)


@pytest.fixture(scope="module")
def undisturbed(folder):
    return facts(run(folder, folder / "undisturbed").bundle)


@pytest.fixture
def every_step(monkeypatch):
    """A checkpoint after every step, whatever that costs."""
    monkeypatch.setattr(journals, "_SECONDS", 0.0)
    monkeypatch.setattr(journals, "_SHARE", float("inf"))


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def run(folder, out, *overrides, **options):
    return glprune.run(load_recipe(folder / "recipe.yaml", overrides), folder / "model.pt", out, **options)


def facts(bundle):
    report = json.loads((bundle / "report.json").read_text())
    return digest(bundle / "model.onnx"), {k: v for k, v in report.items() if k not in TIMES}


def stopper(kind, number, error=Killed):
    """A listener that stops a run at the n-th event of a kind."""
    left = [number]

    def listen(event):
        left[0] -= isinstance(event, kind)
        if left[0] == 0:
            raise error

    return listen


def stop(folder, out, kind=PointDone, number=4, error=Killed, *overrides, **options):
    whole = OutputFolder.stop

    def killed(self, caught):
        """A process that is killed saves nothing more."""
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(CheckpointLog, "save", lambda log: None)
            return whole(self, caught)

    with pytest.MonkeyPatch.context() as patch:
        if error is Killed:
            patch.setattr(OutputFolder, "stop", killed)
        with pytest.raises(error):
            run(folder, out, *overrides, on_event=stopper(kind, number, error), **options)


def steps(out):
    return len(json.loads(checkpoints(unfinished_path(out))[-1].read_text())["content"]["records"])


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_where_an_undisturbed_one_does(
    folder, undisturbed, tmp_path, monkeypatch, every_step
):
    """Killed right after some steps were kept, from one to five, until nothing is left to do."""
    lengths = random.Random(0)
    whole = CheckpointLog.save_step

    def keep(self, *arguments, **options):
        record = whole(self, *arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return record

    monkeypatch.setattr(CheckpointLog, "save_step", keep)
    kills = 0
    while True:
        left = [lengths.randint(1, 5)]
        try:
            result = run(folder, tmp_path / "out", resume=True)
        except Killed:
            kills += 1
            assert len(checkpoints(unfinished_path(tmp_path / "out"))) <= 2
            assert os.listdir(tmp_path) == ["out.unfinished"]
        else:
            break
    assert kills > 10
    assert facts(result.bundle) == undisturbed
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("kind", "number"), [(Stage, 1), (PointDone, 3), (Stage, 9)])
def test_ctrl_c_saves_and_the_run_goes_on(folder, undisturbed, tmp_path, kind, number):
    out = tmp_path / "out"
    stop(folder, out, kind, number, KeyboardInterrupt)
    assert set(os.listdir(tmp_path)) <= {"out.unfinished"}
    assert facts(run(folder, out, resume=True).bundle) == undisturbed


def test_what_a_stopped_run_has_done_is_not_done_again(folder, tmp_path, every_step, monkeypatch):
    out, calls = tmp_path / "out", []
    for owner, name in ((PointSolver, "solve"), (Refit, "run")):
        before = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _do=before, _n=name, **k: (calls.append(_n), _do(*a, **k))[1]
        )
    stop(folder, out, Stage, 9)
    early = list(calls)
    run(folder, out, resume=True)
    resumed = len(calls)
    run(folder, tmp_path / "other")
    assert set(early) == {"solve", "run"}
    assert resumed == len(calls) - resumed


@pytest.mark.slow
def test_resamples_and_drop_costs_that_were_done_stay_done(folder, tmp_path, every_step):
    firm = ("stability={n_resamples: 4, drop_cost: true}", "workers.processes=1")
    whole = facts(run(folder, tmp_path / "whole", *firm).bundle)
    out, told = tmp_path / "out", []
    stop(folder, out, Progress, 2, Killed, *firm)
    more = (firm[0], "workers.processes=2")  # the number of processes has no bearing on the result
    done = run(
        folder,
        out,
        *more,
        resume=True,
        on_event=lambda e: told.append(e) if isinstance(e, Progress) else None,
    )
    got = facts(done.bundle)
    resamples = [e.done for e in told if e.what == "resamples"]
    assert resamples
    assert resamples[0] > 1
    assert got[0] == whole[0]
    assert got[1]["stability"] == whole[1]["stability"]
    assert got[1]["drop_costs"] == whole[1]["drop_costs"]


# --- checkpoints -------------------------------------------------------------------------------


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def newest(out):
    return checkpoints(unfinished_path(out))[-1]


def newest_tensors(out):
    """The tensors that only the newest checkpoint names."""
    old, new = (
        {r["file"] for r in json.loads(p.read_text())["content"]["records"]}
        for p in checkpoints(unfinished_path(out))
    )
    return unfinished_path(out) / "tensors" / f"{(new - old).pop()}.safetensors"


@pytest.mark.parametrize("harm", [cut_short, flip, Path.unlink, lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize("victim", [newest, newest_tensors])
def test_where_a_checkpoint_is_corrupt_the_one_before_it_serves(folder, tmp_path, every_step, harm, victim):
    out = tmp_path / "out"
    stop(folder, out, number=3)
    before = steps(out)
    harm(victim(out))
    assert CheckpointLog(unfinished_path(out), {}).resume() == before - 1


def test_a_run_goes_on_from_an_older_checkpoint_and_without_any_begins_anew(
    folder, undisturbed, tmp_path, every_step
):
    out = tmp_path / "out"
    stop(folder, out, number=3)
    flip(newest_tensors(out))
    stop(folder, out, number=4, resume=True)
    for path in checkpoints(unfinished_path(out)):
        flip(path)
    told = []
    assert facts(run(folder, out, resume=True, on_event=told.append).bundle) == undisturbed
    assert sum(isinstance(e, PointDone) for e in told) >= 8


def test_tensors_are_written_once_and_let_go_when_no_checkpoint_names_them(tmp_path, every_step):
    journal = CheckpointLog(tmp_path, {"recipe": "a"})
    first = journal.save_step(
        "point", {"lam": 1.0}, {"loss": 0.1}, {"state/w": torch.ones(3), "norms": torch.zeros(2)}
    )
    journal.save_step("point", {"lam": 2.0}, {"loss": float("inf")}, {"state/w": torch.ones(3) * 2})
    journal.drop_tensors(first, "state/")
    journal.save()
    journal.save_step("clock", {}, {})
    journal.save()  # the same again is not written: the last two differ
    assert len(checkpoints(tmp_path)) == 2
    assert len(list((tmp_path / "tensors").iterdir())) == 2
    again = CheckpointLog(tmp_path, {"recipe": "a"})
    assert again.resume() == 3
    assert again.load_step("point", {"lam": 3.0}) is None
    one, two = again.load_step("point", {"lam": 1.0}), again.load_step("point", {"lam": 2.0})
    assert set(again.weights(one)) == {"norms"}
    assert two.values == {"loss": float("inf")}
    assert again.weights(two)["state/w"].tolist() == [2, 2, 2]
    assert again.load_step("point", {"lam": 2.0}) is None
    with pytest.raises(glprune.UsageError, match="the stopped run had another recipe"):
        CheckpointLog(tmp_path, {"recipe": "b"}).resume()


def test_a_journal_that_went_another_way_forgets_what_lies_behind(tmp_path, every_step):
    journal = CheckpointLog(tmp_path, {})
    for lam in (1.0, 2.0, 3.0):
        journal.save_step("point", {"lam": lam}, {})
    again = CheckpointLog(tmp_path, {})
    again.resume()
    assert again.load_step("point", {"lam": 1.0}) is not None
    again.save_step("point", {"lam": 2.5}, {})
    last = CheckpointLog(tmp_path, {})
    assert last.resume() == 2


def stopped_search(folder, out, number, *overrides):
    """Stop a run after a number of steps; return the last of its checkpoints, the only one left."""
    left, whole = [number], CheckpointLog.save_step

    def keep(self, *arguments, **options):
        record = whole(self, *arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            self.save()
            raise Killed
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointLog, "save_step", keep)
        with pytest.raises(Killed):
            run(folder, out, *overrides)
    *older, last = checkpoints(unfinished_path(out))
    for path in older:
        path.unlink()
    return last


def forged(path, change):
    """Change the content of a checkpoint and give it the digest of the change."""
    content = json.loads(path.read_text())["content"]
    change(content)
    path.write_text(json.dumps({"sha256": journals._digest_line(content), "content": content}))


def forged_tensors(path, change):
    """Change the tensors of the last step that has any."""

    def replace(content):
        record = next(r for r in reversed(content["records"]) if r["file"] is not None)
        old = (path.parent / "tensors" / f"{record['file']}.safetensors").read_bytes()
        new = pack_tensors(change(safetensors.torch.load(old)))
        record["file"] = hashlib.sha256(new).hexdigest()
        (path.parent / "tensors" / f"{record['file']}.safetensors").write_bytes(new)

    forged(path, replace)


def last_values(content):
    return content["records"][-1]["values"]


STRUCTURE = {
    "a log of another version": lambda c: c.update(format="glprune.checkpoint/1"),
    "no format": lambda c: c.pop("format"),
    "no identity": lambda c: c.pop("identity"),
    "an identity of another type": lambda c: c.update(identity=["recipe"]),
    "no records": lambda c: c.pop("records"),
    "records of another type": lambda c: c.update(records={"point": 1}),
    "a record of another type": lambda c: c["records"].append("point"),
    "a record without values": lambda c: c["records"][-1].pop("values"),
    "values of another type": lambda c: c["records"][-1].update(values=[1]),
    "a key of another type": lambda c: c["records"][-1].update(key=1.5),
    "a file that does not exist": lambda c: c["records"][-1].update(file="0" * 64),
    "a file outside": lambda c: c["records"][-1].update(file="../../../etc/hostname"),
    "seconds of another type": lambda c: c.update(seconds={"path 1": "long"}),
}


@pytest.mark.parametrize("change", STRUCTURE)
def test_a_checkpoint_of_another_structure_is_passed_over(tmp_path, every_step, change):
    journal = CheckpointLog(tmp_path, {})
    for lam in (1.0, 2.0):
        journal.save_step("point", {"lam": lam}, {"loss": 0.1}, {"w": torch.ones(3) * lam})
    newest = checkpoints(tmp_path)[-1]
    forged(newest, STRUCTURE[change])
    again = CheckpointLog(tmp_path, {})
    assert again.resume() == 1
    assert again.unusable == [newest]


def test_a_file_with_the_right_digest_that_holds_no_tensors_is_passed_over(tmp_path, every_step):
    journal = CheckpointLog(tmp_path, {})
    for lam in (1.0, 2.0):
        journal.save_step("point", {"lam": lam}, {})
    content = b"not of safetensors"
    name = hashlib.sha256(content).hexdigest()
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / f"{name}.safetensors").write_bytes(content)
    forged(checkpoints(tmp_path)[-1], lambda c: c["records"][-1].update(file=name))
    assert CheckpointLog(tmp_path, {}).resume() == 1


def without(prefix):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(prefix)}


def of_another_network(tensors):
    return {n: torch.ones(5, 3) if n.startswith("state/") else t for n, t in tensors.items()}


def with_other_weights(tensors):
    return {n: torch.zeros_like(t) if n.startswith("state/") else t for n, t in tensors.items()}


TENSORS = {
    "no tensors": lambda tensors: {},
    "no weights": without("state/"),
    "no generator": without("generator"),
    "no norms": without("norms"),
    "of another network": of_another_network,
    "with other weights": with_other_weights,
    "of another type": lambda tensors: {n: t.double() for n, t in tensors.items()},
    "of another length": lambda tensors: {n: t.flatten()[:-1].clone() for n, t in tensors.items()},
}
VALUES = {
    "no values": lambda c: last_values(c).clear(),
    "one is missing": lambda c: last_values(c).popitem(),
    "texts": lambda c: last_values(c).update(dict.fromkeys(last_values(c), "x")),
    "lists": lambda c: last_values(c).update({n: [v] for n, v in last_values(c).items()}),
}
ALL = {*TENSORS, *VALUES}
POINT = {"no generator", "no norms", "with other weights"}
STEPS = {  # number of steps -> what the last one is, and the cases that its content tells
    5: ("stopped", ALL),
    9: ("point", ALL),
    14: ("closing", ALL),
    19: ("refit", ALL - POINT),
    29: ("stage", ALL - POINT - {"no values"}),
    42: ("descent", ALL - {"no generator", "no values"}),
}
QUICK_CASES = [(5, "of another network"), (9, "one is missing"), (29, "lists")]
FORGED = [
    pytest.param(step, case, marks=[] if (step, case) in QUICK_CASES else pytest.mark.slow)
    for step, (_, cases) in STEPS.items()
    for case in sorted(cases)
]


def steps_of_the_search(folder, out, notices, **options):
    """Run as far as the export; return what is kept of the search."""

    def listen(event):
        if isinstance(event, Notice):
            notices.append(event.text)
        if isinstance(event, Stage) and event.name == "export":
            raise Killed

    with pytest.raises(Killed):
        run(folder, out, "search=path", on_event=listen, **options)
    return json.loads(checkpoints(unfinished_path(out))[-1].read_text())["content"]["records"]


@pytest.fixture(scope="module")
def undisturbed_search(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "_SECONDS", 0.0)
        patch.setattr(journals, "_SHARE", float("inf"))
        return steps_of_the_search(folder, folder / "searched", [])


@pytest.mark.parametrize(("step", "case"), FORGED)
def test_steps_of_wrong_content_and_right_digest_are_done_again(
    folder, tmp_path, undisturbed_search, every_step, step, case
):
    last = stopped_search(folder, tmp_path / "out", step, "search=path")
    assert json.loads(last.read_text())["content"]["records"][-1]["name"] == STEPS[step][0]
    if case in TENSORS:
        forged_tensors(last, TENSORS[case])
    else:
        forged(last, VALUES[case])
    notices = []
    found = steps_of_the_search(folder, tmp_path / "out", notices, resume=True)
    assert any(text.startswith("Work of the stopped run is done again: the stored") for text in notices)
    assert found == undisturbed_search


# --- the folder --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "word"), [("seed=2", "recipe"), ("train.epochs=3", "recipe"), ("target.max_features=2", "recipe")]
)
def test_another_recipe_does_not_go_on_and_nothing_is_lost(folder, tmp_path, key, word, every_step):
    out = tmp_path / "out"
    stop(folder, out)
    before = steps(out)
    with pytest.raises(glprune.UsageError, match=f"the stopped run had another {word}; .*--overwrite"):
        run(folder, out, key, resume=True)
    assert steps(out) == before


def test_another_model_or_data_set_does_not_go_on(folder, tmp_path, every_step):
    own = tmp_path / "own"
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("undisturbed"))
    out = tmp_path / "out"
    stop(own, out)
    state = torch.load(own / "model.pt")
    torch.save({name: tensor * 2 for name, tensor in state.items()}, own / "model.pt")
    with pytest.raises(glprune.UsageError, match="another model;"):
        run(own, out, resume=True)
    table = pq.read_table(own / "data.parquet")
    pq.write_table(table.slice(1), own / "data.parquet")
    with pytest.raises(glprune.UsageError, match="another model and another data set;"):
        run(own, out, resume=True)


def test_changed_data_are_not_called_another_model_where_they_are_standardised(folder, tmp_path, every_step):
    own = tmp_path / "own"
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("undisturbed"))
    stop(own, tmp_path / "out", PointDone, 4, Killed, "data.standardize=train")
    table = pq.read_table(own / "data.parquet")
    pq.write_table(table.slice(1), own / "data.parquet")
    with pytest.raises(glprune.UsageError, match="had another data set;"):
        run(own, tmp_path / "out", "data.standardize=train", resume=True)


def test_a_stopped_run_is_neither_lost_nor_used_unasked(folder, undisturbed, tmp_path, every_step):
    out = tmp_path / "out"
    stop(folder, out)
    with pytest.raises(glprune.UsageError, match=r"out\.unfinished holds a run.*--resume.*--overwrite"):
        run(folder, out)
    assert steps(out) > 0
    told = []
    result = run(folder, out, overwrite=True, on_event=told.append)
    assert sum(isinstance(e, PointDone) for e in told) >= 4  # from the first point on
    assert facts(result.bundle) == undisturbed


def test_two_runs_do_not_write_one_bundle(folder, undisturbed, tmp_path):
    refusals = []

    def meddle(event):
        if isinstance(event, PointDone) and not refusals:
            with pytest.raises(glprune.UsageError, match="another run is writing it") as caught:
                run(folder, tmp_path / "out", overwrite=True)
            refusals.append(caught.value)

    result = run(folder, tmp_path / "out", on_event=meddle)
    assert len(refusals) == 1
    assert facts(result.bundle) == undisturbed


def test_an_older_bundle_set_aside_by_a_run_that_was_killed_comes_back(folder, tmp_path, undisturbed):
    """Killed between two renames: the old bundle is out of its place, the new one not yet in."""
    out = tmp_path / "out"
    run(folder, out)
    (tmp_path / "out.unfinished").mkdir()
    out.rename(tmp_path / "out.unfinished" / "old")
    with pytest.raises(glprune.ModelError):
        glprune.run(folder / "recipe.yaml", folder / "data.parquet", out, overwrite=True)
    assert facts(out) == undisturbed


@contextlib.contextmanager
def no_file_above(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize("size", [500, 3_000, 20_000])
def test_a_full_disk_is_one_line_and_loses_nothing(folder, undisturbed, tmp_path, size, every_step):
    out = tmp_path / "out"
    with pytest.raises(glprune.UsageError) as caught, no_file_above(size):
        run(folder, out)
    assert "cannot be written (File too large); free some space" in str(caught.value)
    assert not out.exists()
    assert keeps_work(caught.value) == unfinished_path(out).exists()
    assert facts(run(folder, out, resume=True).bundle) == undisturbed


@pytest.mark.parametrize("parent", ["/proc/nowhere", "/dev/null/nowhere", "/sys/kernel"])
def test_a_place_that_cannot_be_written_is_one_line(folder, parent):
    with pytest.raises(glprune.UsageError, match=r"cannot write here \(.+\); choose another --out"):
        run(folder, Path(parent) / "out")


@pytest.mark.slow
def test_a_small_file_system_that_runs_full_loses_nothing(folder, undisturbed, tmp_path, every_step):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=72k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(glprune.UsageError, match=r"No space left on device\); free some space"):
            run(folder, small / "out")
        assert not (small / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        assert facts(run(folder, small / "out", resume=True).bundle) == undisturbed
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(glprune.UsageError, match=r"cannot write here \(Read-only file system\)"):
            run(folder, small / "other")
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- signals -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
def test_a_signal_saves_says_how_to_go_on_and_that_works(folder, undisturbed, tmp_path, number, code, word):
    out = tmp_path / "a bundle"
    command = [str(folder / "recipe.yaml"), str(folder / "model.pt"), "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-m", "glprune.cli", "run", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.strip().startswith("point 3"):
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in rest
    last = rest.splitlines()[-1]
    assert last.startswith(
        f"glprune: {word}; finished work is kept in {unfinished_path(out)}. To continue: glprune run "
    )
    again = shlex.split(last.partition("To continue: ")[2])
    done = subprocess.run([sys.executable, "-m", "glprune.cli", *again[1:], "--quiet"], check=False)
    assert done.returncode == 0
    assert facts(out) == undisturbed
