"""Remove from an ONNX file what its results do not depend on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx

from glprune.audit.onnx_file.usage import needed
from glprune.audit.onnx_reader import all_graphs
from glprune.export.exporters import silence_exporters


def strip_exporter_metadata(model: onnx.ModelProto, metadata: Mapping[str, str], opset: int) -> None:
    """Remove what the exporter wrote about the machine and about intermediate shapes; write our metadata."""
    found = {o.domain: o.version for o in model.opset_import}
    if found.get("") != opset or set(found) - {""}:
        raise ValueError(f"operator sets {found} instead of {opset}")
    for graph in all_graphs(model):
        del graph.value_info[:]  # a runtime infers them, and they can be half of a small file
        for message in [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
            message.doc_string = ""
            del message.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    while _drop_unused(model):
        pass


def _drop_unused(model: onnx.ModelProto) -> bool:
    """Remove nodes and initializers that exporters leave without a reader; whether there were any."""
    changed = False
    for graph in all_graphs(model):
        used = needed(graph, {o.name for o in graph.output})
        nodes = [node for node in graph.node if not used.isdisjoint(node.output)]
        tensors = [tensor for tensor in graph.initializer if tensor.name in used]
        if len(nodes) < len(graph.node) or len(tensors) < len(graph.initializer):
            changed = True
            for field, kept in ((graph.node, nodes), (graph.initializer, tensors)):
                copies = [type(part).FromString(part.SerializeToString()) for part in kept]
                del field[:]
                field.extend(copies)
    return changed


def shrink(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write the same graph in fewer bytes: each constant and common value once, short names between nodes.

    Inputs, outputs and parameters keep their names; nodes lose theirs.
    """
    # only large files are shrunk, and this import takes half a second
    import onnx_ir as ir  # noqa: PLC0415
    from onnx_ir.passes import common as passes  # noqa: PLC0415

    graph = ir.from_proto(model)
    with silence_exporters():
        for remove in (
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.CommonSubexpressionEliminationPass(),
            passes.DeduplicateInitializersPass(),
            passes.RemoveUnusedNodesPass(),
        ):
            remove(graph)
    small = ir.to_proto(graph)
    _narrow_indices(small)
    _shorten_names(small)
    return small


def _shorten_names(model: onnx.ModelProto) -> None:
    """Replace the names of values between nodes by ``v0``, ``v1``, ... and clear those of nodes."""
    graphs = list(all_graphs(model))
    fixed = {v.name for v in [*model.graph.input, *model.graph.output]}
    fixed |= {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    unused = (name for name in map("v{}".format, itertools.count()) if name not in fixed)
    short = {name: name for name in ("", *fixed)}
    for graph in graphs:
        defined = [*(v.name for v in graph.input), *(t.name for t in graph.initializer)]
        defined += [name for node in graph.node for name in node.output]
        short |= {name: next(unused) for name in dict.fromkeys(defined) if name not in short}
    for graph in graphs:
        for node in graph.node:
            node.name = ""
            node.input[:] = [short[name] for name in node.input]
            node.output[:] = [short[name] for name in node.output]
        for value in [*graph.input, *graph.output, *graph.initializer]:
            value.name = short[value.name]


def _narrow_indices(model: onnx.ModelProto) -> None:
    """Write positions that only Gather nodes read as 32-bit integers."""
    graphs = list(all_graphs(model))
    uses = Counter(name for graph in graphs for node in graph.node for name in node.input)
    gathered = Counter(node.input[1] for graph in graphs for node in graph.node if node.op_type == "Gather")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and uses[tensor.name] == gathered[tensor.name] > 0:
            values = onnx.numpy_helper.to_array(tensor)
            if values.size and np.abs(values).max() < 2**31:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.int32), tensor.name))
