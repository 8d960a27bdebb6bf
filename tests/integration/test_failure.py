"""Two processes that MPI started: they find what one finds, and whatever ends one of them ends both."""

import json
import os
import re
import socket
import subprocess
import sys
import zlib

import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

import glprune
from glprune.audit.verify import verify
from glprune.errors import DataError, GlpruneError, PeerFailedError, TargetError, UsageError
from glprune.export.latency import OnnxLatencyMeter
from glprune.runtime import failure
from glprune.runtime.failure import FailureStore
from glprune.runtime.launcher import ProcessInfo, launcher_warning, process_info
from glprune.schema.bundle import digest
from tests.networks import write_planted
from tests.paths import ROOT
from tests.unit.pruning.test_round_to import fixed_clock

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: shards, target: y, stream: {}}
penalty: {hidden: {strength: 1}}
target: {max_features: 3, max_hidden: 9, round_to: auto}
train: {epochs: 2, n_lambdas: 4, batch_size: 64, full_batch_steps: 2, n_stages: 1, precision: bf16}
refit: {epochs: 2, batch_size: 64}
export: {quantize: int8, exporter: torchscript}
seed: 1
"""
SCRIPT = """
import contextlib, io, json, os, shutil, signal, sys
from pathlib import Path
import torch
from glprune.cli.main import main
from glprune.export.latency import OnnxLatencyMeter
from glprune.runtime import checkpoint
from glprune.runtime.launcher import process_info
from glprune.training.solver import PointSolver
from tests.unit.pruning.test_round_to import fixed_clock

folder, rank = Path(sys.argv[1]), process_info().rank
checkpoint._SECONDS, checkpoint._SHARE = 0.0, float("inf")  # a checkpoint after every step
# the second process has no clock
OnnxLatencyMeter.against = fixed_clock(1.2) if rank == 0 else None
backward, left, types = PointSolver._backward, [0], set()

def struck(solver, inputs, target):
    left[0] -= 1
    if left[0] == 0 and rank == 1:
        fault(solver, inputs)
    value = backward(solver, inputs, target)
    types.update(str(t.dtype) for p in solver.objective.network.parameters() for t in (p, p.grad) if t is not None)
    return value

PointSolver._backward = struck

def nothing(solver, inputs): pass
def nan(solver, inputs): inputs[0][2, 1] = float("nan")
def shard(solver, inputs): shutil.move(folder / "shards" / "1.parquet", folder / "gone")
def bug(solver, inputs): 1 / 0
def sigterm(solver, inputs): os.kill(os.getpid(), signal.SIGTERM)
def sigkill(solver, inputs): os.kill(os.getpid(), signal.SIGKILL)
def perturbed(solver, inputs): next(solver.objective.network.parameters()).data.mul_(1.0001)

def run(name, out, at, *options):
    global fault
    fault, left[0], told, printed = globals()[name], at, io.StringIO(), io.StringIO()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv[1:] = ["run", str(folder / "recipe.yaml"), str(folder / "model.pt"), "--out", str(folder / out)]
    sys.argv += ["--json", *options]
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(printed):
        try:
            code = main() or 0
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code = type(error).__name__
    there = sorted(p.name for p in folder.glob(f"{out}*"))
    errors = [line for line in told.getvalue().splitlines() if line.startswith("glprune:")]
    silent = not told.getvalue() and not printed.getvalue()
    found[name if not options else f"{name} {options[0]}"] = [code, errors, there, silent]
    (folder / f"found.{rank}.json").write_text(json.dumps(found | {"types": sorted(types)}))

found = {}
torch.set_num_threads(1)
run("nothing", "whole", 0)
run("nan", "out", 30)
run("shard", "out", 30, "--overwrite")
if rank == 0:
    shutil.move(folder / "gone", folder / "shards" / "1.parquet")
