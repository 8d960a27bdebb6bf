"""ONNX Runtime latency of a file this package exports beside hand-built dense networks of its widths.

Run: python benchmarks/latency.py [--seconds 4] [--networks mlp conv transformer]
Three files of equal widths and weights are run in turn: the one a removal and the package's export give,
a plainly written PyTorch network through the same torch.onnx exporter, and a graph written node by node
with onnx.helper. All times are processor time of the one thread that runs them; ratios are medians over
calls taken in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from features import machine, versions
from onnx import TensorProto, helper, numpy_helper
from path_steps import groups_of
from table import aligned
from torch import Tensor, nn
from torch.nn import functional

from glprune.data import ColumnSelection
from glprune.export.int8 import quantize, relative_gap
from glprune.export.onnx_export import OnnxSignature, export_onnx
from glprune.export.onnx_runtime import OnnxFile
from glprune.model.counting import macs, parameters
from glprune.model.standardize import StandardizedNetwork, with_standardization
from glprune.pruning.groups import zero_units_
from glprune.pruning.removal import remove
from glprune.schema.recipe import AUTO_MULTIPLE

HERE = Path(__file__).parent
BATCHES = (1, 256)
GOAL = 1.10
OPSET = 18
KEPT = 0.3
HEAD = 16
Record = dict[str, Any]


class ConvNet(nn.Module):
    """Three convolutions with BatchNorm, pooled, and two layers on top."""

    def __init__(self, inputs: int = 3, widths: Sequence[int] = (32, 64, 64), top: int = 64) -> None:
        super().__init__()
        a, b, c = widths
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(c, top), nn.ReLU(), nn.Linear(top, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Block(nn.Module):
    """Attention and a feed-forward layer, norms first; heads and the feed-forward width can be cut."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.head = heads, HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * HEAD) for _ in range(3))
        self.out = nn.Linear(heads * HEAD, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            f(y).view(y.shape[0], y.shape[1], self.heads, self.head).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        mixed = torch.softmax(q @ k.transpose(-2, -1) / self.head**0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Two blocks over 16 positions."""

    def __init__(
        self, inputs: int = 32, width: int = 64, blocks: Sequence[tuple[int, int]] = ((4, 256), (4, 256))
    ) -> None:
        super().__init__()
        self.entry = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(Block(width, heads, inner) for heads, inner in blocks))
        self.top = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.blocks(self.entry(x)).mean(1))


class By(nn.Module):
    """Standardisation as a hand writes it."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def mlp(widths: Sequence[int] = (784, 256, 128, 10)) -> nn.Module:
    a, b, c, d = widths
    layers = (nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d))
    return nn.Sequential(*layers)


def mlp_by_hand(slim: nn.Module) -> nn.Module:
    first, middle, last = (m for m in slim.modules() if isinstance(m, nn.Linear))
    widths = (first.in_features, first.out_features, middle.out_features, last.out_features)
    return mlp(widths)


def conv_by_hand(slim: nn.Module) -> nn.Module:
    convs = [m for m in slim.modules() if isinstance(m, nn.Conv2d)]
    top = next(m for m in slim.modules() if isinstance(m, nn.Linear)).out_features
    return ConvNet(convs[0].in_channels, [c.out_channels for c in convs], top)


def transformer_by_hand(slim: nn.Module) -> nn.Module:
    assert isinstance(slim, Transformer)
    blocks = [(block.q.out_features // HEAD, block.up.out_features) for block in slim.blocks]
    return Transformer(slim.entry.in_features, slim.entry.out_features, blocks)


@dataclass(frozen=True)
class Subject:
    """A network: how it is built, the shape of a row, its feature axis, how a hand builds one of its widths.

    Attributes:
        pruned: Whether inputs are removed beside hidden units.
        scaled: Whether the data are standardised inside the file.
    """

    build: Callable[[], nn.Module]
    row: tuple[int, ...]
    axis: int
    by_hand: Callable[[nn.Module], nn.Module]
    pruned: bool = True
    scaled: bool = False


SUBJECTS = {
    "mlp": Subject(mlp, (784,), 1, mlp_by_hand),
    "mlp, standardised": Subject(mlp, (784,), 1, mlp_by_hand, scaled=True),
    "small mlp": Subject(lambda: mlp((61, 32, 16, 2)), (61,), 1, mlp_by_hand),
    "conv": Subject(ConvNet, (3, 28, 28), 1, conv_by_hand, pruned=False),
    "transformer": Subject(Transformer, (16, 32), 2, transformer_by_hand),
}


def slimmed(network: nn.Module, subject: Subject, x: Tensor, multiple: int = 1) -> tuple[nn.Module, Tensor]:
    """Cut all but a share of every set of units, as a run does; and the rows of the kept columns."""
    groups = [g for g in groups_of(network, x[:8], subject.axis) if subject.pruned or g.kind == "hidden"]
    generator = torch.Generator().manual_seed(0)
    for g in groups:
        order = torch.randperm(g.units.count, generator=generator)
        marked = torch.zeros(g.units.count, dtype=torch.bool)
        marked[order[max(1, round(KEPT * g.units.count)) :]] = True
        zero_units_(network.state_dict(), g.units, marked)
    removed = remove(network, groups, (x[:16],), (subject.axis,), multiple=multiple)
    return removed.network.eval(), ColumnSelection(removed.columns, (subject.axis,))((x,))[0]


def graph_of_mlp(network: nn.Module, path: Path) -> None:
    """The perceptron as a graph written node by node: three Gemm and two Relu."""
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    nodes, weights, now = [], [], "x"
    for n, layer in enumerate(linear):
        for kind, tensor in (("w", layer.weight), ("b", layer.bias)):
            weights.append(numpy_helper.from_array(tensor.detach().numpy(), f"{kind}{n}"))
        last = n == len(linear) - 1
        out = "y" if last else f"h{n}"
        nodes.append(helper.make_node("Gemm", [now, f"w{n}", f"b{n}"], [out], transB=1))
        now = out
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{n}"]))
            now = f"r{n}"
    _save(nodes, weights, [linear[0].in_features], [linear[-1].out_features], path)


def graph_of_conv(network: nn.Module, path: Path) -> None:
    """The convolutional network node by node, BatchNorm folded into the convolutions."""
    nodes, weights, now = [], [], "x"

    def constant(tensor: Tensor) -> str:
        name = f"c{len(weights)}"
        weights.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        return name

    def node(kind: str, *constants: str, **attributes: Any) -> None:
        nonlocal now
        out = f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, [now, *constants], [out], **attributes))
        now = out

    assert isinstance(network, ConvNet)
    for layer in [*network.body, *network.head]:
        if isinstance(layer, nn.Conv2d):
            norm = network.body[list(network.body).index(layer) + 1]
            fused = torch.nn.utils.fusion.fuse_conv_bn_eval(layer.eval(), norm.eval())
            node("Conv", constant(fused.weight), constant(fused.bias), pads=[1, 1, 1, 1])
        elif isinstance(layer, nn.ReLU):
            node("Relu")
        elif isinstance(layer, nn.MaxPool2d):
            node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            node("GlobalAveragePool")
        elif isinstance(layer, nn.Flatten):
            node("Flatten")
        elif isinstance(layer, nn.Linear):
            node("Gemm", constant(layer.weight), constant(layer.bias), transB=1)
    nodes[-1].output[0] = "y"
    _save(nodes, weights, [network.body[0].in_channels, 28, 28], [10], path)


GRAPHS = {"mlp": graph_of_mlp, "small mlp": graph_of_mlp, "conv": graph_of_conv}


def _save(nodes: list[Any], weights: list[Any], inputs: list[int], outputs: list[int], path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "by hand",
        [value("x", TensorProto.FLOAT, ["batch", *inputs])],
        [value("y", TensorProto.FLOAT, ["batch", *outputs])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def exported_plainly(network: nn.Module, x: Tensor, path: Path) -> None:
    """What a user writes: torch.onnx.export with a dynamic batch."""
    torch.onnx.export(
        network.eval(), (x[:4],), path, dynamo=True, external_data=False, opset_version=OPSET,
        input_names=["x"], output_names=["y"], dynamic_shapes=({0: "batch"},), verbose=False,
    )  # fmt: skip


def in_turn(files: dict[str, OnnxFile], inputs: dict[str, Tensor], seconds: float) -> dict[str, list[float]]:
    """Processor seconds of calls of several files, taken in turn; the first tenth warms up."""
    found: dict[str, list[float]] = {name: [] for name in files}
    start = time.perf_counter()
    shuffle = random.Random(0)  # whoever runs after a wide network finds a cold cache
    while time.perf_counter() - start < seconds or len(next(iter(found.values()))) < 30:
        for name in shuffle.sample(list(files), len(files)):
            begin = time.thread_time_ns()
            files[name]((inputs[name],))
            found[name].append((time.thread_time_ns() - begin) / 1e9)
    return {name: times[len(times) // 10 :] for name, times in found.items()}


def measure(name: str, subject: Subject, seconds: float, folder: Path) -> Record:
    """All files of one network, timed at every batch size."""
    torch.manual_seed(0)
    network, x = subject.build().eval(), torch.randn(max(BATCHES), *subject.row)
    if subject.scaled:
        mean, std = torch.randn(subject.row), torch.rand(subject.row) + 0.5
        network = with_standardization(network, mean, std).eval()
    paths = {kind: folder / f"{kind}.onnx" for kind in ("original", "slim", "plain", "graph")}
    _export(network, x, paths["original"])
    whole = macs(network, (x,))
    dense = copy.deepcopy(network)
    slim, narrow = slimmed(network, subject, x)
    rounded, _ = slimmed(dense, subject, x, AUTO_MULTIPLE)
    _export(rounded, narrow, folder / "multiples of 8.onnx")
    _export(slim, narrow, paths["slim"])
    if subject.scaled:
        assert isinstance(slim, StandardizedNetwork)
        columns = slim.get_submodule("standardize")
        plain = nn.Sequential(By(columns.mean, columns.std), subject.by_hand(slim.network)).eval()
    else:
        plain = subject.by_hand(slim).eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), slim.state_dict().values(), strict=True)))
    exported_plainly(plain, narrow, paths["plain"])
    if name in GRAPHS:
        GRAPHS[name](plain, paths["graph"])
    files = {kind: OnnxFile(path, 1) for kind, path in paths.items() if path.exists()}
    record: Record = {
        "mac_ratio": whole / macs(slim, (narrow,)),
        "parameters": parameters(slim),
        "bytes": paths["slim"].stat().st_size,
        "nodes": {k: _nodes(path) for k, path in paths.items() if path.exists()},
    }
    others = {"slim": files["slim"], "multiples of 8": OnnxFile(folder / "multiples of 8.onnx", 1)}
    rows = [{"x": part.numpy()} for part in narrow.split(64)]
    for method in ("static", "dynamic"):
        quantize(paths["slim"], folder / f"{method}.onnx", method, rows)
        others[f"int8, {method}"] = OnnxFile(folder / f"{method}.onnx", 1)
    exact = others["slim"]((narrow,))
    record["int8"] = {
        method: {
            "bytes": (folder / f"{method}.onnx").stat().st_size,
            "difference": relative_gap(exact, others[f"int8, {method}"]((narrow,))),
        }
        for method in ("static", "dynamic")
    }
    for batch in BATCHES:
        inputs = {k: (x if k == "original" else narrow)[:batch].contiguous() for k in files}
        alike = {k: f for k, f in files.items() if k != "original"}
        times = in_turn(alike, inputs, seconds)
        pair = in_turn({k: files[k] for k in ("original", "slim")}, inputs, seconds)
        beside = in_turn(others, {k: narrow[:batch].contiguous() for k in others}, seconds)
        record[f"batch {batch}"] = _summary(times, pair) | {"slim_over_others": _over(beside)}
    return record


def _export(network: nn.Module, x: Tensor, path: Path) -> None:
    export_onnx(network, (x[:4],), path, OnnxSignature(["x"], ["y"], OPSET))


def _nodes(path: Path) -> dict[str, int]:
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _over(times: dict[str, list[float]]) -> dict[str, float]:
    """Median over calls of the slim file's time over each other one's."""
    return {
        kind: statistics.median(a / b for a, b in zip(times["slim"], other, strict=True))
        for kind, other in times.items()
        if kind != "slim"
    }


def _summary(times: dict[str, list[float]], pair: dict[str, list[float]]) -> Record:
    slim = times["slim"]
    return {
        "ms": {kind: 1e3 * statistics.median(t) for kind, t in (pair | times).items()},
        "slim_over": _over(times),
        "speedup": statistics.median(a / b for a, b in zip(pair["original"], pair["slim"], strict=True)),
        "calls": len(slim),
    }


def _beside(records: dict[str, Record]) -> list[list[str]]:
    """Speeds of multiples of 8 and of 8-bit files against the slim file."""
    kinds = ("multiples of 8", "int8, static", "int8, dynamic")
    rows = [["network", "batch", *kinds, "bytes left", "difference, static", "dynamic"]]
    for name, record in records.items():
        eight = record["int8"]
        for batch in BATCHES:
            over = record[f"batch {batch}"]["slim_over_others"]
            left = f"{eight['static']['bytes'] / record['bytes']:.0%}"
            gaps = [f"{eight[method]['difference']:.1%}" for method in ("static", "dynamic")]
            rows.append([name, str(batch), *(f"{over[kind]:.2f}x" for kind in kinds), left, *gaps])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--networks", nargs="+", default=list(SUBJECTS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    records = {}
    for name in chosen.networks:
        with tempfile.TemporaryDirectory() as folder:
            records[name] = measure(name, SUBJECTS[name], chosen.seconds, Path(folder))
    rows = [("network", "batch", "slim, ms", "over plain", "over graph", "speed-up", "MAC ratio")]
    for name, record in records.items():
        for batch in BATCHES:
            r = record[f"batch {batch}"]
            over = (r["slim_over"].get(kind) for kind in ("plain", "graph"))
            ratios = ("-" if ratio is None else f"{ratio:.3f}" for ratio in over)
            speed = f"{r['speedup']:.2f}", f"{record['mac_ratio']:.1f}"
            rows.append((name, str(batch), f"{r['ms']['slim']:.4f}", *ratios, *speed))
    print(aligned(rows))
    print(aligned(_beside(records)))
    if set(chosen.networks) == set(SUBJECTS):
        record = {"goal": GOAL, "seconds": chosen.seconds, "networks": records}
        record |= {"machine": machine(), "versions": versions()}
        (HERE / "results" / "latency.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
