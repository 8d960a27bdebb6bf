"""Data larger than memory: what a streamed run holds, and what an epoch costs beside the same rows in memory.

Run: python benchmarks/streaming.py make FOLDER --rows 6700000      # a folder of Parquet files, and a network
     python benchmarks/streaming.py run FOLDER                      # a whole run on it: peak memory, seconds
     python benchmarks/streaming.py memory FOLDER [--memory]       # reading alone: peak over the rows' size
     python benchmarks/streaming.py rate FOLDER [--epochs 5]        # epochs in turn, streamed and in memory
Every command but the first prints one JSON record. Peaks are the kernel's VmHWM of the whole process.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from features import machine, versions

COLUMNS, SHARD, GROUP, SIGNAL = 400, 262_144, 32_768, 12
LAMBDA = 4e-5  # less than half of lambda_max, so that the path is one point
NETWORKS = {"small": (32,), "realistic": (256, 128)}
NETWORK = """
from torch import nn
def build(widths):
    sizes = [{columns}, *widths]
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
"""
RECIPE = """
task: binary
model: {{factory: "network.py:build", arguments: {{widths: {widths}}}}}
data: {{file: rows, target: y, standardize: train{stream}}}
penalty: {{inputs: {{strength: 1.0}}}}
target: {{lambda: {lam}}}
train: {{epochs: 1, n_stages: 1, lambda_min_ratio: 0.9, full_batch_steps: 0, batch_size: {batch}}}
refit: {{epochs: 1, start: path, batch_size: {batch}}}
seed: 0
"""


def make(folder: Path, rows: int) -> None:
    """Columns of sixteenths, which compress as measured values do; a few of them decide the label."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "rows").mkdir(parents=True)
    sample: list[np.ndarray] = []
    for shard, start in enumerate(range(0, rows, SHARD)):
        rng = np.random.default_rng(shard)
        x = rng.integers(-512, 513, (min(SHARD, rows - start), COLUMNS), dtype=np.int16)
        noise = rng.normal(size=len(x)) * 200
        y = (x[:, :SIGNAL].sum(axis=1, dtype=np.int64) + noise > 0).astype(np.int8)
        columns = [pa.array(x[:, j].astype(np.float32) / 16) for j in range(COLUMNS)]
        table = pa.Table.from_arrays([*columns, pa.array(y)], [*(f"x{j}" for j in range(COLUMNS)), "y"])
        pq.write_table(table, folder / "rows" / f"{shard:04}.parquet", row_group_size=GROUP)
        if shard == 0:
            sample = [x[:20_000].astype(np.float32) / 16, y[:20_000]]
    (folder / "network.py").write_text(NETWORK.format(columns=COLUMNS))
    for name, widths in NETWORKS.items():
        torch.save(trained(widths, *map(torch.from_numpy, sample)).state_dict(), folder / f"{name}.pt")


def trained(widths: tuple[int, ...], x: torch.Tensor, y: torch.Tensor) -> torch.nn.Module:
    """The network after a few passes over a few rows."""
    scope: dict[str, Any] = {}
    exec(NETWORK.format(columns=COLUMNS), scope)
    torch.manual_seed(0)
    network = scope["build"](widths)
    x = (x - x.mean(0)) / x.std(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(3):
        for part in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                network(x[part])[:, 0], y[part].float()
            )
            loss.backward()
            optimizer.step()
    return network


def recipe_of(folder: Path, network: str, batch: int, stream: bool, buffer: float = 256.0) -> Path:
    streamed = f", stream: {{buffer_mb: {buffer}}}" if stream else ""
    path = folder / f"{network}{'.streamed' if stream else ''}.yaml"
    widths = list(NETWORKS[network])
    path.write_text(RECIPE.format(widths=widths, stream=streamed, batch=batch, lam=LAMBDA))
    return path