run("perturbed", "out", 30, "--overwrite")
run("bug", "out", 60, "--overwrite")
run("sigterm", "out", 90, "--resume")
run("nothing", "out", 0, "--resume")
run("sigkill", "out2", 60)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_planted(tmp_path_factory.mktemp("parting"), NETWORK, RECIPE, 301)
    (folder / "shards").mkdir()
    table = pq.read_table(folder / "data.parquet")
    for number in range(4):
        pq.write_table(
            table.slice(80 * number, 80), folder / "shards" / f"{number}.parquet", row_group_size=40
        )
    (folder / "script.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """Of each process: exit code, what it said and what was left, by what happened."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "OMPI_COMM_WORLD_SIZE": "2"}
    common["PYTHONPATH"] = str(ROOT)
    started = [
        subprocess.Popen(
            [sys.executable, folder / "script.py", folder],
            env=os.environ | common | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, -9], told
    return [json.loads((folder / f"found.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_the_support_is_that_of_one_process_whatever_the_recipe_asks_beside(folder, found, monkeypatch):
    monkeypatch.setattr(OnnxLatencyMeter, "against", fixed_clock(1.2))
    one = glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "one").report
    assert [process["nothing"] for process in found] == [
        [0, [], ["whole"], silent] for silent in (False, True)
    ]
    two = json.loads((folder / "whole" / "report.json").read_text())
    kept = [f.name for f in one.features if f.status == "kept"]
    assert [f["name"] for f in two["features"] if f["status"] == "kept"] == kept == ["f0", "f1", "f2"]
    assert two["hidden"][0]["after"] == one.hidden[0].after == 8
    assert two["widths"]["round_to"] == 8
    assert two["quantized"]["bytes"] == (folder / "whole" / "model.int8.onnx").stat().st_size
    assert verify(folder / "whole", isolated=False).exit_code == 0


@pytest.mark.slow
def test_weights_and_gradients_stay_float32_where_passes_are_bf16(found):
    assert [process["types"] for process in found] == [["torch.float32"]] * 2


CASES = {
    "nan": (
        4,
        4,
        "process 1: lambda .*, epoch 2, batch 2: input 1 holds NaN or Inf in row 3 of its 32; correct the data",
    ),
    "shard --overwrite": (4, 4, ".*shards/1.parquet: cannot be read"),
    "perturbed --overwrite": (
        3,
        3,
        r"process 1: weights are not those of process 0 after the same step \(point\); run all.*finished work is kept in .*--resume",
    ),
    "bug --overwrite": (
        1,
        "ZeroDivisionError",
        "process 1: ZeroDivisionError: division by zero; finished work is kept in .*--resume",
    ),
    "sigterm --resume": (143, 143, "process 1: terminated; finished work is kept in .*--resume"),
    "sigkill": (1, None, "another process was lost: .* finished work is kept in .*--resume"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_ends_one_process_ends_all_and_the_first_says_so_in_one_line(found, case):
    first, second, message = CASES[case]
    code, errors, there, _ = found[0][case]
    assert code == first
    assert len(errors) == 1
    assert re.match(f"glprune: {message}", errors[0])
    kept = "is kept in" in message
    assert there == ([f"{'out2' if case == 'sigkill' else 'out'}.unfinished"] if kept else [])
    if second is not None:
        assert found[1][case] == [second, [], there, True]


@pytest.mark.slow
def test_stopped_processes_go_on_to_what_undisturbed_ones_find(folder, found):
    assert [process["nothing --resume"] for process in found] == [[0, [], ["out"], s] for s in (False, True)]
    assert digest(folder / "out" / "model.onnx") == digest(folder / "whole" / "model.onnx")
    reports = [json.loads((folder / name / "report.json").read_text()) for name in ("out", "whole")]
    assert all(report.pop(key) for report in reports for key in ("timing", "latency"))
    assert all(report["quantized"].pop("latency") for report in reports)
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("error", "kind", "code", "text"),
    [
        (TargetError("not reached"), TargetError, 5, "process 1: not reached"),
        (GlpruneError("odd"), GlpruneError, 1, "process 1: odd"),
        (
            OSError(28, "No space left on device", "/t"),
            PeerFailedError,
            2,
            "process 1: /t: No space left on device",
        ),
        (MemoryError(), PeerFailedError, 1, "process 1: not enough memory"),
        (KeyError("k"), PeerFailedError, 1, "process 1: KeyError: 'k'"),
        (KeyboardInterrupt(), PeerFailedError, 130, "process 1: interrupted"),
    ],
)
def test_the_first_word_is_the_error_that_others_raise(error, kind, code, text):
    store = dist.HashStore()
    first, second = (FailureStore(store, rank, 2) for rank in range(2))
    second.publish(error)
    second.publish(DataError("afterwards"))
    heard = first.received(RuntimeError("broken"))
    assert (type(heard), heard.exit_code, str(heard)) == (kind, code, text)


def test_nobody_waits_for_ever_for_a_process_that_is_lost(monkeypatch):
    monkeypatch.setattr(failure, "_WAIT_FOR_MAIN", 0.01)
    store = dist.HashStore()
    board = FailureStore(store, 1, 2)
    heard = board.received(
        RuntimeError("[a/pair.cc:553] Connection closed by peer [::1]:7. This is typically")
    )
    assert str(heard).startswith("another process was lost: Connection closed by peer [::1]:7 (killed, ")
    board.leave(failed=True)
    assert not board.reported
    FailureStore(store, 0, 2).leave(failed=False)
    board.leave(failed=True)
    assert board.reported


ENVIRONMENTS = [
    ({}, ProcessInfo()),
    ({"WORLD_SIZE": "1", "RANK": "0"}, ProcessInfo()),
    ({"WORLD_SIZE": "2", "RANK": "1", "OMPI_COMM_WORLD_SIZE": "8"}, ProcessInfo(1, 2, "env://", "0")),
    ({"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RESTART_COUNT": "3"}, ProcessInfo(1, 2, "env://", "3")),
    (
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        ProcessInfo(1, 2, "tcp://127.0.0.1:29500"),
    ),
    (
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        | {"MASTER_ADDR": "a", "MASTER_PORT": "7"},
        ProcessInfo(3, 4, "tcp://a:7"),
    ),
    (
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        | {"PMIX_NAMESPACE": "x"},
        ProcessInfo(0, 2, f"tcp://127.0.0.1:{29500 + zlib.crc32(b'x') % 1000}"),
    ),
]


@pytest.fixture
def bare(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI", "SLURM_", "PBS_", "MASTER_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return lambda environment: [monkeypatch.setenv(*pair) for pair in environment.items()]


@pytest.mark.parametrize(("environment", "expected"), ENVIRONMENTS)
def test_launchers_are_understood(bare, environment, expected):
    bare(environment)
    assert process_info() == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not set; start the processes through torchrun"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is set and WORLD_SIZE is 'two'"),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            "several machines and MASTER_ADDR is not set",
        ),
    ],
)
def test_half_an_environment_is_refused(bare, environment, message):
    bare(environment)
    with pytest.raises(UsageError, match=message):
        process_info()


def test_one_process_where_accelerate_was_asked_for_two_is_told(bare):
    bare({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"})
    assert "started one" in launcher_warning()
    bare({"WORLD_SIZE": "2"})
    assert launcher_warning() is None
