"""Whatever ends a run, what it has done stays, and the message says how to go on."""

import json
import os
import re
import signal
import sys

import pytest

import glprune
from glprune.cli.main import main
from glprune.errors import exit_code
from glprune.runtime import output_folder
from glprune.runtime.checkpoint import checkpoints
from glprune.runtime.events import Notice, PointDone
from glprune.runtime.output_folder import keeps_work, unfinished_path
from glprune.runtime.process_pool import ProcessPool
from glprune.schema.recipe_loading import load_recipe
from glprune.search import search
from tests.integration.test_parallel_paths import RECIPE as PATHS
from tests.integration.test_parallel_paths import facts as facts_of_paths
from tests.integration.test_resume import RECIPE, facts, stopper
from tests.networks import write_planted

NETWORK = """
import os, signal
from multiprocessing import parent_process
from torch import nn

def build():
    if parent_process() is not None and os.environ.get("KILLED"):
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
"""
OWN = RECIPE + "search: path\nworkers: {engine: local, processes: 2}\n"
RESAMPLES = "stability={n_resamples: 2, drop_cost: false}"
SHORT = ["penalty.hidden=null", "target={max_features: 4}", "train.n_stages=1"]
SET_SHORT = [part for change in SHORT for part in ("--set", change)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("lost"), NETWORK, OWN, 300)


@pytest.fixture(scope="module")
def undisturbed(folder):
    return facts(run(folder, folder / "undisturbed"))


@pytest.fixture
def kill_workers(monkeypatch):
    """A function: the workers of as many pools, from the next one that starts, are killed.

    Processes that count for themselves would count wrongly: two of one pool may die at the same time.
    """
    start = ProcessPool._start

    def kill(pools):
        left = iter(range(pools))

        def start_killed(pool, processes):
            monkeypatch.setenv("KILLED", "" if next(left, None) is None else "yes")
            start(pool, processes)

        monkeypatch.setattr(ProcessPool, "_start", start_killed)
        return left

    return kill


def run(folder, out, *overrides, **options):
    return glprune.run(
        load_recipe(folder / "recipe.yaml", overrides), folder / "model.pt", out, **options
    ).bundle