def run(folder: Path, stream: bool, buffer: float) -> dict[str, Any]:
    """A whole run."""
    import glprune.pipeline

    before, start = peak(), time.perf_counter()
    recipe = recipe_of(folder, "small", 1024, stream, buffer)
    result = glprune.run(recipe, folder / "small.pt", folder / "bundle", overwrite=True)
    kept = {f.name for f in result.report.features if f.status == "kept"}
    return {
        "rows": rows_of(folder),
        "stream": stream,
        "buffer_mb": buffer if stream else None,
        "seconds": time.perf_counter() - start,
        "stages": result.report.timing.seconds,
        "peak_before_mb": before,
        "peak_mb": peak(),
        "kept": len(kept),
        "signal_kept": sum(f"x{j}" in kept for j in range(SIGNAL)),
        "test": {m.name: m.final for m in result.report.performance},
    }


def memory(folder: Path, stream: bool, buffer: float) -> dict[str, Any]:
    """Reading and checking alone."""
    from glprune import load_recipe, pipeline  # noqa: F401 - all that a run imports
    from glprune.data import load_data

    before, start = peak(), time.perf_counter()
    data = load_data(load_recipe(recipe_of(folder, "small", 1024, stream, buffer)))
    size = rows_of(folder) * COLUMNS * 4 / 2**20
    return {
        "rows": sum(s.rows for s in (data.train, data.valid, data.test)),
        "stream": stream,
        "float32_mb": size,
        "peak_over_start_mb": peak() - before,
        "of_the_rows": (peak() - before) / size,
        "seconds": time.perf_counter() - start,
    }


def rate(folder: Path, epochs: int, buffer: float) -> dict[str, Any]:
    """One epoch of the path, of a realistic network and the default batch, in memory and streamed."""
    from glprune import load_recipe
    from glprune.runtime.events import silent
    from glprune.search.prepare import prepare

    times: dict[str, list[tuple[float, ...]]] = {}
    passes: dict[str, Iterator[tuple[float, ...]]] = {}
    for name, stream in (("memory", False), ("streamed", True)):
        recipe = load_recipe(recipe_of(folder, "realistic", 128, stream, buffer))
        job = prepare(recipe, folder / "realistic.pt", False, silent)
        passes[name], times[name] = timed_epochs(job), []
        next(passes[name])  # pays for allocations, and brings the files into the page cache
    for _ in range(epochs):
        for name, drawn in passes.items():
            times[name].append(next(drawn))
    clocks = {
        clock: {name: [round(t[n], 2) for t in own] for name, own in times.items()}
        for n, clock in enumerate(("wall", "cpu_of_process", "cpu_of_training_thread"))
    }
    return {
        "rows": rows_of(folder),
        "buffer_mb": buffer,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "seconds": clocks,
        "ratio_of_medians": {
            clock: statistics.median(own["streamed"]) / statistics.median(own["memory"])
            for clock, own in clocks.items()
        },
    }


def timed_epochs(job: Any) -> Iterator[tuple[float, ...]]:
    """Seconds of one epoch after another: wall, processor, processor of the training thread alone."""
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    from glprune.training.objective import Objective
    from glprune.training.solver import PointSolver

    spec = job.recipe.train.model_copy(update={"epochs": 1, "full_batch_steps": 0})
    objective = Objective(
        job.network, job.task, job.data.train, job.penalised(), spec.constrain_unpenalised, job.recipe.penalty
    )
    solver = PointSolver(objective, spec, 0)
    while True:
        start = [clock() for clock in clocks]
        solver.solve(1e-5)
        yield tuple(clock() - begin for clock, begin in zip(clocks, start, strict=True))


def rows_of(folder: Path) -> int:
    return sum(pq.read_metadata(p).num_rows for p in sorted((folder / "rows").glob("*.parquet")))


def bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in (folder / "rows").glob("*.parquet"))


def peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["make", "run", "memory", "rate"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--buffer", type=float, default=256.0)
    parser.add_argument("--memory", dest="stream", action="store_false", help="hold the rows in memory")
    asked = parser.parse_args()
    if asked.command == "make":
        return make(asked.folder, asked.rows)
    commands = {
        "run": functools.partial(run, asked.folder, asked.stream, asked.buffer),
        "memory": functools.partial(memory, asked.folder, asked.stream, asked.buffer),
        "rate": functools.partial(rate, asked.folder, asked.epochs, asked.buffer),
    }
    record = {"command": asked.command, **commands[asked.command]()}
    record |= {"disk_mb": bytes_of(asked.folder) / 2**20, "machine": machine(), "versions": versions()}
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
