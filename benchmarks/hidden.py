"""Hidden units: what a network is worth at a budget of multiply-accumulates, glprune beside its peers.

Run: python benchmarks/hidden.py --cases mlp resnet --budgets 50 25 10 --seeds 5 --jobs 2
Records that the output file holds already are not made again; --again METHOD makes a method's anew.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from answers import Clock, Problem
from dataset import DataSet
from features import glprune_commit, machine, versions
from glprune_solver import write_data
from hidden_cases import CASES, Case
from narrowing import METHODS, Found
from network import fit, predict, score
from table import aligned, spread, standard_error
from torch import nn

from glprune.model.counting import macs, parameters

HERE = Path(__file__).parent
Record = dict[str, Any]


def network_of(name: str, seed: int, work: Path) -> list[Record]:
    """Train the network of a case and seed, unless the working folder has it; its record."""
    torch.set_num_threads(1)
    problem, seconds = problem_of(CASES[name], seed, work / f"{name}-{seed}")
    facts = {"case": name, "seed": seed, "budget": 100, "method": "network", "source": "given"}
    return [facts | measured(problem.data, problem.network) | {"seconds": seconds}]


def records_of(name: str, seed: int, method: str, budgets: list[int], work: Path) -> list[Record]:
    """Run one method on the network of a case and seed; a record for each budget."""
    torch.set_num_threads(1)
    case = CASES[name]
    problem, _ = problem_of(case, seed, work / f"{name}-{seed}")
    data, whole = problem.data, measured(problem.data, problem.network)["macs"]
    found, records = list(METHODS[method](case, problem, budgets)), []
    for budget in budgets:
        facts: Record = {"case": name, "seed": seed, "budget": budget, "method": method}
        record = facts | best_of(data, [f for f in found if f.budget == budget], seed)
        records.append(record | {"used": 100 * record["macs"] / whole / budget})
        if method == "glprune":
            records[-1]["commit"] = glprune_commit()
        said = f"{record['test']:.4f}, {records[-1]['used']:.1%} of the budget, {record['widths']}"
        print(f"{name} {seed} {budget} % {method}: {said}", file=sys.stderr, flush=True)
    return records


def problem_of(case: Case, seed: int, folder: Path) -> tuple[Problem, float]:
    """The data and the trained network, kept in the folder; the processor seconds of its training."""
    folder.mkdir(parents=True, exist_ok=True)
    data, state = case.data(seed), folder / "network.pt"
    torch.manual_seed(seed)
    network, note = case.fresh(data), folder / "seconds.json"
    if not note.exists():
        clock = Clock()
        fit(network, data, list(range(data.train.x.shape[1])), seed)
        torch.save(network.state_dict(), state)
        write_data(data, folder / "data.parquet")
        note.write_text(json.dumps(clock()[1]), encoding="utf-8")
    network.load_state_dict(torch.load(state, weights_only=True))
    return Problem(data, network.eval(), state, folder, seed), json.loads(note.read_text(encoding="utf-8"))


def best_of(data: DataSet, found: Sequence[Found], seed: int) -> Record:
    """Refit every network found by one method at one budget; record what is best on the validation split."""
    columns = list(range(data.train.x.shape[1]))
    models = [(f.network, "own") for f in found if f.finished]
    for number, f in enumerate(found):
        models.append((fit(copy.deepcopy(f.network), data, columns, seed + 1000 * number), "refit"))
    records = [measured(data, network) | {"source": source} for network, source in models]
    seconds, epochs = sum(f.seconds for f in found), max(f.epochs for f in found)
    return max(records, key=lambda r: r["rank"]) | {"seconds": seconds, "epochs": epochs}


def measured(data: DataSet, network: nn.Module) -> Record:
    """Metrics, widths and sizes of a network."""
    valid, test = (predict(network, split.x, data.task) for split in (data.valid, data.test))
    rank = score(data.task, data.valid.y, valid)
    sizes = {"macs": macs(network, (torch.from_numpy(data.train.x[:1]),)), "parameters": parameters(network)}
    widths = [width(m) for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.GRU)][:-1]
    facts = {"metric": data.metric, "test": score(data.task, data.test.y, test)[0], "valid": rank[0]}
    return facts | {"rank": rank, "widths": widths} | sizes


def width(layer: nn.Linear | nn.Conv2d | nn.GRU) -> int:
    """Number of a layer's output units."""
    return layer.hidden_size if isinstance(layer, nn.GRU) else len(layer.weight)


def show(content: Record) -> None:
    """Print the tables of a results file."""
    records = content["records"]
    for case in dict.fromkeys(r["case"] for r in records):
        own = [r for r in records if r["case"] == case]
        rows = [
            [
                "budget",
                "method",
                own[0]["metric"],
                "seeds",
                "minus glprune (SE)",
                "MACs",
                "used (least)",
                "CPU s",
            ]
        ]
        for budget, method in dict.fromkeys((r["budget"], r["method"]) for r in own):
            at = [r for r in own if (r["budget"], r["method"]) == (budget, method)]
            rows.append([f"{budget} %", method, spread([r["test"] for r in at]), str(len(at)), gap(own, at)])
            rows[-1] += [f"{mean([r['macs'] for r in at]):,.0f}", used(at)]
            rows[-1] += [f"{mean([r['seconds'] for r in at]):.1f}"]
        print(f"\n{case}: {own[0]['metric']} on test rows, mean ± standard error (standard deviation)\n")
        print(aligned(rows))


def used(at: list[Record]) -> str:
    """Mean and least share of the budget that the networks use."""
    shares = [r["used"] for r in at if "used" in r]
    return f"{mean(shares):.1%} ({min(shares):.1%})" if shares else "-"


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
        tasks: dict[tuple[str, int], list[tuple[str, list[int]]]] = {}
        for seed, case in itertools.product(range(given.seeds), given.cases):
            done = {(r["method"], r["budget"]) for r in kept if (r["case"], r["seed"]) == (case, seed)}
            left = {m: [b for b in given.budgets if (m, b) not in done] for m in given.methods}
            tasks[case, seed] = [(m, budgets) for m, budgets in left.items() if budgets]
        places = [place for place, todo in tasks.items() if todo]
        networks = [pool.submit(network_of, *place, given.work) for place in places]
        for future in as_completed(networks):
            add(content, future.result(), given.out)
        made = [
            pool.submit(records_of, *place, *todo, given.work) for place in places for todo in tasks[place]
        ]
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
