"""Write a network to one self-contained ONNX file and check the file."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from glprune.errors import ModelError
from glprune.outputs import leaves
from glprune.units import Inputs

DynamicAxes = Mapping[str, Mapping[int, str]]
_BATCH = "batch"


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
    metadata: Mapping[str, str],
    dynamic: DynamicAxes | None = None,
) -> str:
    """Export a network with a dynamic batch axis to one file without external data.

    The TorchDynamo exporter is tried first, then the TorchScript one. What exporters add about
    the machine (source paths, stack traces) is stripped.

    Args:
        network: The network, in evaluation mode.
        example: Example inputs, each (batch, ...), batch at least 2.
        names: Name of each input.
        outputs: Name of each output.
        path: The file to write.
        opset: Version of the default operator set.
        metadata: Written to the model's ``metadata_props``.
        dynamic: Input -> axis -> label of further axes of any length.

    Returns:
        The exporter used: ``dynamo`` or ``torchscript``.

    Raises:
        ModelError: Neither exporter can export the network, or the file fails
            ``onnx.checker``; the message names the layer and carries the first error of each.
    """
    axes = [_labelled(x, (dynamic or {}).get(name, {})) for x, name in zip(example, names, strict=True)]
    job = _Job(network, example, tuple(names), tuple(outputs), tuple(axes), opset)
    failures = []
    for exporter, export in _EXPORTERS:
        try:
            export(job, path)
            model = onnx.load(path)
            _check_signature(model, job)
            clean(model, metadata, opset)
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # exporters raise whatever they meet
            path.unlink(missing_ok=True)
            failures.append(f"{exporter}: {first_line(error)}")
            continue
        # deterministic bytes: protobuf's default map order is not used by ONNX messages
        path.write_bytes(model.SerializeToString(deterministic=True))
        return exporter
    culprit = failing_layer(network, example, opset)
    reasons = "; ".join(failures if culprit is None else culprit.reasons)
    where = f": {culprit.name}" if culprit is not None else ""
    raise ModelError(f"The network cannot be exported to ONNX{where} ({reasons}).")


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
    return {0: _BATCH} | {axis % x.ndim: label for axis, label in axes.items()}


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
        name: {0: _BATCH} | {a: lengths[n] for a, n in enumerate(y.shape) if a > 0 and n in lengths}
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


def clean(model: onnx.ModelProto, metadata: Mapping[str, str], opset: int) -> None:
    """Strip what the exporter says of the machine and write our metadata."""
    found = {o.domain: o.version for o in model.opset_import}
    if found.get("") != opset or set(found) - {""}:
        raise ValueError(f"operator sets {found} instead of {opset}")
    graph = model.graph
    for message in [
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ]:
        message.doc_string = ""
        del message.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


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
