"""glprune as a method of the table: one whole run for each number of features, through the public API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from answers import Answer, Clock, Emit, Problem
from dataset import DataSet
from network import squash

import glprune
import glprune.pipeline
from glprune.runtime.events import Event, Stage

# the keys that make the method, the same for every set; only batch sizes follow the number of rows
SETTINGS: dict[str, Any] = {
    "penalty": {"inputs": {"strength": 1.0}},
    "train": {},
    "refit": {},
}


def prune(problem: Problem, emit: Emit) -> None:
    """Run glprune for each k; its own model is the shipped ONNX file, run by ONNX Runtime."""
    write_data(problem.data, problem.folder / "data.parquet")
    for k in problem.data.ks:
        recipe = problem.folder / f"recipe{k}.yaml"
        recipe.write_text(json.dumps(recipe_of(problem, k), indent=1), encoding="utf-8")
        clock = Clock()
        found: list[float] = []

        def listen(event: Event, clock: Clock = clock, found: list[float] = found) -> None:
            if isinstance(event, Stage) and event.name == "export":
                found.append(clock()[1])

        try:
            result = glprune.run(recipe, problem.state, problem.folder / f"bundle{k}", on_event=listen)
        except glprune.GlpruneError as error:
            print(f"k={k}: {error}", file=sys.stderr)
            continue
        seconds = clock()
        status = {f.name: f.status for f in result.report.features}
        features = tuple(i for i, (name, _) in enumerate(named(problem.data)) if status[name] == "kept")
        own = shipped(problem.data, features, result.bundle / "model.onnx")
        emit(Answer(k, features, seconds, own, found[0]))


def recipe_of(problem: Problem, k: int) -> dict[str, Any]:
    """The recipe for at most k features."""
    data, batch = problem.data, {"batch_size": problem.data.batch}
    shape = {"columns": data.train.x.shape[1], "hidden": list(data.hidden), "outputs": data.outputs}
    classes = {} if data.task == "regression" else {"classes": list(range(max(2, data.outputs)))}
    groups = {name: columns for name, columns in named(data) if len(columns) > 1}
    return {
        "task": data.task,
        "model": {"factory": f"{Path(__file__).parent}/network.py:build", "arguments": shape},
        "data": {
            "file": "data.parquet",
            "split": {"column": "split"},
            "target": "target",
            "feature_groups": groups,
            **classes,
        },
        "target": {"max_features": k},
        "seed": problem.seed,
        **SETTINGS,
        "train": batch | SETTINGS["train"],
        "refit": batch | SETTINGS["refit"],
    }


def named(data: DataSet) -> list[tuple[str, list[str]]]:
    """Every feature's name and column names, free of characters that mean something in a pattern."""
    names = [(f"f{i}", columns) for i, (_, columns) in enumerate(data.features)]
    return [(n, [n] if len(c) == 1 else [f"{n}_{j}" for j in range(len(c))]) for n, c in names]


def write_data(data: DataSet, path: Path) -> None:
    """All three splits in one Parquet file."""
    splits = {"train": data.train, "valid": data.valid, "test": data.test}
    x = np.concatenate([s.x for s in splits.values()])
    header = [column for _, columns in named(data) for column in columns]
    table = {name: x[:, i] for i, name in enumerate(header)}
    table["target"] = np.concatenate([s.y for s in splits.values()])
    table["split"] = np.concatenate([[name] * len(s.y) for name, s in splits.items()])
    pq.write_table(pa.table(table), path)


def shipped(data: DataSet, features: tuple[int, ...], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the shipped file on the validation and test split."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, columns = session.get_inputs()[0].name, data.columns(features)
    valid, test = (
        squash(session.run(None, {name: split.x[:, columns]})[0], data.task)
        for split in (data.valid, data.test)
    )
    return valid, test
