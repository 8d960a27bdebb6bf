"""Remove from an ONNX file what its results do not depend on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx

from glprune.audit.onnx_reader import all_graphs
from glprune.export.exporters import (
    _quiet,
)


def strip_exporter_metadata(model: onnx.ModelProto, metadata: Mapping[str, str], opset: int) -> None:
    """Strip what the exporter says of the machine and of shapes in between, and write our metadata."""
    found = {o.domain: o.version for o in model.opset_import}
    if found.get("") != opset or set(found) - {""}:
        raise ValueError(f"operator sets {found} instead of {opset}")
    for graph in all_graphs(model):
        del graph.value_info[:]  # a runtime infers them; they were up to half of a small file
        for message in [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
            message.doc_string = ""
            del message.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


def shrink(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fewer bytes: every constant and common value once, short names between nodes.

    Inputs, outputs and parameters keep their names, nodes have none.
    """
    import onnx_ir as ir  # noqa: PLC0415 - with sympy it takes half a second, for large files alone
    from onnx_ir.passes import common as passes  # noqa: PLC0415 - the same

    lean = ir.from_proto(model)
    with _quiet():
        for smaller in (
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.CommonSubexpressionEliminationPass(),
            passes.DeduplicateInitializersPass(),
            passes.RemoveUnusedNodesPass(),
        ):
            smaller(lean)
    shortened = ir.to_proto(lean)
    _narrow_indices(shortened)
    graphs = list(all_graphs(shortened))
    fixed = {v.name for v in [*shortened.graph.input, *shortened.graph.output]}
    fixed |= {t.name for t in shortened.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    fresh = (name for name in map("v{}".format, itertools.count()) if name not in fixed)
    short = {name: name for name in ("", *fixed)}
    for graph in graphs:
        made = [*(v.name for v in graph.input), *(t.name for t in graph.initializer)]
        made += [name for node in graph.node for name in node.output]
        short |= {name: next(fresh) for name in dict.fromkeys(made) if name not in short}
    for graph in graphs:
        for node in graph.node:
            node.name = ""
            node.input[:] = [short[name] for name in node.input]
            node.output[:] = [short[name] for name in node.output]
        for named in [*graph.input, *graph.output, *graph.initializer]:
            named.name = short[named.name]
    return shortened


def _narrow_indices(model: onnx.ModelProto) -> None:
    """Write positions that are only gathered at as 32-bit integers."""
    graphs = list(all_graphs(model))
    uses = Counter(name for graph in graphs for node in graph.node for name in node.input)
    gathered = Counter(node.input[1] for graph in graphs for node in graph.node if node.op_type == "Gather")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and uses[tensor.name] == gathered[tensor.name] > 0:
            values = onnx.numpy_helper.to_array(tensor)
            if values.size and np.abs(values).max() < 2**31:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.int32), tensor.name))
