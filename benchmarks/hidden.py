"""Hidden units: what a network is worth at a budget of multiply-accumulates, glprune beside its peers.

Run: python benchmarks/hidden.py --cases mlp conv onehot --budgets 50 25 10 --seeds 5 --jobs 2
Records that the output file holds already are not made again; --again METHOD makes a method's anew.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from answers import Clock, Problem
from features import machine, versions
from glprune_solver import write_data
from narrowing import CASES, METHODS, fresh
from network import fit, predict, score
from sets import DataSet
from table import aligned, spread, standard_error
from torch import nn

import glprune
from glprune.model.counting import macs, parameters

HERE = Path(__file__).parent
Record = dict[str, Any]
Timed = tuple[nn.Module, tuple[float, float]]


def records_of(
    case: str, seed: int, budget: int, methods: Sequence[str], work: Path, epochs: int
) -> list[Record]:
    """Train the network of a case and seed, and make the records of some methods at one budget."""
    torch.set_num_threads(1)
    data, folder = CASES[case](seed), work / f"{case}-{seed}-{budget}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    clock = Clock()
    network = fit(fresh(case, data), data, list(range(data.train.x.shape[1])), seed)
    place = {"case": case, "seed": seed}
    given = {"budget": 100, "method": "network", "source": "given", "seconds": clock()[1]}
    records = [place | measured(data, network) | given]
    torch.save(network.state_dict(), folder / "network.pt")
    write_data(data, folder / "data.parquet")
    problem = Problem(data, network, folder / "network.pt", folder, seed)
    for method in methods:
        found = list(METHODS[method](case, problem, budget, epochs))
        if method == "glprune":
            epochs = path_epochs(folder / "bundle" / "report.json")
        record = best_of(data, found, method, seed) | {"path_epochs": epochs}
        records.append(place | {"budget": budget, "method": method} | record)
        print(f"{case} {seed} {budget} % {method}: {record['test']:.4f} {record['widths']}", file=sys.stderr)
    shutil.rmtree(folder)
    return records


def path_epochs(report: Path) -> int:
    """Epochs of the paths of a run, at most; each point ends early where nothing happens any more."""
    facts = json.loads(report.read_text(encoding="utf-8"))
    return len(facts["path"]) * glprune.schema.recipe.TrainSpec().epochs


def best_of(data: DataSet, found: Sequence[Timed], method: str, seed: int) -> Record:
    """Refit every network found by one procedure and record what is best on the validation split."""
    columns = list(range(data.train.x.shape[1]))
    models = [(network, "own") for network, _ in found if method == "glprune"]
    for number, (network, _) in enumerate(found):
        models.append((fit(copy.deepcopy(network), data, columns, seed + 1000 * number), "refit"))
    records = [measured(data, network) | {"source": source} for network, source in models]
    return max(records, key=lambda r: r["rank"]) | {"seconds": found[-1][1][1]}


def measured(data: DataSet, network: nn.Module) -> Record:
    """Metrics, widths and sizes of a network."""
    valid, test = (predict(network, split.x, data.task) for split in (data.valid, data.test))
    rank = score(data.task, data.valid.y, valid)
    sizes = {"macs": macs(network, (torch.from_numpy(data.train.x[:1]),)), "parameters": parameters(network)}
    widths = [len(m.weight) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]
    facts = {"metric": data.metric, "test": score(data.task, data.test.y, test)[0], "valid": rank[0]}
    return facts | {"rank": rank, "widths": widths} | sizes


def show(content: Record) -> None:
    """Print the tables of a results file."""
    records = content["records"]
    for case in dict.fromkeys(r["case"] for r in records):
        own = [r for r in records if r["case"] == case]
        whole = {r["seed"]: r["macs"] for r in own if r["method"] == "network"}
        rows = [
            [
                "budget",
                "method",
                own[0]["metric"],
                "seeds",
                "minus glprune (SE)",
                "MACs",
                "parameters",
                "CPU s",
            ]
        ]
        for budget, method in dict.fromkeys((r["budget"], r["method"]) for r in own):
            at = [r for r in own if (r["budget"], r["method"]) == (budget, method)]
            rows.append([f"{budget} %", method, spread([r["test"] for r in at]), str(len(at)), gap(own, at)])
            share = mean([r["macs"] / whole[r["seed"]] for r in at])
            rows[-1] += [f"{share:.1%}", f"{mean([r['parameters'] for r in at]):,.0f}"]
            rows[-1] += [f"{mean([r['seconds'] for r in at]):.1f}"]
        print(f"\n{case}: {own[0]['metric']} on test rows, mean ± standard error (standard deviation)\n")
        print(aligned(rows))


def gap(own: list[Record], at: list[Record]) -> str:
    """Mean paired difference of a method to glprune, and its standard error."""
    ours = {r["seed"]: r["test"] for r in own if (r["budget"], r["method"]) == (at[0]["budget"], "glprune")}
    gaps = [r["test"] - ours[r["seed"]] for r in at if r["seed"] in ours]
    return f"{mean(gaps):+.4f} ({standard_error(gaps):.4f})" if gaps and at[0]["method"] != "glprune" else "-"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[50, 25, 10], help="per cent of the MACs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default 5)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default 1)")
    parser.add_argument("--again", nargs="+", choices=list(METHODS), default=[], help="forget their records")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "hidden.json")
    parser.add_argument("--work", type=Path, default=Path("glprune-out") / "hidden", help="working folder")
    given = parser.parse_args()
    content = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"records": []}
    kept = [r for r in content["records"] if r["method"] not in given.again]
    content = {"machine": machine(), "versions": versions(), "records": kept}
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        made = []
        for place in itertools.product(range(given.seeds), given.cases, given.budgets):
            seed, case, budget = place
            own = {r["method"]: r for r in kept if (r["seed"], r["case"], r["budget"]) == place}
            todo = [m for m in METHODS if m in given.methods and m not in own]
            epochs = own["glprune"]["path_epochs"] if "glprune" in own else 0
            if todo:
                made.append(pool.submit(records_of, case, seed, budget, todo, given.work, epochs))
        for future in as_completed(made):
            add(content, future.result(), given.out)
    show(content)


def add(content: Record, records: list[Record], out: Path) -> None:
    """Put records beside the others, in order, and save."""
    found = {(r["case"], r["budget"], r["method"], r["seed"]): r for r in [*content["records"], *records]}
    order = ["network", *METHODS]
    content["records"] = sorted(
        found.values(), key=lambda r: (r["case"], -r["budget"], order.index(r["method"]), r["seed"])
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
