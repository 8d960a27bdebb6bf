"""One search in two processes: the support of one process, equal weights in both, one writer."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import glprune
from glprune import crew
from glprune.crew import Crew
from glprune.data import TensorSplit
from glprune.recipe import load_recipe
from glprune.sharing import SharedSplit
from tests.networks import write_planted

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
train: {epochs: 2, points: 4, batch_size: 63, polish: 4, stages: 2}
refit: {epochs: 3, batch_size: 64}
seed: 1
"""
SCRIPT = """
import json, sys, torch
import glprune
from glprune import crew
from glprune.errors import ModelError
from glprune.journal import Journal
from glprune.sharing import SharedJournal
torch.set_num_threads(1)
with crew.joined() as members:
    with crew.together(members):
        layer = torch.nn.Linear(2, 1, bias=False)
        layer.weight.grad = torch.full((1, 2), 1.0 + members.rank)
        crew.average_gradients_(layer.parameters(), 3 if members.first else 1)
        mean = layer.weight.grad.tolist()
        crew.sum_gradients_(layer.parameters())
        summed, clock = layer.weight.grad.tolist(), crew.agreed(members.rank + 7)
        journal = SharedJournal(Journal(), members)
        journal.keep("same", {}, {"a": 1}, {"w": torch.ones(2)})
        try:
            journal.keep("other", {}, {"a": 1}, {"w": torch.ones(2) * members.rank})
            told = ""
        except ModelError as error:
            told = str(error)
    facts = {"mean": mean, "sum": summed, "clock": clock, "told": told}
    result = glprune.run(sys.argv[1] + "/recipe.yaml", sys.argv[1] + "/model.pt", sys.argv[2])
    state = result.report.model_dump(mode="json")
    facts["kept"] = [f["name"] for f in state["features"] if f["status"] == "kept"]
    print(json.dumps(facts), file=open(f"{sys.argv[2]}.{members.rank}.json", "w"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_planted(tmp_path_factory.mktemp("crew"), NETWORK, RECIPE, 301, row_group_size=40)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def torchrun(*command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(
        [*launcher, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def both(folder):
    """What each of two processes says, and the bundle of one process."""
    done = torchrun(folder / "script.py", folder, folder / "two")
    assert done.returncode == 0, done.stderr
    one = glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "one")
    return [json.loads((folder / f"two.{rank}.json").read_text()) for rank in (0, 1)], one


def test_gradients_are_means_over_all_rows_and_what_differs_is_taken_from_the_first(both):
    (first, second), _ = both
    assert first["mean"] == second["mean"] == [[1.25, 1.25]]  # (3 * 1 + 1 * 2) / 4
    assert first["sum"] == second["sum"] == [[2.5, 2.5]]
    assert (first["clock"], second["clock"]) == (7, 7)


def test_other_weights_in_one_process_end_the_run(both):
    (first, second), _ = both
    assert first["told"] == ""
    assert second["told"].startswith("process 1 has other weights than process 0 after the same step (other)")


def test_two_processes_find_the_support_of_one_along_the_same_path(both, folder):
    told, one = both
    two = json.loads((folder / "two" / "report.json").read_text())
    alone = one.report.model_dump(mode="json", by_alias=True)
    kept = [f["name"] for f in alone["features"] if f["status"] == "kept"]
    assert told[0]["kept"] == told[1]["kept"] == kept == ["f0", "f1", "f2"]
    assert [h["after"] for h in two["hidden"]] == [h["after"] for h in alone["hidden"]] == [5]
    first = [(p["lam"], p["fields"], p["loss"]) for p in alone["path"] if p["stage"] == 1]
    np.testing.assert_allclose(
        [(p["lam"], p["fields"], p["loss"]) for p in two["path"] if p["stage"] == 1], first, rtol=1e-3
    )


def test_the_first_process_alone_writes_and_says_what_is_wrong(folder, tmp_path):
    (tmp_path / "out").mkdir()
    done = torchrun(
        "-m", "glprune.cli", "run", folder / "recipe.yaml", folder / "model.pt", "--out", tmp_path / "out"
    )
    assert done.returncode != 0
    assert f"glprune: {tmp_path / 'out'} exists; choose another --out or pass --overwrite." in done.stderr
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("size", [None, 1, 4, 7])
def test_parts_of_a_batch_are_together_the_batch(size):
    rows = TensorSplit((torch.arange(22.0).reshape(11, 2),), torch.arange(11))
    parts = [SharedSplit(rows, Crew(rank, 3)) for rank in range(3)]
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
    from glprune.data import StreamedSplit, load_data

    streamed = load_data(load_recipe(folder / "recipe.yaml", ["data.stream={}"])).train
    assert isinstance(streamed, StreamedSplit)
    shares = [
        list(
            SharedSplit(streamed, Crew(rank, 3)).batches(
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
    crew.average_gradients_(layer.parameters(), 5)
    assert (layer.weight.grad.tolist(), crew.total(3.0), crew.agreed("x")) == ([[1, 1]], 3.0, "x")
