"""Inputs that ask for hours of processor time or for gigabytes of memory."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from glprune.schema import bundle as bundles
from tests.unit.audit.attack import Attack
from tests.unit.audit.attacks_onnx import OUTPUT, constant, graph, nested_functions


def written(name, raw):
    return lambda copy: (copy / name).write_bytes(raw() if callable(raw) else raw)


def nested_branches(model):
    """Each branch holds two of the next level, which a checker walks again at every level."""
    for level in range(14):
        value = helper.make_tensor_value_info(f"y{level}", TensorProto.FLOAT, None)
        if level == 0:
            inner = helper.make_graph([helper.make_node("Identity", ["honest"], ["y0"])], "g", [], [value])
        else:
            node = helper.make_node("If", ["yes"], [f"y{level}"], then_branch=inner, else_branch=inner)
            inner = helper.make_graph([node], "g", [], [value])
    model.graph.node[-1].output[0] = "honest"
    constant(model, "yes", np.array(True))
    model.graph.node.append(helper.make_node("If", ["yes"], [OUTPUT], then_branch=inner, else_branch=inner))


def empty_nodes():
    graph_bytes = b"\x0a\x00" * 4_000_000
    return b"\x3a" + _varint(len(graph_bytes)) + graph_bytes


def _varint(value):
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def empty_attributes(copy):
    model = copy.model()
    node = model.graph.node[0].SerializeToString() + b"\x2a\x00" * 3_000_000
    (copy / bundles.ONNX).write_bytes(b"\x3a" + _varint(len(node) + 5) + b"\x0a" + _varint(len(node)) + node)


def many_resamples(copy):
    def change(report):
        record = {"seed": 1, "rows": 60, "stages": 1, "lam": 0.1, "metric": 0.5}
        record["kept"] = "1" * len(report["features"])
        report["stability"] = {**STABILITY, "removable": record["kept"], "resamples": [record] * 30_000}

    copy.edit(change)


STABILITY = {
    "subsample": 0.5, "pairs": False, "seeds": "recipe", "limit": 4, "threshold": 0.8, "stable": 7,
    "mean_kept": 7.0, "jaccard": 1.0, "nogueira": None, "nogueira_interval": None, "false_bound": None, "failures": [],
}  # fmt: skip


def header_of_tensors(count):
    def raw():
        entry = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
        header = f"{{{entry}}}".encode()
        return len(header).to_bytes(8, "little") + header

    return raw


def header_of_spaces():
    header = b"{" + b" " * (40 << 20) + b"}"
    return len(header).to_bytes(8, "little") + header


def many_features(copy):
    """Features that each feed an input of their own."""

    def change(report):
        first = report["features"][0]
        report["features"] = [first | {"name": f"f{n}", "input": f"i{n}"} for n in range(40_000)]

    copy.edit(change)


def wide_plan(copy):
    copy.edit(lambda plan: plan["inputs"][0].update(size=10**12), bundles.PLAN)


def huge_constant(model):
    """A constant of a hundred million million zeros, made when the file is loaded."""
    model.graph.node[-1].output[0] = "honest"
    shape = constant(model, "shape", np.array([10**7, 10**7]))
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", [shape], ["zeros"], "zeros"),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], "max", keepdims=0),
            helper.make_node("Add", ["honest", "zero"], [OUTPUT], "sum"),
        ]
    )


def large_constant(model):
    """The same of four gigabytes, which many machines have."""
    huge_constant(model)
    shape = next(t for t in model.graph.initializer if t.name == "shape")
    shape.CopyFrom(numpy_helper.from_array(np.array([10**4, 10**5]), "shape"))


def endless_loop(model):
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Identity", ["x"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    turns, yes = constant(model, "turns", np.array(10**12)), constant(model, "yes", np.array(True))
    model.graph.node[-1].output[0] = "honest"
    model.graph.node.append(helper.make_node("Loop", [turns, yes, "honest"], [OUTPUT], "endless", body=body))


def lying_initializer(model):
    model.graph.initializer[0].dims[:] = [10**9, 10**9]


def many_golden(copy):
    tensors = load((copy / bundles.GOLDEN).read_bytes())
    empty = {f"t{n}": np.zeros(0, "f") for n in range(90_000)}
    (copy / bundles.GOLDEN).write_bytes(save({**tensors, **empty}))


def lists(copy):
    (copy / bundles.REPORT).write_bytes(b'{"a":[' + b",".join([b"[[[[[[[[]]]]]]]]"] * 1_500_000) + b"]}")


def objects(copy):
    (copy / bundles.REPORT).write_bytes(b'{"a":[' + b",".join([b'{"a":{}}'] * 2_000_000) + b"]}")


def wrong_features(copy):
    """A million features that lack every key: as many errors of the schema."""
    copy.edit(lambda report: report.update(features=[0] * 3_000_000))


def aliases():
    names = "abcdefghij"
    lines = ["a: &a [x, x]"] + [f"{b}: &{b} [*{a}, *{a}]" for a, b in itertools.pairwise(names)]
    return "\n".join(lines).encode()


def unclosed_markup():
    return b"<svg" * 1_000_000 + b"<!" * 2_000_000 + b"<p " * 2_000_000


def nested_markup(copy):
    path = copy / bundles.PAGE
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</svg>", "<g>" * 900_000 + "</svg>", 1), encoding="utf-8")


def hostile(name, change, check, exit_code=1, base="slim"):
    return Attack(name, base, change, check, exit_code)


ATTACKS = [
    hostile("functions that call each other twice, 28 levels deep", graph(nested_functions), "C6"),
    hostile("branches within branches, 14 levels deep", graph(nested_branches), "C4"),
    hostile("4 million nodes without content", written(bundles.ONNX, empty_nodes), "C4"),
    hostile("3 million attributes without content", empty_attributes, "C4"),
    hostile("a weight that says it has a million million million numbers", graph(lying_initializer), "C6"),
    hostile("30,000 resamples, compared in pairs", many_resamples, "C5"),
    hostile("40,000 inputs with a feature each", many_features, "C7"),
    hostile("3 million features without a key", wrong_features, "C4"),
    hostile("12 million lists in lists", lists, "C4"),
    hostile("4 million objects", objects, "C4"),
    hostile("a million nested lists", written(bundles.PLAN, b"[" * 1_000_000 + b"]" * 1_000_000), "C4"),
    hostile("a plan with a million million columns", wide_plan, "C4", base="wide"),
    hostile("weights: a header of 40 MB of spaces", written(bundles.WEIGHTS, header_of_spaces), "C4"),
    hostile(
        "weights: 600,000 tensors without numbers", written(bundles.WEIGHTS, header_of_tensors(600_000)), "C4"
    ),
    hostile(
        "weights: 150,000 tensors without numbers", written(bundles.WEIGHTS, header_of_tensors(150_000)), "C4"
    ),
    hostile("90,000 golden tensors", many_golden, "C9"),
    hostile("a recipe of aliases of aliases", written(bundles.RECIPE, aliases), "C4"),
    hostile("a page of tags that are not closed", written(bundles.PAGE, unclosed_markup), "C12"),
    hostile("a picture of 900,000 nested groups", nested_markup, "C12"),
    hostile("a constant of a hundred million million zeros", graph(huge_constant), "C9"),
    hostile("a constant of four gigabytes", graph(large_constant), "C9"),
    hostile("a loop of a million million turns", graph(endless_loop), "C9", exit_code=3),
]


def wide_tile(model):
    """Four million copies of each output, of which the largest is taken: 16 GB for a batch of 1,024 rows."""
    shape, axis = constant(model, "shape", np.array([1, 4 * 10**6])), constant(model, "axis", np.array([1]))
    largest_of(model, helper.make_node("Tile", ["honest", shape], ["many"], "tile"), axis)


def wider_tile(model):
    """A thousand million copies, which one row alone has no room for."""
    shape, axis = constant(model, "shape", np.array([1, 10**9])), constant(model, "axis", np.array([1]))
    largest_of(model, helper.make_node("Tile", ["honest", shape], ["many"], "tile"), axis)


def largest_of(model, node, axis):
    model.graph.node[-1].output[0] = "honest"
    most = helper.make_node("ReduceMax", ["many", axis], [OUTPUT], "most", keepdims=1)
    if model.opset_import[0].version < 18:
        most = helper.make_node("ReduceMax", ["many"], [OUTPUT], "most", axes=[1], keepdims=1)
        del model.graph.initializer[-1]
    model.graph.node.extend([node, most])


def in_file(name, change):
    def edit(copy):
        model = onnx.load_from_string((copy / name).read_bytes())
        change(model)
        (copy / name).write_bytes(model.SerializeToString(deterministic=True))

    return edit


@dataclass(frozen=True)
class RunAttack:
    """A file of a bundle that asks for too much when ``glprune evaluate`` runs it.

    Attributes:
        name: Plain description.
        change: Changes the copy of a bundle.
        message: Part of the one line that ``evaluate`` ends with; empty where it measures within its limits.
        exit_code: Its exit code.
        base: Name of the clean bundle.
    """

    name: str
    change: Callable[..., object]
    message: str
    exit_code: int = 3
    base: str = "kept"


RUN_ATTACKS = [
    RunAttack(
        "a loop of a million million turns in the model",
        in_file(bundles.ONNX, endless_loop),
        "final model: stopped after 8 s",
        base="slim",
    ),
    RunAttack(
        "a loop of a million million turns in the original's file",
        in_file(bundles.ORIGINAL, endless_loop),
        "original model: stopped after 8 s",
    ),
    RunAttack(
        "a thousand million copies of every output of the original",
        in_file(bundles.ORIGINAL, wider_tile),
        "original model: stopped: it needs more memory",
    ),
    RunAttack(
        "a constant of a hundred million million zeros in the original's file",
        in_file(bundles.ORIGINAL, huge_constant),
        "original model: stopped: it needs more memory",
    ),
    RunAttack(
        "a header of 600,000 tensors, read before a model is run",
        written(bundles.WEIGHTS, header_of_tensors(600_000)),
        "is not run",
        1,
    ),
]
WITHIN_LIMITS = RunAttack(
    "four million copies of every output of the original: 16 GB for 1,024 rows at once",
    in_file(bundles.ORIGINAL, wide_tile),
    "",
    0,
)
"""Takes 16 GB where all rows are run at once, and is run in parts."""
