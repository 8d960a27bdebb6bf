"""Work in other processes: order, errors, a process that dies, a script without a guard."""

import functools
import operator
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import glprune
from glprune.errors import GlpruneError, SignalInterrupt, TargetError, exit_code
from glprune.runtime.checkpoint import CheckpointLog
from glprune.runtime.events import Notice, Progress
from glprune.runtime.process_pool import OutcomeLog, ProcessPool, map_with_checkpoint
from glprune.runtime.worker_pool import is_parallel, make_worker_pool
from glprune.schema.recipe import WorkersSpec
from tests.integration_packages import need

SCRIPT = """
import functools, operator
from glprune.runtime.process_pool import ProcessPool
print("begun")
with ProcessPool(functools.partial(int, 12), 2) as workers:
    print(workers.map(operator.floordiv, [4, 1, 3], lambda place, outcome: None))
    print(workers.map(operator.add, [0, 1], lambda place, outcome: None))
"""


def test_a_script_without_a_main_guard_is_not_run_again_and_outcomes_keep_their_order(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["begun", "[3, 12, 4]", "[12, 13]"]
    assert done.stderr == ""


def test_an_error_stops_the_work_and_reaches_the_caller():
    told = []
    with pytest.raises(ZeroDivisionError), ProcessPool(functools.partial(int, 12), 1) as workers:
        workers.map(operator.floordiv, [1, 0, *[1] * 50], lambda place, outcome: told.append(outcome))
    assert told in ([12], [])


def test_a_process_that_dies_again_is_told_in_one_line():
    told = []
    with (
        pytest.raises(GlpruneError, match=r"killed.*, twice; set workers\.processes lower\.$") as caught,
        ProcessPool(functools.partial(os._exit, 9), 1) as workers,
    ):
        workers.map(operator.add, [1], lambda place, outcome: None, told.append)
    assert "\n" not in str(caught.value)
    assert len(told) == 1


def killed_once(folder, item):
    """Be killed at the first item 3, as for lack of memory."""
    with (folder / "tries").open("a") as tries:
        tries.write(f"{item}\n")
    if item == 3 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_the_work_of_a_killed_process_is_tried_again_by_half_as_many(tmp_path):
    told, done = [], []
    with ProcessPool(functools.partial(Path, tmp_path), 2) as workers:
        found = workers.map(killed_once, range(6), lambda place, outcome: done.append(place), told.append)
        assert workers.map(killed_once, [7], lambda place, outcome: None) == [49]
    assert found == [0, 1, 4, 9, 16, 25]
    assert sorted(done) == list(range(6))
    assert [event.text for event in told] == [
        "A worker process was killed, probably for lack of memory; its work is tried again with "
        "workers.processes: 1."
    ]
    assert (tmp_path / "tries").read_text().split().count("3") == 2


class Here:
    """Workers in this process."""

    def map(self, work, items, done, listener):
        for place, item in enumerate(items):
            done(place, work(None, item))


def doubled(state, item):
    return 2 * item


def test_outcomes_of_a_stopped_run_that_cannot_be_used_are_made_again():
    stored = {"0": 0, "1": "two", "2": 5, "3": None, "5": 10, "x": 1}
    log = CheckpointLog()
    step = log.save_step("resamples", {}, stored)
    outcomes = OutcomeLog(step, log, TypeAdapter(int), "parts", lambda index, outcome: outcome == 2 * index)
    heard, made = [], []

    def work(state, item):
        made.append(item)
        return doubled(state, item)

    assert map_with_checkpoint(Here(), work, range(6), outcomes, heard.append) == [0, 2, 4, 6, 8, 10]
    assert made == [1, 2, 3, 4]
    assert heard == [Progress("parts", number, 6) for number in (3, 4, 5, 6)]


def refuse(state, item):
    raise TargetError(f"{item} is too much")


@pytest.mark.slow
@pytest.mark.with_ray
def test_ray_gives_the_same_outcomes_in_order_and_errors_as_they_were_raised(tmp_path):
    ray = need("ray")
    with make_worker_pool(
        functools.partial(int, 12), WorkersSpec(engine="ray", processes=2), "recipe.yaml:1: workers.engine"
    ) as workers:
        told = []
        found = workers.map(
            operator.floordiv, [4, 1, 3], lambda place, outcome: told.append((place, outcome))
        )
        assert found == [3, 12, 4]
        assert sorted(told) == [(0, 3), (1, 12), (2, 4)]
        with pytest.raises(TargetError, match=r"^7 is too much$"):
            workers.map(refuse, [7], lambda place, outcome: None)
        with pytest.raises(GlpruneError, match=r"worker of Ray was lost.*twice.*workers\.processes"):
            workers.map(ending, [9], lambda place, outcome: None)
    with make_worker_pool(
        functools.partial(Path, tmp_path),
        WorkersSpec(engine="ray", processes=2),
        "recipe.yaml:1: workers.engine",
    ) as workers:
        assert workers.map(killed_once, [2, 3, 4], lambda place, outcome: None) == [4, 9, 16]
    assert (tmp_path / "tries").read_text().split().count("3") == 2
    assert not ray.is_initialized()


def unreachable(address, **options):
    raise ConnectionError(f"no answer from {address}")


def ending(state, item):
    os._exit(item)


@pytest.mark.with_ray
def test_the_engine_is_the_recipes_or_ray_where_it_is_installed(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    auto, local, on_ray = (WorkersSpec(engine=e, processes=1) for e in ("auto", "local", "ray"))
    assert isinstance(make_worker_pool(int, local, "x"), ProcessPool)
    with monkeypatch.context() as patch:
        patch.setattr("glprune.runtime.worker_pool.ray_installed", lambda: False)
        assert isinstance(make_worker_pool(int, auto, "x"), ProcessPool)
        with pytest.raises(glprune.RecipeError, match=r"^recipe.yaml:3: .*glprune\[ray\]"):
            make_worker_pool(int, on_ray, "recipe.yaml:3: workers.engine")
    ray = need("ray")
    asked = []

    def start(**options):
        asked.append(options)
        raise RuntimeError("no room for a raylet\nat all")

    monkeypatch.setattr(ray, "init", start)
    heard = []
    assert isinstance(make_worker_pool(int, auto, "x", listener=heard.append), ProcessPool)
    assert heard == [Notice("Ray cannot be joined (no room for a raylet); local processes are used instead.")]
    assert asked[0]["num_cpus"] == 1
    with pytest.raises(GlpruneError, match=r"^Ray cannot be joined \(no room.*set workers.engine: local.$"):
        make_worker_pool(int, on_ray, "x")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "init", unreachable)
    with pytest.raises(GlpruneError, match=r"Ray cannot be joined at 127\.0\.0\.1:1 .*engine: local"):
        make_worker_pool(int, auto, "x")


@pytest.mark.with_ray
@pytest.mark.parametrize(
    "error", [Exception("The current node timed out"), SystemExit(1), OSError(28, "full"), Exception()]
)
def test_a_ray_that_does_not_start_leaves_no_process_and_no_traceback(monkeypatch, error):
    ray = need("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before, started = subprocess.Popen(["sleep", "60"]), []

    def start(**options):
        started.append(subprocess.Popen(["sleep", "60"]))
        raise error

    monkeypatch.setattr(ray, "init", start)
    auto, on_ray = (WorkersSpec(engine=engine, processes=1) for engine in ("auto", "ray"))
    assert isinstance(make_worker_pool(int, auto, "x"), ProcessPool)
    with pytest.raises(GlpruneError, match=r"^Ray cannot be joined \(.+\); set workers.engine: local\.$"):
        make_worker_pool(int, on_ray, "x")
    assert [process.wait(10) for process in started] == [-signal.SIGKILL] * 2
    assert before.poll() is None
    before.kill()
    before.wait()


@pytest.mark.with_ray
def test_a_broken_ray_is_one_that_does_not_start(monkeypatch):
    monkeypatch.setattr("glprune.runtime.worker_pool.ray_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "glprune.runtime.ray_pool", None)
    heard = []
    auto = WorkersSpec(engine="auto", processes=1)
    assert isinstance(make_worker_pool(int, auto, "x", listener=heard.append), ProcessPool)
    assert heard[0].text.startswith("Ray cannot be imported (")
    with pytest.raises(GlpruneError, match=r"^Ray cannot be imported \(.*set workers.engine: local"):
        make_worker_pool(int, WorkersSpec(engine="ray"), "x")


@pytest.mark.with_ray
@pytest.mark.parametrize("code", [15, 1])
def test_sigterm_while_ray_starts_is_no_error_of_the_network(monkeypatch, code):
    ray = need("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def start(**options):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(code))  # as Ray and its node do
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(number, frame):
        raise SignalInterrupt(number)

    monkeypatch.setattr(ray, "init", start)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SignalInterrupt) as caught:
            make_worker_pool(int, WorkersSpec(engine="ray", processes=1), "x")
        assert exit_code(caught.value) == 143
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("spec", "threads", "expected"),
    [({}, 1, True), ({}, 4, False), ({"processes": 1}, 1, False), ({"processes": 2}, 9, True)],
)
def test_more_than_one_worker_needs_cores_or_the_recipes_word(spec, threads, expected, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("glprune.runtime.worker_pool.available_cores", lambda: 4)
    assert is_parallel(WorkersSpec(**spec), threads) is expected
