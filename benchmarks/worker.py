"""The steps of the benchmark, a process of features.py each: train a network, run a method, refit answers."""

from __future__ import annotations

import json
import math
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # an optimizer's first step imports it: a second that is no part of a method
from answers import Answer, Clock, Method, Problem
from dataset import DataSet
from network import both, build, refits, score, train
from sets import SETS

# methods that start from the trained network
TRAINED = {"glprune", "torch-pruning", "backward", "captum", "permutation", "magnitude"}


def network(data: DataSet, seed: int, folder: Path) -> None:
    """Train the network of a set and record it as the method that keeps every feature."""
    clock = Clock()
    net = train(data, seed)
    seconds = clock()
    torch.save(net.state_dict(), folder / "network.pt")
    everything = tuple(range(len(data.features)))
    valid, test = both(net, data, everything)
    record = measured(data, len(everything), everything, valid, test)
    facts = record | {
        "source": "own",
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "memory_mb": memory(),
    }
    write(folder / "network.json", {"record": facts, "ks": data.ks, "seeds": data.seeds})


def answer(data: DataSet, seed: int, method: str, folder: Path) -> None:
    """Run a method; every answer is kept as it comes, so that a killed process leaves what it had."""
    problem = Problem(data, load(data, folder), folder / "network.pt", folder / method, seed)
    with (folder / method / "answers.pkl").open("wb", buffering=0) as stream:
        find(method)(problem, lambda given: stream.write(pickle.dumps((given, memory()))))


def refit(data: DataSet, seed: int, method: str, folder: Path) -> None:
    """Turn answers into records: of a method's own models and the common refits, the best on validation."""
    net, found = load(data, folder), list(unpickled(folder / method / "answers.pkl"))
    given_net = json.loads((folder / "network.json").read_text())["record"]
    training = given_net if method in TRAINED else {}
    records = []
    for k in data.ks:
        given = [(a, m) for a, m in found if a.k == k]
        if not given:
            continue
        clock = Clock()
        best = best_model(data, net, [a for a, _ in given], seed)
        facts = {
            "refit_seconds": clock()[0],
            "seconds": max(a.seconds[0] for a, _ in given) + training.get("seconds", 0.0),
            "cpu_seconds": max(a.seconds[1] for a, _ in given) + training.get("cpu_seconds", 0.0),
            "search_seconds": max(a.seconds[1] if a.search is None else a.search for a, _ in given)
            + training.get("cpu_seconds", 0.0),
            "memory_mb": max(m for _, m in given),
        }
        records.append(best | facts)
    write(folder / method / "records.json", records)


def best_model(data: DataSet, net: torch.nn.Module, given: list[Answer], seed: int) -> dict[str, Any]:
    """The record of the model that is best on the validation split, and the best of either kind."""
    models: dict[tuple[tuple[int, ...], str], tuple[np.ndarray, np.ndarray]] = {}
    for a in given:
        if not 0 < len(a.features) <= a.k:
            raise SystemExit(f"k={a.k}: {len(a.features)} features were answered")
        if (a.features, "warm") not in models:
            for name, model in zip(("warm", "scratch"), refits(data, net, a.features, seed), strict=True):
                models[a.features, name] = both(model, data, a.features)
        if a.own is not None:
            models[a.features, "own"] = a.own
    ranked = sorted(models, key=lambda m: score(data.task, data.valid.y, models[m][0]), reverse=True)
    record = measured(data, given[0].k, ranked[0][0], *models[ranked[0]]) | {"source": ranked[0][1]}
    for name, sources in (("own_test", ("own",)), ("refit_test", ("warm", "scratch"))):
        kind = [m for m in ranked if m[1] in sources]
        record[name] = score(data.task, data.test.y, models[kind[0]][1])[0] if kind else None
    return record


def measured(
    data: DataSet, k: int, features: tuple[int, ...], valid: np.ndarray, test: np.ndarray
) -> dict[str, Any]:
    """The record of one model."""
    facts: dict[str, Any] = {
        "k": k,
        "kept": len(features),
        "features": [data.features[f][0] for f in features],
        "metric": data.metric,
        "test": score(data.task, data.test.y, test)[0],
        "valid": score(data.task, data.valid.y, valid)[0],
    }
    if data.support is not None:
        hits = len(data.support & set(features))
        facts |= {"precision": hits / len(features), "recall": hits / len(data.support)}
    return facts


def find(method: str) -> Method:
    """A method by its name; only what it needs is imported."""
    if method == "glprune":
        from glprune_solver import prune

        return prune
    from peers import PEERS

    return PEERS[method]


def load(data: DataSet, folder: Path) -> torch.nn.Module:
    """The trained network of a set."""
    net = build(data.train.x.shape[1], data.hidden, data.outputs)
    net.load_state_dict(torch.load(folder / "network.pt"))
    return net.eval()


def memory() -> float:
    """Peak resident memory of this process so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def unpickled(path: Path) -> Iterator[tuple[Answer, float]]:
    """The answers of a file, but for a last one cut short."""
    with path.open("rb") as stream:
        while True:
            try:
                yield pickle.load(stream)
            except (EOFError, pickle.UnpicklingError):
                return


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def work(step: str, name: str, seed: int, method: str, folder: Path, limit: float) -> None:
    """Do one step; `limit` is in seconds of processor time, 0 for none."""
    if limit:  # processor time: a busy machine robs nobody; the kernel ends the process
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    data = SETS[name](seed)
    if step == "network":
        network(data, seed, folder)
    else:
        (answer if step == "answer" else refit)(data, seed, method, folder)
