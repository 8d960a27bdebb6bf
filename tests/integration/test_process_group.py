"""One search in two processes: the support of one process, equal weights in both, one writer."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import glprune
from glprune.data import StreamedSplit, TensorSplit, load_data
from glprune.data.sharding import ShardedSplit
from glprune.runtime.process_group import ALONE, ProcessGroup
from glprune.schema.bundle import digest
from glprune.schema.recipe_loading import load_recipe
from tests.integration_packages import need
from tests.networks import write_planted

pytestmark = pytest.mark.slow  # two processes start for every run

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
penalty: {hidden: {strength: 1}}
target: {max_features: 3, max_hidden: 5}
train: {epochs: 2, n_lambdas: 4, batch_size: 63, full_batch_steps: 4, n_stages: 2}
refit: {epochs: 3, batch_size: 64}
export: {exporter: torchscript}
seed: 1
"""
SCRIPT = """
import json, sys, torch
import glprune
from glprune.errors import ModelError, NonFiniteError
from glprune.runtime.checkpoint import CheckpointLog, DistributedCheckpoint
from glprune.runtime.process_group import init_process_group
torch.set_num_threads(1)
with init_process_group() as group:
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.full((1, 2), 1.0 + group.rank)
    losses = [group.average_gradients_(layer.parameters(), 4.0 * group.rank, 3 if group.is_main else 1)]
    mean = layer.weight.grad.tolist()
    losses.append(group.sum_gradients_(layer.parameters(), 0.1))
    summed, clock = layer.weight.grad.tolist(), group.measure_on_rank0(lambda: group.rank + 7)
    loss = 0.0 if group.is_main else float("inf")
    lost = [group.average_gradients_(layer.parameters(), loss, 1), group.sum_gradients_(layer.parameters(), loss)]
    unchanged = layer.weight.grad.tolist()
    own = None if group.is_main else NonFiniteError("it is not finite")
    blamed, no_one = group.first_error(own, "here", "fix"), group.first_error(None, "here", "fix it")
    journal = DistributedCheckpoint(CheckpointLog(), group)
    journal.save_step("same", {}, {"a": 1}, {"w": torch.ones(2)})
    try:
        journal.save_step("other", {}, {"a": 1}, {"w": torch.ones(2) * group.rank})
        told = ""
    except ModelError as error:
        told = str(error)
    facts = {"mean": mean, "sum": summed, "clock": clock, "told": told, "losses": losses, "lost": list(map(str, lost))}
    facts |= {"unchanged": unchanged, "errors": [repr(blamed), repr(no_one)]}
    paths = (sys.argv[1] + "/recipe.yaml", sys.argv[1] + "/model.pt", sys.argv[2])
    result = glprune.run(*paths, process_group=group)
    state = result.report.model_dump(mode="json")
    facts["kept"] = [f["name"] for f in state["features"] if f["status"] == "kept"]
    print(json.dumps(facts), file=open(f"{sys.argv[2]}.{group.rank}.json", "w"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_planted(tmp_path_factory.mktemp("crew"), NETWORK, RECIPE, 301, row_group_size=40)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def launched(*command):
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": os.devnull},
    )


@pytest.fixture(scope="module")
def both(folder):
    """What each of two processes says, and the bundle of one process."""
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = launched(sys.executable, "-m", *torchrun, folder / "script.py", folder, folder / "two")
    assert done.returncode == 0, done.stderr
    one = glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "one")
    return [json.loads((folder / f"two.{rank}.json").read_text()) for rank in (0, 1)], one


def test_gradients_are_means_over_all_rows_and_what_differs_is_taken_from_the_first(both):
    (first, second), _ = both
    assert first["mean"] == second["mean"] == [[1.25, 1.25]]  # (3 * 1 + 1 * 2) / 4
    assert first["sum"] == second["sum"] == [[2.5, 2.5]]
    assert (first["clock"], second["clock"]) == (7, 7)
    assert first["losses"] == second["losses"] == [1.0, 0.2]  # (3 * 0 + 1 * 4) / 4


def test_what_is_not_finite_in_one_process_is_heard_by_all_and_gradients_stay_their_own(both):
    for process in both[0]:
        assert process["lost"] == ["nan", "nan"]
        assert process["unchanged"] == process["sum"]
        assert process["errors"] == [
            "NonFiniteError('process 1: it is not finite')",
            "NonFiniteError('here: the loss or a gradient over all rows is not finite; fix it.')",
        ]


def test_other_weights_in_one_process_end_the_run(both):
    (first, second), _ = both
    assert first["told"] == ""
    assert second["told"].startswith("weights are not those of process 0 after the same step (other)")


def test_two_processes_find_the_support_of_one_along_the_same_path(both, folder):
    told, one = both
    two = json.loads((folder / "two" / "report.json").read_text())
    alone = one.report.model_dump(mode="json", by_alias=True)
    kept = [f["name"] for f in alone["features"] if f["status"] == "kept"]
    assert told[0]["kept"] == told[1]["kept"] == kept == ["f0", "f1", "f2"]
    assert [h["after"] for h in two["hidden"]] == [h["after"] for h in alone["hidden"]] == [5]
    first = [(p["lam"], p["features"], p["loss"]) for p in alone["path"] if p["stage"] == 1]
    np.testing.assert_allclose(
        [(p["lam"], p["features"], p["loss"]) for p in two["path"] if p["stage"] == 1], first, rtol=1e-3
    )


@pytest.mark.slow
def test_accelerate_starts_them_too_and_the_first_alone_writes(both, folder, tmp_path):
    need("accelerate")
    arguments = [
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    command = ["run", folder / "recipe.yaml", folder / "model.pt", "--out", tmp_path / "out", "--json"]
    # without a GPU as with some: it is torchrun that this starts
    accelerate = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--main_process_port",
        "0",
    ]
    done = launched(*accelerate, *arguments, "-m", "glprune.cli", *command)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]  # and nothing else is printed
    assert [f["name"] for f in report["features"] if f["status"] == "kept"] == both[0][0]["kept"]
    assert done.stderr.count("path 1: ") == 1
    assert os.listdir(tmp_path) == ["out"]
    assert digest(tmp_path / "out" / "model.onnx") == digest(folder / "two" / "model.onnx")


@pytest.mark.parametrize("size", [None, 1, 4, 7])
def test_parts_of_a_batch_are_together_the_batch(size):
    rows = TensorSplit((torch.arange(22.0).reshape(11, 2),), torch.arange(11))
    parts = [ShardedSplit(rows, ProcessGroup(rank, 3)) for rank in range(3)]
    assert {part.rows for part in parts} == {11}
    for seed in (None, 5):
        generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(4)]
        whole = [y for _, y in rows.batches(size, generators[3])]
        shares = [list(p.batches(size, g)) for p, g in zip(parts, generators, strict=False)]
        assert len({len(share) for share in shares}) == 1
        for number, target in enumerate(whole):
            found = torch.cat([share[number][1] for share in shares])
            assert sorted(found.tolist()) == sorted(target.tolist())


@pytest.mark.parametrize("generated", [False, True])
def test_each_process_reads_row_groups_of_its_own_as_often_as_the_others(folder, generated):
    streamed = load_data(load_recipe(folder / "recipe.yaml", ["data.stream={}"])).train
    assert isinstance(streamed, StreamedSplit)
    shares = [
        list(
            ShardedSplit(streamed, ProcessGroup(rank, 3)).batches(
                30, torch.Generator().manual_seed(0) if generated else None
            )
        )
        for rank in range(3)
    ]
    assert len({len(share) for share in shares}) == 1
    assert all(len(y) <= 10 for share in shares for _, y in share)
    everything = torch.cat([x for share in shares for (x,), _ in share])
    (whole,) = zip(*(x for x, _ in streamed.batches(None, None)), strict=True)
    assert len(everything) == streamed.rows
    assert sorted(everything[:, 0].tolist()) == sorted(torch.cat(whole)[:, 0].tolist())


def test_one_process_sums_nothing():
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    losses = (
        ALONE.average_gradients_(layer.parameters(), 2.0, 5),
        ALONE.sum_gradients_(layer.parameters(), 4.0),
    )
    assert (layer.weight.grad.tolist(), losses) == ([[1, 1]], (2.0, 4.0))
    assert (ALONE.all_reduce_scalar(3.0), ALONE.measure_on_rank0(lambda: "x")) == (3.0, "x")


def test_row_groups_that_do_not_go_round_leave_processes_with_batches_of_no_rows(folder):
    streamed = load_data(load_recipe(folder / "recipe.yaml", ["data.stream={}"])).train
    shares = [ShardedSplit(streamed, ProcessGroup(rank, 10)) for rank in range(10)]
    batches = [list(share.batches(60, torch.Generator().manual_seed(0))) for share in shares]
    assert len({len(own) for own in batches}) == 1
    assert [sum(len(y) for _, y in own) > 0 for own in batches] == [True] * 8 + [False] * 2
    assert {(x.shape[1], x.dtype, y.dtype) for own in batches for (x,), y in own} == {
        (8, torch.float32, torch.int64)
    }
    assert shares[0].note().startswith("2 of 10 processes have no row group to read and wait")
    assert ShardedSplit(streamed, ProcessGroup(0, 8)).note() is None
    assert ShardedSplit(TensorSplit((torch.ones(1, 1),), torch.ones(1)), ProcessGroup(0, 8)).note() is None
