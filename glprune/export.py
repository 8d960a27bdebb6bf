"""Write a network to one self-contained ONNX file and check the file."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import itertools
import logging
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from glprune.audit.onnxfile import all_graphs
from glprune.errors import ModelError
from glprune.measure import EXPORT_TOLERANCE, OnnxFile
from glprune.outputs import leaves
from glprune.proof import difference
from glprune.units import Inputs

DynamicAxes = Mapping[str, Mapping[int, str]]
BATCH = "batch"
"""Label of the axis of rows."""


class Select(nn.Module):
    """A slim network behind the original signature: kept columns are gathered first.

    ``index_select`` exports to a plain Gather with a constant index, which an auditor can read;
    indexing with a list would become GatherND.

    Args:
        network: The slim network.
        columns: Kept positions along each input's feature axis, int64.
        axes: The feature axis of each input; None passes an input whole.
    """

    def __init__(self, network: nn.Module, columns: Sequence[Tensor], axes: Sequence[int | None]) -> None:
        super().__init__()
        self.network = network
        self.axes = tuple(axes)
        for place, kept in enumerate(columns):
            self.register_buffer(f"columns_{place}", kept.clone())

    def forward(self, *inputs: Tensor) -> Any:
        """Run the slim network on the kept columns of full inputs."""
        chosen = [
            x if axis is None else x.index_select(axis, self.get_buffer(f"columns_{place}"))
            for place, (x, axis) in enumerate(zip(inputs, self.axes, strict=True))
        ]
        return self.network(*chosen)


def export_onnx(
    network: nn.Module,
    example: Inputs,
    names: Sequence[str],
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int,
    metadata: Sequence[Mapping[str, str]] = ({},),
    limit: int | None = None,
    dynamic: DynamicAxes | None = None,
) -> Exported:
    """Export a network with a dynamic batch axis to one file without external data.

    The TorchDynamo exporter is tried first, then the TorchScript one. What exporters add about
    the machine (source paths, stack traces) is stripped. Where a file is larger than ``limit``, its graph is
    written tersely, then with leaner metadata, then by the other exporter; the first that fits is taken, and
    the smallest where none does.

    Args:
        network: The network, in evaluation mode.
        example: Example inputs, each (batch, ...), batch at least 2.
        names: Name of each input.
        outputs: Name of each output.
        path: The file to write.
        opset: Version of the default operator set.
        metadata: What may be written to the model's ``metadata_props``, the fullest first.
        limit: Bytes the file should not exceed; None takes what the first exporter gives.
        dynamic: Input -> axis -> label of further axes of any length.

    Raises:
        ModelError: Neither exporter can export the network, or the file fails
            ``onnx.checker``; the message names the layer and carries the first error of each.
    """
    axes = [_labelled(x, (dynamic or {}).get(name, {})) for x, name in zip(example, names, strict=True)]
    job = _Job(network, example, tuple(names), tuple(outputs), tuple(axes), opset)
    failures: list[str] = []
    found: list[tuple[bytes, Exported]] = []
    for exporter, export in _EXPORTERS:
        try:
            export(job, path)
            model = onnx.load(path)
            _check_signature(model, job)
            raw, choice = _written(model, metadata, opset, limit)
            gap = _difference(raw, job, path)
            if found and not gap <= EXPORT_TOLERANCE:  # a file nobody needs is not to be a wrong one
                raise ValueError(f"its outputs differ from the network's by {gap:.1e}")
        except Exception as error:  # exporters raise whatever they meet
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the network's
            failures.append(f"{exporter}: {first_line(error)}")
            continue
        found.append((raw, Exported(exporter, choice)))
        if limit is None or len(raw) <= limit:
            break
    if found:
        raw, exported = min(found, key=lambda one: len(one[0]))
        path.write_bytes(raw)
        return exported
    culprit = failing_layer(network, example, opset)
    reasons = "; ".join(failures if culprit is None else culprit.reasons)
    where = f": {culprit.name}" if culprit is not None else ""
    raise ModelError(f"The network cannot be exported to ONNX{where} ({reasons}).")


@dataclass(frozen=True)
class Exported:
    """How a file was written.

    Attributes:
        exporter: ``dynamo`` or ``torchscript``.
        choice: Which of the metadata offered it carries.
    """

    exporter: str
    choice: int


@dataclass(frozen=True)
class _Job:
    """What an exporter is given.

    Attributes:
        network: The network.
        example: Example inputs.
        names: Name of each input.
        outputs: Name of each output.
        axes: Label of each input's dynamic axes.
        opset: Version of the default operator set.
    """

    network: nn.Module
    example: Inputs
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[dict[int, str], ...]
    opset: int


def _labelled(x: Tensor, axes: Mapping[int, str]) -> dict[int, str]:
    """Labels of the dynamic axes, counted from the front; the batch is always one."""
    return {0: BATCH} | {axis % x.ndim: label for axis, label in axes.items()}


def _dynamo(job: _Job, path: Path) -> None:
    shapes = job.axes
    several = any(
        p.kind == p.VAR_POSITIONAL for p in inspect.signature(job.network.forward).parameters.values()
    )
    with _quiet():
        torch.onnx.export(
            copy.deepcopy(job.network).eval(),
            job.example,
            path,
            dynamo=True,
            external_data=False,
            opset_version=job.opset,
            input_names=list(job.names),
            output_names=list(job.outputs),
            dynamic_shapes=(shapes,) if several else shapes,
            custom_translation_table={torch.ops.aten.index_select.default: _gather},
            verbose=False,
        )


def _gather(x: Any, dim: int, index: Any) -> Any:
    """``index_select`` as a Gather at a constant that an auditor can read.

    The exporter reshapes every index to one dimension, and folds that into the constant up to 8,192 of them.
    """
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.core import aten_index_select

    flat = x.shape is not None and len(x.shape) > 0 and index.shape is not None and len(index.shape) == 1
    if flat and index.dtype == onnx.TensorProto.INT64:
        return opset18.Gather(x, index, axis=dim)
    return aten_index_select(x, dim, index)


def _torchscript(job: _Job, path: Path) -> None:
    dynamic = dict(zip(job.names, job.axes, strict=True))
    with _quiet():
        network = copy.deepcopy(job.network).eval()
        torch.onnx.export(
            network,
            job.example,
            path,
            dynamo=False,
            opset_version=job.opset,
            input_names=list(job.names),
            output_names=list(job.outputs),
            dynamic_axes=dynamic | _output_axes(network, job),
        )


def _output_axes(network: nn.Module, job: _Job) -> dict[str, dict[int, str]]:
    """Dynamic axes of the outputs: those as long as a dynamic axis of an input."""
    lengths = {
        x.shape[axis]: label
        for x, axes in zip(job.example, job.axes, strict=True)
        for axis, label in axes.items()
        if axis > 0
    }
    with torch.no_grad():
        found = leaves(network(*job.example))
    return {
        name: {0: BATCH} | {a: lengths[n] for a, n in enumerate(y.shape) if a > 0 and n in lengths}
        for name, y in zip(job.outputs, found, strict=True)
    }


_EXPORTERS: tuple[tuple[str, Callable[[_Job, Path], None]], ...] = (
    ("dynamo", _dynamo),
    ("torchscript", _torchscript),
)


def _check_signature(model: onnx.ModelProto, job: _Job) -> None:
    """Refuse a file whose inputs or outputs are not those of the network."""
    found = tuple(i.name for i in model.graph.input)
    missing = [name for name in job.names if name not in found]
    if missing:
        raise ValueError(f"input {missing[0]!r} is not used by the network; take it out of model.inputs")
    if found != job.names or tuple(o.name for o in model.graph.output) != job.outputs:
        raise ValueError("the file's inputs and outputs are not those of the network")


@dataclass(frozen=True)
class Culprit:
    """The layer that cannot be exported.

    Attributes:
        name: The layer and its class, in words.
        reasons: First line of the error of each exporter.
    """

    name: str
    reasons: tuple[str, ...]


def failing_layer(network: nn.Module, example: Inputs, opset: int) -> Culprit | None:
    """Find the deepest layer that cannot be exported by itself; None where every layer can.

    Layers are exported alone, on the inputs they get in one forward pass, from the outermost
    inwards, descending into the first that fails.

    Args:
        network: The network whose export failed.
        example: Example inputs.
        opset: Version of the default operator set.
    """
    calls = _captured_calls(network, example)
    culprit, children = None, _called_children(network, "", calls)
    while children:
        found = None
        for name, child in children:
            reasons = _failures_alone(child, *calls[child], opset)
            if reasons:
                shown = name.removeprefix("network.")
                found = Culprit(f'layer "{shown}" ({type(child).__name__})', reasons), name, child
                break
        if found is None:
            break
        culprit = found[0]
        children = _called_children(found[2], f"{found[1]}.", calls)
    return culprit


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _captured_calls(network: nn.Module, example: Inputs) -> dict[nn.Module, _Call]:
    """The arguments of every submodule's first call in a forward pass."""
    calls: dict[nn.Module, _Call] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, (args, kwargs))

    handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in network.modules()]
    try:
        with torch.no_grad():
            network(*example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _called_children(
    module: nn.Module, prefix: str, calls: Mapping[nn.Module, _Call]
) -> list[tuple[str, nn.Module]]:
    """Children that were called; lists and dicts of modules are looked through."""
    found = []
    for name, child in module.named_children():
        if child in calls:
            found.append((prefix + name, child))
        else:
            found += _called_children(child, f"{prefix}{name}.", calls)
    return found


class _Alone(nn.Module):
    """A layer as a function of the tensors among its arguments, returning tensors alone."""

    def __init__(self, layer: nn.Module, spec: pytree.TreeSpec, leaves_: Sequence[Any]) -> None:
        super().__init__()
        self.layer, self.spec = layer, spec
        self.constants = [None if isinstance(x, Tensor) else x for x in leaves_]
        self.places = [n for n, x in enumerate(leaves_) if isinstance(x, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, self.spec)
        return tuple(y for y in pytree.tree_leaves(self.layer(*args, **kwargs)) if isinstance(y, Tensor))


def _failures_alone(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], opset: int
) -> tuple[str, ...]:
    """First line of each exporter's error on one layer; empty where one of them can export it."""
    found, spec = pytree.tree_flatten((args, kwargs))
    tensors = tuple(x for x in found if isinstance(x, Tensor))
    alone = _Alone(layer, spec, found)
    try:
        with torch.no_grad():
            outputs = alone(*tensors)
    except Exception:  # a layer that does not run again on what it was given tells nothing
        return ()
    if not tensors or not outputs:
        return ()
    job = _Job(
        alone,
        tensors,
        tuple(f"in_{n}" for n in range(len(tensors))),
        tuple(f"out_{n}" for n in range(len(outputs))),
        tuple({} for _ in tensors),
        opset,
    )
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        for exporter, export in reversed(_EXPORTERS):  # the quicker one first
            try:
                export(job, Path(folder) / "layer.onnx")
                return ()
            except Exception as error:  # exporters raise whatever they meet
                reasons.append(f"{exporter}: {first_line(error)}")
    return tuple(reasons)


def _written(
    model: onnx.ModelProto, metadata: Sequence[Mapping[str, str]], opset: int, limit: int | None
) -> tuple[bytes, int]:
    """A checked file as bytes, and the metadata chosen for it; see :func:`export_onnx`."""
    tried = []
    for shape, choice in _shapes(model, len(metadata)):
        clean(shape, metadata[choice], opset)
        # deterministic bytes: protobuf's default map order is not used by ONNX messages
        raw = shape.SerializeToString(deterministic=True)
        tried.append((raw, choice))
        if limit is None or len(raw) <= limit:
            break
    raw, choice = min(tried, key=lambda one: len(one[0]))
    onnx.checker.check_model(raw, full_check=True)
    return raw, choice


def _shapes(model: onnx.ModelProto, choices: int) -> Iterator[tuple[onnx.ModelProto, int]]:
    """The graph as it is and in fewer bytes with each of the metadata, made when it is asked for."""
    yield model, 0
    lean = terse(model)
    yield lean, 0
    for choice in range(1, choices):
        yield model, choice
        yield lean, choice


def _difference(raw: bytes, job: _Job, path: Path) -> float:
    """How far outputs of a file are from the network's on the example, at two batch sizes."""
    path.write_bytes(raw)
    file, gap = OnnxFile(path), 0.0
    for rows in (len(job.example[0]), 2):
        given = tuple(x[:rows] for x in job.example)
        with torch.no_grad():
            gap = max(gap, difference(leaves(job.network(*given)), file(given)))
    return gap


def clean(model: onnx.ModelProto, metadata: Mapping[str, str], opset: int) -> None:
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


def terse(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fewer bytes: every constant and common value once, short names between nodes.

    Inputs, outputs and parameters keep their names, nodes have none.
    """
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' prints, logs and warnings out of the user's terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        # the TorchScript exporter writes its graph past sys.stdout when it fails
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(torch._C, "_jit_onnx_log", create=True),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def first_line(error: BaseException) -> str:
    """The first line of what went wrong at the bottom: exporters wrap the error they met in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (plain.splitlines() or [type(error).__name__])[0][:200].rstrip(" .:")
