"""Paths side by side in other processes beside the same paths one after another, by the clock.

Run: python benchmarks/parallel_paths.py
     python benchmarks/parallel_paths.py --processes 3 --engine ray
The examples' MNIST network, inputs and hidden units under one budget of multiply-accumulates, one thread for
each process. Bundles of both runs must hold the same network, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

from features import machine, versions

import glprune
from glprune.runtime.events import Event, Stage
from glprune.schema.bundle import ONNX, digest

HERE = Path(__file__).parent
CHANGES = ['target={macs: "25%"}', "penalty.hidden={strength: 1}", "stability=null"]


class Search:
    """A listener that keeps the seconds from the first path to the export."""

    def __init__(self) -> None:
        self.begun, self.seconds = 0.0, 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stage) and event.name == "path 1" and not self.begun:
            self.begun = time.perf_counter()
        if isinstance(event, Stage) and event.name == "export":
            self.seconds = time.perf_counter() - self.begun


def timed(workers: str, out: Path) -> dict[str, Any]:
    """A whole run with some workers."""
    recipe = glprune.load_recipe(HERE.parent / "recipes" / "mnist.yaml", [*CHANGES, f"workers={workers}"])
    told = Search()
    model = HERE.parent / "examples" / "mnist" / "model.pt"
    result = glprune.run(recipe, model, out, overwrite=True, on_event=told)
    stages = [(s.number, s.input_strength) for s in result.report.stages]
    return {
        "workers": workers,
        "seconds": told.seconds,
        "stages": stages,
        "model": digest(result.bundle / ONNX),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--work", type=Path, default=Path("glprune-out") / "parallel_paths")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "parallel_paths.json")
    given = parser.parse_args()
    one = timed("{engine: local, processes: 1}", given.work / "one")
    several = timed(f"{{engine: {given.engine}, processes: {given.processes}}}", given.work / "several")
    content = {
        "machine": machine(),
        "versions": versions(),
        "load": os.getloadavg(),
        "records": [one, several],
        "ratio": several["seconds"] / one["seconds"],
        "same": one["model"] == several["model"],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"one after another {one['seconds']:.0f} s, side by side {several['seconds']:.0f} s", end="")
    print(f" ({content['ratio']:.2f}); the same network: {content['same']}")


if __name__ == "__main__":
    main()
