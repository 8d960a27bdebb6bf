"""C6: which input columns the ONNX graph can use, found by reading the graph, not by running it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto

from glprune.audit.findings import Finding
from glprune.audit.onnx_file.contents import check_contents
from glprune.audit.onnx_file.usage import check_usage
from glprune.audit.onnx_reader import (
    READS_ONLY_SIZES,
    StorageError,
    all_graphs,
    canonical,
    constants,
    consumed,
    input_shapes,
    place,
    random_nodes,
    read_values,
    subgraphs,
    tensors,
)
from glprune.schema import bundle as bundles

_MAX_FINDINGS = 200


@dataclass(frozen=True)
class ExpectedInput:
    """One input of the file, as report and plan describe it.

    Attributes:
        name: Name of the input.
        axis: Axis of its columns, from the front or the back; None where it is not pruned.
        width: Size of that axis in the file.
        selects: Columns the file must select first, in order; None where it uses all it is given.
    """

    name: str
    axis: int | None
    width: int
    selects: tuple[int, ...] | None


@dataclass(frozen=True)
class ExpectedGraph:
    """The interface of the file, as report and plan describe it.

    Attributes:
        inputs: Its inputs.
        outputs: Names of its outputs.
        opset: Version of the default operator set.
    """

    inputs: Sequence[ExpectedInput]
    outputs: Sequence[str]
    opset: int


def check_graph(
    model: ModelProto, raw: bytes, expected: ExpectedGraph, file: str = bundles.ONNX
) -> list[Finding]:
    """Find everything in the file that could hold data, code or a way around the removal.

    Args:
        model: The parsed file.
        raw: Its bytes.
        expected: Its interface.
        file: Its name.
    """
    findings = [
        *_bytes(model, raw),
        *check_contents(model),
        *_operator_sets(model, expected.opset),
        *_operators(model),
        *_tensors(model),
        *_names(model.graph),
    ]
    findings += _signature(model.graph, [i.name for i in expected.inputs], expected.outputs)
    shapes, values = input_shapes(model), constants(model.graph)
    for given in expected.inputs:
        if given.axis is not None and given.name in shapes:
            findings += _width(given, shapes[given.name])
            findings += _consumers(model.graph, given, len(shapes[given.name]), values)
    findings += _reach(model.graph)
    findings += check_usage(model.graph)
    if not findings:  # the checker is for files that are plain; others could keep it busy for hours
        findings += _checker(raw)
    distinct = itertools.islice(dict.fromkeys(findings), _MAX_FINDINGS)
    return [Finding(file, where, what) for where, what in distinct]


Found = tuple[str, str]


def _bytes(model: ModelProto, raw: bytes) -> Iterator[Found]:
    if not canonical(model, raw):
        yield (
            "",
            "its bytes are not the canonical form of this model: something is appended, merged or unknown",
        )


def _checker(raw: bytes) -> Iterator[Found]:
    try:
        onnx.checker.check_model(raw, full_check=True)
    except Exception as error:  # noqa: BLE001 - the checker raises several kinds; none may end the audit
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield "", f"onnx.checker rejects it: {first[:200]}"


def _operator_sets(model: ModelProto, opset: int) -> Iterator[Found]:
    """Require the default operator set at the stated version."""
    found = [(o.domain, o.version) for o in model.opset_import]
    if found != [("", opset)]:
        yield (
            "opset_import",
            f"operator sets {found}; the report says version {opset} of the default set only",
        )


def _operators(model: ModelProto) -> Iterator[Found]:
    """Require operators of the default domain whose output follows from their inputs."""
    for graph in all_graphs(model):
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                yield place(node), f"is of the foreign domain {node.domain[:60]!r}"
        for node in random_nodes(graph):
            yield (
                place(node),
                "is random: its output does not follow from its inputs, or it is in training mode",
            )


def _tensors(model: ModelProto) -> Iterator[Found]:
    for where, tensor in tensors(model):
        try:
            read_values(tensor)
        except StorageError as error:
            yield where, str(error)
    for graph in all_graphs(model):
        given = {i.name for i in graph.input}
        for tensor in graph.initializer:
            if tensor.name in given:
                yield f"initializer {tensor.name!r}", "is also an input: a caller could replace it"


def _names(graph: GraphProto, outer: frozenset[str] = frozenset()) -> Iterator[Found]:
    """Require that every name is assigned once in its graph, and in no enclosing graph."""
    made = Counter([*(i.name for i in graph.input), *(t.name for t in graph.initializer)])
    made.update(name for node in graph.node for name in node.output if name)
    for name, count in made.items():
        if count > 1 or name in outer:
            yield f"value {name[:60]!r}", "is assigned twice: one would shadow the other"
    inside = [inner for node in graph.node for inner in subgraphs(node)]
    seen = outer | made.keys() if inside else outer
    for inner in inside:
        yield from _names(inner, seen)


def _signature(graph: GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[Found]:
    """Require exactly the expected inputs and outputs; C7 checks their order."""
    sides = (("input", graph.input, inputs), ("output", graph.output, outputs))
    for side, values, expected in sides:
        found = [v.name for v in values]
        for name in found:
            if name not in expected:
                yield f"{side} {name!r}", "is not in the report"
        for name in expected:
            if name not in found:
                yield f"{side} {name!r}", "is in the report and not in the file"
    given = {i.name for i in graph.input}
    for output in graph.output:
        if output.name in given:
            yield f"output {output.name!r}", "is an input passed through"


def _width(given: ExpectedInput, shape: Sequence[int | str]) -> Iterator[Found]:
    assert given.axis is not None
    if not -len(shape) <= given.axis < len(shape):
        yield f"input {given.name!r}", f"has {len(shape)} axes; the report says axis {given.axis}"
    elif shape[given.axis] != given.width:
        yield (
            f"input {given.name!r}",
            f"has {shape[given.axis]!r} columns along axis {given.axis}; the report says {given.width}",
        )


def _consumers(
    graph: GraphProto, given: ExpectedInput, rank: int, values: Mapping[str, NDArray[np.generic]]
) -> Iterator[Found]:
    """Require that an input with removed columns is read only by a Gather of the kept columns."""
    if given.selects is None:
        return
    gathers = 0
    for node in graph.node:
        if given.name not in consumed(node) or node.op_type in READS_ONLY_SIZES:
            continue
        error = _selection_error(node, given, rank, values)
        gathers += error is None
        if error is not None:
            yield place(node), f"reads input {given.name!r} {error}"
    if not gathers:
        yield f"input {given.name!r}", "no Gather selects its kept columns"


def _selection_error(
    node: NodeProto, given: ExpectedInput, rank: int, values: Mapping[str, NDArray[np.generic]]
) -> str | None:
    """Say why a node does not select the kept columns; None where it does."""
    if node.op_type != "Gather" or len(node.input) != 2 or node.input[0] != given.name:
        return "other than by a Gather of the kept columns"
    assert given.axis is not None
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    if axis % max(1, rank) != given.axis % max(1, rank):
        return f"along axis {axis} instead of {given.axis}"
    index = values.get(node.input[1])
    if index is None:
        return "at positions that are not constant"
    if index.ndim != 1 or tuple(index.tolist()) != given.selects:
        return f"at positions {_short(index.ravel().tolist())} instead of {_short(given.selects or ())}"
    return None


def _reach(graph: GraphProto) -> Iterator[Found]:
    """Require that some input reaches some output: a constant is not a model."""
    if not any(reaching(graph).values()):
        yield "", "no input reaches any output"


def reaching(graph: GraphProto) -> dict[str, set[str]]:
    """Map each output to the inputs with a path to it, whatever the nodes compute; sizes do not count."""
    sources: dict[str, set[str]] = {i.name: {i.name} for i in graph.input}
    for node in graph.node:
        if node.op_type in READS_ONLY_SIZES:
            continue
        found = set().union(*(sources.get(name, set()) for name in consumed(node)))
        for name in node.output:
            sources[name] = found
    return {o.name: sources.get(o.name, set()) for o in graph.output}


def control_flow(model: ModelProto) -> list[str]:
    """Return the operators that contain subgraphs."""
    nodes = (node for graph in all_graphs(model) for node in graph.node)
    return sorted({node.op_type for node in nodes if any(True for _ in subgraphs(node))})


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:12]))
    return f"[{shown}{', ...' if len(numbers) > 12 else ''}]"