def command(folder, out, *options):
    """Run the command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        arguments = [
            "run",
            str(folder / "recipe.yaml"),
            str(folder / "model.pt"),
            "--out",
            str(out),
            *options,
        ]
        patch.setattr(sys, "argv", ["glprune", *arguments])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main(arguments))
    return ended.value.code or 0


def errors(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("glprune:")]


# --- workers -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_resamples_of_a_killed_worker_are_searched_again(folder, tmp_path, kill_workers):
    whole = facts(run(folder, tmp_path / "whole", RESAMPLES))
    left = kill_workers(1)
    heard = []
    found = facts(run(folder, tmp_path / "out", RESAMPLES, on_event=heard.append))
    assert not list(left)
    assert found == whole
    assert [e.text for e in heard if isinstance(e, Notice) and "killed" in e.text] == [
        "A worker process was killed, probably for lack of memory; its work is tried again with "
        "workers.processes: 1."
    ]


@pytest.mark.slow
def test_workers_killed_twice_end_the_run_with_its_work_kept(folder, tmp_path, kill_workers, capfd):
    out, options = tmp_path / "out", ["--quiet", "--set", RESAMPLES]
    kill_workers(2)
    assert command(folder, out, *options) == 1
    (line,) = errors(capfd)
    assert re.fullmatch(
        r"glprune: A worker process was killed, .*, twice; set workers.processes lower; finished work is kept in "
        r".*out\.unfinished\. To continue: glprune run .* --resume",
        line,
    )
    assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "glprune.training.solver.PointSolver.solve", None
        )  # nothing of the search is done again
        assert command(folder, out, *options, "--set", "workers.processes=1", "--resume") == 0
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_the_paths_of_a_killed_worker_are_run_again(tmp_path, kill_workers, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    write_planted(own, NETWORK, PATHS, 200)
    whole = facts_of_paths(run(own, tmp_path / "whole"))
    monkeypatch.setattr(search, "_PARALLEL_SECONDS", 0.0)
    left = kill_workers(1)
    assert facts_of_paths(run(own, tmp_path / "out")) == whole
    assert not list(left)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        glprune.DataError("a file is gone"),
        glprune.ModelError("an operation failed"),
        glprune.GlpruneError("a plugin failed"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(24, "Too many open files"),
        ZeroDivisionError("a bug"),
        GeneratorExit(),
        SystemExit(0),
        BaseException("odd"),
    ],
)
def test_an_error_of_any_kind_keeps_what_was_done(folder, undisturbed, tmp_path, error):
    out = tmp_path / "out"

    def fail(event):
        if isinstance(event, PointDone) and event.index == 2:
            raise error

    with pytest.raises(type(error)) as caught:
        run(folder, out, on_event=fail)
    assert caught.value.__notes__ == [f"Finished work is kept in {out}.unfinished; continue with --resume."]
    assert os.listdir(tmp_path) == ["out.unfinished"]
    error.__notes__.clear()
    if isinstance(error, glprune.DataError):  # the others end alike
        assert facts(run(folder, out, resume=True)) == undisturbed


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (glprune.DataError("a file is gone."), 4, "a file is gone"),
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("std::bad_alloc"), 1, "not enough memory"),
        (OSError(24, "Too many open files"), 2, "Too many open files"),
    ],
)
def test_the_message_of_an_error_names_resume(folder, tmp_path, monkeypatch, capfd, error, code, text):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("glprune.pipeline.finish", fail)
    assert command(folder, tmp_path / "out", "--quiet", *SET_SHORT) == code == exit_code(error)
    (line,) = errors(capfd)
    assert line.startswith(
        f"glprune: {text}; finished work is kept in {tmp_path}/out.unfinished. To continue: "
    )
    assert line.endswith("--resume")


def test_a_bug_keeps_its_traceback_and_names_the_whole_command(folder, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("glprune.pipeline.finish", fail)
    with pytest.raises(ZeroDivisionError) as caught:
        command(folder, tmp_path / "out", "--quiet", *SET_SHORT)
    (note,) = caught.value.__notes__
    assert note.startswith(
        f"Finished work is kept in {tmp_path}/out.unfinished. To continue: glprune run {folder}/recipe.yaml "
    )
    assert note.endswith(" --resume")


def test_a_run_that_its_recipe_ends_leaves_nothing(folder, tmp_path):
    with pytest.raises(glprune.TargetError) as caught:
        run(folder, tmp_path / "out", on_event=stopper(PointDone, 2, glprune.TargetError))
    assert not keeps_work(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_resumed_run_that_fails_before_it_begins_loses_nothing(folder, undisturbed, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, on_event=stopper(PointDone, 3, KeyboardInterrupt))
    kept = sorted(p.read_bytes() for p in checkpoints(unfinished_path(out)))
    with pytest.raises(glprune.DataError) as caught:
        run(folder, out, "data.file=gone.parquet", resume=True)
    assert not keeps_work(caught.value)
    with pytest.raises(glprune.ModelError):
        glprune.run(folder / "recipe.yaml", folder / "gone.pt", out, resume=True)
    with pytest.raises(glprune.RecipeError):
        run(folder, out, "export.plugins=[nothing]", resume=True)
    assert sorted(p.read_bytes() for p in checkpoints(unfinished_path(out))) == kept
    assert facts(run(folder, out, resume=True)) == undisturbed


def test_an_older_bundle_comes_back_when_a_run_is_stopped_while_it_replaces_it(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(folder, out, *SHORT)
    before = facts(out)

    def stopped(stage, out, scratch):
        out.rename(scratch / "old")
        raise KeyboardInterrupt

    monkeypatch.setattr(output_folder, "_replace", stopped)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(folder, out, *SHORT, overwrite=True)
    assert keeps_work(caught.value)
    assert facts(out) == before


def test_a_run_that_is_stopped_when_its_bundle_is_in_place_says_so(folder, tmp_path, monkeypatch, capfd):
    def stopped(folder):
        if folder == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr(output_folder, "sync_folder", stopped)
    assert command(folder, tmp_path / "out", "--quiet", *SET_SHORT) == 130
    assert errors(capfd) == [f"glprune: interrupted; The bundle is written: {tmp_path}/out."]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("glprune.cli.main._print_result", signal.SIGTERM),
        ("glprune.cli.main._print_result", signal.SIGINT),
        ("glprune.pipeline.publish", signal.SIGTERM),
    ],
)
def test_a_signal_after_the_bundle_is_in_place_says_so(folder, tmp_path, monkeypatch, capfd, place, number):
    monkeypatch.setattr(place, lambda *arguments: os.kill(os.getpid(), number))
    assert command(folder, tmp_path / "out", "--quiet", *SET_SHORT) == 128 + number
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert errors(capfd) == [f"glprune: {word}; The bundle is written: {tmp_path}/out."]
    assert os.listdir(tmp_path) == ["out"]


def test_an_older_bundle_is_no_bundle_of_a_run_that_was_stopped(folder, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    run(folder, out, *SHORT)
    monkeypatch.setattr("glprune.pipeline.begin", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    assert command(folder, out, "--quiet", "--overwrite", *SET_SHORT) == 143
    assert errors(capfd) == ["glprune: terminated; nothing was written"]


def test_a_damaged_checkpoint_is_reported(folder, undisturbed, tmp_path):
    out, heard = tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, on_event=stopper(PointDone, 3, KeyboardInterrupt))
    newest = checkpoints(unfinished_path(out))[-1]
    newest.write_text(json.dumps({"sha256": "", "content": {}}))
    assert facts(run(folder, out, resume=True, on_event=heard.append)) == undisturbed
    notices = [e.text for e in heard if isinstance(e, Notice)]
    assert f"{newest} is damaged or of another version and is not used." in notices
