"""Hidden units: what a network is worth at a budget of multiply-accumulates, glprune beside its peers.

Run: python benchmarks/hidden.py --cases mlp conv onehot --budgets 50 25 10 --seeds 5 --jobs 2
Records that the output file holds already are not made again; --again METHOD makes a method's anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_threads] = "1"  # before PyTorch is imported

import torch
import torch_pruning as tp
from answers import Clock, Problem
from features import machine, versions
from network import build, fit, loss, predict, score
from ours import recipe_of, write_data
from sets import DataSet, images, mnist, onehot
from table import aligned, spread, standard_error
from torch import Tensor, nn

import glprune
from glprune.measure import macs, parameters

HERE = Path(__file__).parent
REGS = (1e-4, 1e-3, 1e-2)  # of the sparse training; the first is torch-pruning's default
HALVINGS = 14  # of the interval of pruning ratios
REFITS = 2  # of a choice that was made without training: glprune and torch-pruning have several models too
Record = dict[str, Any]
Found = Iterator[tuple[nn.Module, tuple[float, float]]]  # pruned networks, seconds until then


class ConvNet(nn.Module):
    """Three convolutions with BatchNorm on rows of 784 pixels: 16, 32, 32 channels, mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, stride in ((1, 16, 2), (16, 32, 2), (32, 32, 1)):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(-1, 1, 28, 28)).mean((2, 3)))


def convnet() -> nn.Module:
    """The ConvNet, untrained; the factory of its recipe."""
    return ConvNet()


def mlp_data(seed: int) -> DataSet:
    """MNIST-5000 for a perceptron of two hidden layers, 256 and 128."""
    return replace(mnist(seed), hidden=(256, 128))


CASES: dict[str, Callable[[int], DataSet]] = {"mlp": mlp_data, "conv": images, "onehot": onehot}


def fresh(case: str, data: DataSet) -> nn.Module:
    """The untrained network of a case."""
    return convnet() if case == "conv" else build(data.train.x.shape[1], data.hidden, data.outputs)


