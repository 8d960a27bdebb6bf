"""PyTorch's two ONNX exporters behind one signature."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from glprune.errors import error_text
from glprune.model.outputs import leaves
from glprune.schema.recipe import BATCH_LABEL

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import ExporterChoice

DynamicAxes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class ExportRequest:
    """A network to export and the signature of the file.

    Attributes:
        network: The network.
        example: Example inputs.
        inputs: Name of each input.
        outputs: Name of each output.
        axes: Dynamic axes of each input: axis, counted from the front -> label.
        opset: Version of the default operator set.
    """

    network: nn.Module
    example: Inputs
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[dict[int, str], ...]
    opset: int


def label_axes(x: Tensor, axes: Mapping[int, str]) -> dict[int, str]:
    """Return the labels of the dynamic axes, counted from the front; the batch axis is always one of them."""
    return {0: BATCH_LABEL} | {axis % x.ndim: label for axis, label in axes.items()}


def _export_dynamo(request: ExportRequest, path: Path) -> None:
    shapes = request.axes
    parameters = inspect.signature(request.network.forward).parameters.values()
    is_variadic = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    with silence_exporters():
        torch.onnx.export(
            copy.deepcopy(request.network).eval(),
            request.example,
            path,
            dynamo=True,
            external_data=False,
            opset_version=request.opset,
            input_names=list(request.inputs),
            output_names=list(request.outputs),
            dynamic_shapes=(shapes,) if is_variadic else shapes,
            custom_translation_table={torch.ops.aten.index_select.default: _gather},
            verbose=False,
        )


def _gather(x: Any, dim: int, index: Any) -> Any:
    """Translate ``index_select`` to a Gather at a constant that an auditor can read.

    The exporter's own translation reshapes every index to one dimension, and folds the reshape into the
    constant only up to 8,192 indices.
    """
    # onnxscript takes a second to import and only this exporter needs it
    from onnxscript import opset18  # noqa: PLC0415
    from onnxscript.function_libs.torch_lib.ops.core import aten_index_select  # noqa: PLC0415

    is_flat = x.shape is not None and len(x.shape) > 0 and index.shape is not None and len(index.shape) == 1
    if is_flat and index.dtype == onnx.TensorProto.INT64:
        return opset18.Gather(x, index, axis=dim)
    return aten_index_select(x, dim, index)


def _export_torchscript(request: ExportRequest, path: Path) -> None:
    dynamic = dict(zip(request.inputs, request.axes, strict=True))
    with silence_exporters():
        network = copy.deepcopy(request.network).eval()
        torch.onnx.export(
            network,
            request.example,
            path,
            dynamo=False,
            opset_version=request.opset,
            input_names=list(request.inputs),
            output_names=list(request.outputs),
            dynamic_axes=dynamic | _output_axes(network, request),
        )


def _output_axes(network: nn.Module, request: ExportRequest) -> dict[str, dict[int, str]]:
    """Find the dynamic axes of the outputs: those as long as a dynamic axis of an input."""
    lengths = {
        x.shape[axis]: label
        for x, axes in zip(request.example, request.axes, strict=True)
        for axis, label in axes.items()
        if axis > 0
    }
    with torch.no_grad():
        outputs = leaves(network(*request.example))
    return {
        name: {0: BATCH_LABEL} | {a: lengths[n] for a, n in enumerate(y.shape) if a > 0 and n in lengths}
        for name, y in zip(request.outputs, outputs, strict=True)
    }


Exporter = tuple[str, Callable[[ExportRequest, Path], None]]
EXPORTERS: tuple[Exporter, ...] = (
    ("dynamo", _export_dynamo),
    ("torchscript", _export_torchscript),
)
"""Name and function of each exporter, in the order they are tried."""


def chosen_exporters(choice: ExporterChoice, exporters: Sequence[Exporter]) -> list[Exporter]:
    """Return the exporters that the recipe's ``export.exporter`` allows, in the order they are tried."""
    return [(name, export) for name, export in exporters if choice in ("auto", name)]


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Keep prints, logs and warnings of exporters and quantisers out of the user's terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        printed = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            _without_graph_dump(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _without_graph_dump() -> Iterator[None]:
    """Stop the TorchScript exporter from printing its graph past ``sys.stdout`` when it fails."""
    bindings, name = torch._C, "_jit_onnx_log"  # noqa: SLF001 - PyTorch has no public switch for this print
    log = getattr(bindings, name)
    setattr(bindings, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(bindings, name, log)


def root_cause(error: BaseException) -> str:
    """Return the first line of the root cause: exporters wrap the error in advice of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", error_text(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:200].rstrip(" .:")
