"""Require that every part of an ONNX graph is used: no second network, no payload beside the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from onnx import GraphProto, NodeProto, TensorProto

from glprune.audit.findings import Found
from glprune.audit.onnx_reader import READS_ONLY_SIZES, consumed, place, subgraphs

_FIRST_RESULT = {"Loop": 1}  # its body returns first whether to go on
_COUNTERS = {"Loop": 2}  # its body is given turn and condition first
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def check_usage(graph: GraphProto, wanted: Iterable[str] | None = None) -> Iterator[Found]:
    """Find nodes, initializers and results of loops and branches that no output needs.

    Args:
        graph: The graph.
        wanted: The outputs that are needed; None for all of them.
    """
    ends = {o.name for o in graph.output} if wanted is None else {*wanted}
    alive = needed(graph, ends)
    values = needed(graph, ends, READS_ONLY_SIZES)
    for node in graph.node:
        if alive.isdisjoint(node.output):
            yield place(node), "reaches no output"
        else:
            yield from _inside(node, alive)
    for tensor in graph.initializer:
        used = values if tensor.data_type in _FLOATS else alive
        if tensor.name not in used:
            yield f"initializer {tensor.name[:60]!r}", "reaches no output"


def needed(graph: GraphProto, ends: set[str], skipped: Iterable[str] = ()) -> set[str]:
    """Return the names that reach one of the ends, other than through operators that are skipped."""
    makers = {name: n for n, node in enumerate(graph.node) for name in node.output if name}
    found: set[str] = set()
    read: set[int] = set()
    waiting = [*ends]
    while waiting:
        name = waiting.pop()
        found.add(name)
        maker = makers.get(name)
        if maker is None or maker in read or graph.node[maker].op_type in skipped:
            continue
        read.add(maker)
        waiting += consumed(graph.node[maker]) - found
    return found


def _inside(node: NodeProto, alive: set[str]) -> Iterator[Found]:
    """Check the graphs of a node: each of its results, and of what a loop carries on, must be needed."""
    for graph in subgraphs(node):
        first = _FIRST_RESULT.get(node.op_type, 0)
        ends = _needed_results(node, graph, alive, first)
        for n, result in enumerate(graph.output[first:]):
            if result.name not in ends:
                yield place(node), f"its result {n} reaches no output"
        if node.op_type == "Scan":
            read = needed(graph, ends)
            for given in graph.input[_carried(node, graph) :]:
                if given.name not in read:
                    yield place(node), f"does not use its input {given.name[:60]!r}"
        yield from check_usage(graph, ends)


def _needed_results(node: NodeProto, graph: GraphProto, alive: set[str], first: int) -> set[str]:
    """Return the results of a node's graph that are needed after it, or by a loop's next turn."""
    names = itertools.chain(node.output, itertools.repeat(""))
    ends = {o.name for o in graph.output[:first]}
    ends |= {o.name for o, name in zip(graph.output[first:], names, strict=False) if name in alive}
    given = [i.name for i in graph.input[_COUNTERS.get(node.op_type, 0) :][: _carried(node, graph)]]
    states = list(zip(given, [o.name for o in graph.output[first:]], strict=False))
    while True:
        read = needed(graph, ends)
        more = {returned for name, returned in states if name in read} - ends
        if not more:
            return ends
        ends |= more


def _carried(node: NodeProto, graph: GraphProto) -> int:
    """Return how many values a loop carries from turn to turn."""
    if node.op_type == "Loop":
        return max(0, len(graph.input) - _COUNTERS["Loop"])
    scanned = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), len(graph.input))
    return max(0, len(graph.input) - scanned)