def by_glprune(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """A whole run of glprune; the network it ships."""
    recipe = recipe_of(problem, 1) | {
        "penalty": {"inputs": None, "hidden": {"strength": 1}, "weights": "adaptive"},
        "target": {"macs": f"{budget}%"},
    }
    if case == "conv":
        recipe["model"] = {"factory": f"{HERE}/hidden.py:convnet"}
    file = problem.folder / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    clock = Clock()
    result = glprune.run(file, problem.state, problem.folder / "bundle", overwrite=True)
    yield glprune.load(result.bundle, lambda **_: fresh(case, problem.data)), clock()


def by_sparse_training(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """torch-pruning: GroupNormPruner's sparse training at three strengths, then its global pruning.

    SGD as in torch-pruning's examples, as many epochs as glprune's path had at the same budget.
    """
    x, y = torch.from_numpy(problem.data.train.x), torch.from_numpy(problem.data.train.y)
    clock = Clock()
    for reg in REGS:
        torch.manual_seed(problem.seed)
        network = copy.deepcopy(problem.network)
        pruner = pruner_of(network, x[:2], 0.5, tp.importance.GroupMagnitudeImportance(p=2), reg)
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(problem.data.batch):
                optimizer.zero_grad()
                loss(network(x[rows]), y[rows], problem.data.task).backward()
                pruner.regularize(network)
                optimizer.step()
        network.zero_grad(set_to_none=True)
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        yield within(network.eval(), x[:2], budget, importance, problem.seed, reg), clock()


def by_magnitude(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """Norms of the trained network's groups, the same share of every layer."""
    clock = Clock()
    for _ in range(REFITS):
        yield _cut_at_once(problem, budget, tp.importance.GroupMagnitudeImportance(p=2)), clock()


def by_chance(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """Units drawn at random, the same share of every layer."""
    clock = Clock()
    for _ in range(REFITS):
        yield _cut_at_once(problem, budget, tp.importance.RandomImportance()), clock()


METHODS: dict[str, Callable[[str, Problem, int, int], Found]] = {
    "glprune": by_glprune,
    "torch-pruning": by_sparse_training,
    "magnitude": by_magnitude,
    "random": by_chance,
}


def _cut_at_once(problem: Problem, budget: int, importance: tp.importance.Importance) -> nn.Module:
    return within(problem.network, torch.from_numpy(problem.data.train.x[:2]), budget, importance, problem.seed)


def pruner_of(
    network: nn.Module, x: Tensor, ratio: float, importance: tp.importance.Importance, reg: float | None
) -> tp.pruner.BasePruner:
    """A pruner of all layers but the last: global and of group norms with a strength, else one share for all."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    given = {"pruning_ratio": ratio, "ignored_layers": [last], "global_pruning": reg is not None}
    if reg is None:
        return tp.pruner.BasePruner(network, x, importance, **given)
    return tp.pruner.GroupNormPruner(network, x, importance, reg=reg, **given)


def within(
    network: nn.Module,
    x: Tensor,
    budget: int,
    importance: tp.importance.Importance,
    seed: int,
    reg: float | None = None,
) -> nn.Module:
    """The largest network of at most `budget` per cent of the multiply-accumulates, by bisection of the ratio."""
    limit, low, high = budget / 100 * macs(network, (x[:1],)), 0.0, 1.0
    best, most = None, 0
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        torch.manual_seed(seed)
        pruned = copy.deepcopy(network)
        pruner_of(pruned, x, ratio, importance, reg).step()
        size = macs(pruned.eval(), (x[:1],))
        low, high = (low, ratio) if size <= limit else (ratio, high)
        if most < size <= limit:
            best, most = pruned, size
    if best is None:
        raise SystemExit(f"no ratio gives at most {budget} % of the multiply-accumulates")
    return best


def records_of(case: str, seed: int, todo: list[tuple[int, str]], work: Path, epochs: dict[int, int]) -> list[Record]:
    """Train the network of a case and seed unless it is there, and make the records asked for."""
    torch.set_num_threads(1)
    data, folder = CASES[case](seed), work / f"{case}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(range(data.train.x.shape[1]))
    torch.manual_seed(seed)
    network, state = fresh(case, data), folder / "network.pt"
    if state.exists():
        network.load_state_dict(torch.load(state))
    else:
        torch.save(fit(network, data, columns, seed).state_dict(), state)
    problem = Problem(data, network.eval(), state, folder, seed)
    write_data(data, folder / "data.parquet")
    records = []
    for budget, method in todo:
        start = Clock()
        found = list(METHODS[method](case, problem, budget, epochs.get(budget, 0)))
        if method == "glprune":
            epochs[budget] = path_epochs(folder / "bundle" / "report.json")
        record = best_of(data, found, method, seed) | {"path_epochs": epochs.get(budget, 0)}
        records.append({"case": case, "seed": seed, "budget": budget, "method": method} | record)
        print(f"{case} {seed} {budget} % {method}: {record['test']:.4f}, {start()[1]:.0f} s", file=sys.stderr)
    before = measured(data, network) | {"seconds": 0.0, "source": "given", "budget": 100, "method": "network"}
    shutil.rmtree(folder / "bundle", ignore_errors=True)
    return [{"case": case, "seed": seed} | before, *records]


def path_epochs(report: Path) -> int:
    """Epochs of the paths of a run, at most; each point ends early where nothing happens any more."""
    facts = json.loads(report.read_text(encoding="utf-8"))
    return len(facts["path"]) * glprune.recipe.TrainSpec().epochs


def best_of(data: DataSet, found: list[tuple[nn.Module, tuple[float, float]]], method: str, seed: int) -> Record:
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
        rows = [["budget", "method", own[0]["metric"], "seeds", "to glprune (SE)", "MACs", "parameters", "CPU s"]]
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
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        made = []
        for seed in range(given.seeds):
            for case in given.cases:
                own = [r for r in kept if (r["case"], r["seed"]) == (case, seed)]
                done = {(r["budget"], r["method"]) for r in own}
                todo = [(b, m) for b in given.budgets for m in METHODS if m in given.methods and (b, m) not in done]
                epochs = {r["budget"]: r["path_epochs"] for r in own if r["method"] == "glprune"}
                if todo:
                    made.append(pool.submit(records_of, case, seed, todo, given.work, epochs))
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
