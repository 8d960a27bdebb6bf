"""What the penalty costs: the proximal operator in a training step, and a whole search beside one fine-tune.

Run: python benchmarks/overhead.py [--steps 30] [--parts steps profile runs]
All times are processor time of one thread, taken in turn; ratios are medians over steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from features import machine, versions
from path_steps import SUBJECTS, profiled, timed
from table import aligned
from torch import nn

import glprune
from glprune.runtime.events import Event, Stage, silent
from glprune.schema.recipe import PenaltySpec, RefitSpec, TargetSpec, TrainSpec
from glprune.search.job import Job
from glprune.search.prepare import prepare
from glprune.training.epochs import rows_per_epoch

HERE = Path(__file__).parent
OPERATOR_GOAL = 0.05  # of a plain training step
SEARCH_GOAL = 5.0  # plain fine-tunes
TARGETS = {"mnist": 150, "german_credit": 14}
PARTS = ("steps", "profile", "runs")
Record = dict[str, Any]


class StageTimes:
    """A listener that keeps the processor seconds of every stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.name, self.start = "data", time.process_time()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stage):
            self.close()
            self.name = event.name

    def close(self) -> None:
        now = time.process_time()
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self.start
        self.start = now

    def of(self, *words: str) -> float:
        """Seconds of the stages whose name begins with one of some words."""
        return sum(s for name, s in self.seconds.items() if name.split()[0] in words)


def recipe_of(name: str) -> glprune.Recipe:
    """The example's data and network, everything else at its default, and a number of features."""
    recipe = glprune.load_recipe(HERE.parent / "recipes" / f"{name}.yaml")
    target = TargetSpec(max_features=TARGETS[name])
    defaults = {"penalty": PenaltySpec(), "train": TrainSpec(), "refit": RefitSpec(), "target": target}
    return recipe.model_copy(update=defaults)


def run(name: str) -> Record:
    """A whole run, stage by stage, and one plain fine-tune of the same network."""
    recipe, model = recipe_of(name), HERE.parent / "examples" / name / "model.pt"
    tuned = fine_tune(prepare(recipe, model, False, silent))
    times = StageTimes()
    with tempfile.TemporaryDirectory() as folder:
        result = glprune.run(recipe, model, Path(folder) / "bundle", on_event=times)
    times.close()
    search = times.of("path", "cut", "refit")
    last = [seconds for stage, seconds in times.seconds.items() if stage.startswith("refit")][-1]
    return {
        "run": name,
        "target": TARGETS[name],
        "points": len(result.report.path),
        "fine_tune": tuned,
        "search": search,
        "search_before_last_refit": search - last,
        "whole": sum(times.seconds.values()),
    }


def fine_tune(job: Job) -> float:
    """Processor seconds of Adam over as many epochs as the refit has at most."""
    network, spec, generator = job.network, job.recipe.refit, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=spec.lr)
    network.train()
    start = time.process_time()
    for _ in range(spec.epochs):
        for inputs, target in rows_per_epoch(job.data.train, spec.batch_size, generator):
            step(job, network, optimizer, inputs, target)
    return time.process_time() - start


def step(
    job: Job,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: tuple[torch.Tensor, ...],
    target: torch.Tensor,
) -> None:
    optimizer.zero_grad()
    job.task.loss(job.task.view(network(*inputs)), target).backward()
    optimizer.step()


def show(content: Record) -> None:
    """Print the tables of a results file."""
    rows = [["network", "parameters", "groups", "plain step ms", "operator", "goal 5 %", "step", "update"]]
    for r in content["steps"]:
        met = "met" if r["operator"] <= OPERATOR_GOAL else "not met"
        sizes = [r["network"], f"{r['parameters']:,}", f"{r['groups']:,}", f"{r['ms']:.1f}"]
        rows.append([*sizes, f"{r['operator']:.1%}", met, f"{r['step']:.2f}", f"{r['update']:.2f}"])
    print("operator: of a plain training step; step, update: under the penalty over Adam's alone\n")
    print(aligned(rows))
    show_profiles(content["profile"])
    rows = [
        [
            "run",
            "features",
            "points",
            "fine-tune s",
            "search / fine-tune",
            "goal 5",
            "paths alone",
            "whole run",
        ]
    ]
    for r in content["runs"]:
        search, paths, whole = (
            r[k] / r["fine_tune"] for k in ("search", "search_before_last_refit", "whole")
        )
        met = "met" if search <= SEARCH_GOAL else "not met"
        facts = [r["run"], str(r["target"]), str(r["points"]), f"{r['fine_tune']:.1f}", f"{search:.1f}", met]
        rows.append([*facts, f"{paths:.1f}", f"{whole:.1f}"])
    print("\nsearch, paths alone (no last refit), whole run: processor time over that of a fine-tune\n")
    print(aligned(rows))


def show_profiles(records: list[Record]) -> None:
    """Print where the processor time of a step goes, plain and under the penalty."""
    rows = [["network", "step", "operations by share of processor time, calls in a step"]]
    for r in records:
        for name in ("plain", "penalty"):
            parts = [f"{op} {share:.0%} ({calls:.0f})" for op, calls, share in r[name][:6]]
            rows.append([r["network"], name, ", ".join(parts)])
    print("\n" + aligned(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each network (default 30)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "overhead.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    content = {"steps": [], "profile": [], "runs": []} | old | {"machine": machine(), "versions": versions()}
    if "steps" in given.parts:
        content["steps"] = [{"network": n} | timed(s, given.steps) for n, s in SUBJECTS.items()]
    if "profile" in given.parts:
        content["profile"] = [{"network": n} | profiled(s, 10) for n, s in SUBJECTS.items()]
    if "runs" in given.parts:
        content["runs"] = [run(name) for name in TARGETS]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    show(content)


if __name__ == "__main__":
    main()
