"""Grouping and removal: seconds against the size of the network.

Run: python benchmarks/removal.py
     python benchmarks/removal.py --cases resnet50 bert
Half of the units of every set that can be cut are zeroed at random and cut, every cut certified. Processor
seconds of one thread, by step. Needs transformers for resnet50 and bert, whose weights are drawn at random.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch
from features import machine, versions
from path_steps import groups_of, perceptron
from table import aligned
from torch import Tensor, nn

from glprune.model.counting import parameters
from glprune.pruning.groups import GroupSet, zero_units_
from glprune.pruning.removal import remove

HERE = Path(__file__).parent
ROWS = 16
Record = dict[str, Any]
Case = tuple[nn.Module, Tensor, int]


class Logits(nn.Module):
    """A network of transformers, of tensors alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


class Embedded(nn.Module):
    """BERT's encoder and pooler on embedded tokens, (rows, tokens, 768)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(768, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(inputs_embeds=x).pooler_output)


def resnet50() -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    network = Logits(ResNetForImageClassification(ResNetConfig(num_labels=10)))
    return network, torch.randn(ROWS, 3, 64, 64), 1


def bert() -> Case:
    from transformers import BertConfig, BertModel

    network = Embedded(BertModel(BertConfig(attn_implementation="eager")))
    return network, torch.randn(ROWS, 16, 768), 2


def wide(inputs: int) -> Case:
    return perceptron(inputs, 64, 10), torch.randn(ROWS, inputs), 1


def deep(width: int) -> Case:
    return perceptron(100, *[width] * 4, 10), torch.randn(ROWS, 100), 1


CASES: dict[str, Callable[[], Case]] = {
    **{f"{n:,} inputs x 64": lambda n=n: wide(n) for n in (12_500, 25_000, 50_000, 100_000)},  # type: ignore[misc]
    **{f"four layers of {n:,}": lambda n=n: deep(n) for n in (256, 512, 1024, 2048)},  # type: ignore[misc]
    "resnet50": resnet50,
    "bert": bert,
}


def record(name: str) -> Record:
    """Group a network, zero half of its units and cut them."""
    torch.manual_seed(0)
    network, x, axis = CASES[name]()
    network.eval()
    start = time.process_time()
    groups = groups_of(network, x[:8], axis)
    grouped = time.process_time() - start
    _zero_half(network, groups)
    start = time.process_time()
    removed = remove(network, groups, (x,), (axis,))
    cut = time.process_time() - start
    return {
        "case": name,
        "parameters": parameters(network),
        "after": parameters(removed.network),
        "groups": sum(len(g.labels) for g in groups),
        "refused": len(removed.refused),
        "difference": removed.difference,
        "grouping": grouped,
        "removal": cut,
    }


@torch.no_grad()
def _zero_half(network: nn.Module, groups: Sequence[GroupSet]) -> None:
    generator = torch.Generator().manual_seed(0)
    for g in groups:
        gone = torch.rand(len(g.labels), generator=generator) < 0.5
        zero_units_(network.state_dict(), g.units, gone[g.group])


def show(records: Sequence[Record]) -> None:
    """Print the table."""
    rows = [["network", "parameters", "after", "groups", "grouping, s", "removal, s", "s for each million"]]
    for r in records:
        per = (r["grouping"] + r["removal"]) / r["parameters"] * 1e6
        rows.append([r["case"], f"{r['parameters']:,}", f"{r['after']:,}", f"{r['groups']:,}"])
        rows[-1] += [f"{r['grouping']:.1f}", f"{r['removal']:.1f}", f"{per:.2f}"]
    print(aligned(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "removal.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    records = [record(name) for name in given.cases]
    content = {"machine": machine(), "versions": versions(), "records": records}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    show(records)


if __name__ == "__main__":
    main()
