"""What sums over processes cost: steps under the penalty with them, without, and with PyTorch's own, in turn.

Run: python -m torch.distributed.run --nproc-per-node 2 benchmarks/gradient_sums.py [--steps 60]
Wall time, since processes wait for each other; they begin each step together. Ratios are medians over steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from features import machine, versions
from path_steps import CLASSES, LAMBDA, SUBJECTS, Subject, groups_of
from table import aligned
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from glprune.data import TensorSplit
from glprune.model.task import Task
from glprune.pruning.groups import penalty_weights
from glprune.runtime.process_group import ProcessGroup, init_process_group
from glprune.training.objective import Objective
from glprune.training.proximal import ProximalAdam

HERE = Path(__file__).parent
NAMES = ("MLP 784-256-128-10", "transformer, 6 layers")
Step = Callable[[], object]


def timed(subject: Subject, steps: int, process_group: ProcessGroup) -> dict[str, float]:
    """Medians over steps: milliseconds of one without sums, and ratios to it."""
    torch.manual_seed(0)
    network = subject.build().eval()
    x, y = torch.randn(subject.rows, *subject.row), torch.randint(CLASSES, (subject.rows,))
    alone, summed, own = (
        stepper(copy.deepcopy(network), subject, x, y, sums) for sums in (None, process_group, "ddp")
    )
    rows = []
    for _ in range(steps + 10):
        first, ours, theirs = (seconds(step) for step in (alone, summed, own))
        rows.append((first, ours / first, theirs / first))
    plain, ours, theirs = (statistics.median(c) for c in zip(*rows[10:], strict=True))
    count = sum(p.numel() for p in network.parameters())
    return {"ms": 1e3 * plain, "sums": ours, "ddp": theirs, "parameters": count, "rows": subject.rows}


def stepper(
    network: nn.Module, subject: Subject, x: Tensor, y: Tensor, sums: ProcessGroup | Literal["ddp"] | None
) -> Step:
    """A step under the penalty, with the gradients summed by ``sums``, if at all."""
    weighted = [
        (g, penalty_weights(network.state_dict(), g, 1.0)) for g in groups_of(network, x[:8], subject.axis)
    ]
    split = TensorSplit((x,), y)
    objective = Objective(network, Task("multiclass", "logits", CLASSES), split, weighted)
    proximal = ProximalAdam(objective.at(LAMBDA), 1e-4)
    called = DistributedDataParallel(network) if sums == "ddp" else network

    def step() -> None:
        network.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(called(x), y)
        loss.backward()
        if isinstance(sums, ProcessGroup):
            sums.average_gradients_(network.parameters(), float(loss.detach()), len(y))
        proximal.step()

    return step


def seconds(step: Step) -> float:
    """Wall seconds of a step that all processes begin together."""
    dist.barrier()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each network (default 60)")
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=NAMES)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sums.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with init_process_group() as process_group:
        found = [
            {"network": name} | timed(SUBJECTS[name], given.steps, process_group) for name in given.networks
        ]
    if not process_group.is_main:
        return
    content = {"steps": found, "processes": process_group.size, "machine": machine(), "versions": versions()}
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    table = [["network", "parameters", "rows of a process", "step ms", "with sums", "with DDP"]]
    for r in found:
        sizes = [r["network"], f"{r['parameters']:,}", str(r["rows"]), f"{r['ms']:.1f}"]
        table.append([*sizes, f"{r['sums']:.2f}", f"{r['ddp']:.2f}"])
    print(aligned(table))


if __name__ == "__main__":
    main()
