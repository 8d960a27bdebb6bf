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
from unittest import mock

import onnx
import torch
from torch import Tensor, nn

from glprune.model.outputs import leaves
from glprune.schema.recipe import BATCH_LABEL

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import ExporterChoice

DynamicAxes = Mapping[str, Mapping[int, str]]


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
    return {0: BATCH_LABEL} | {axis % x.ndim: label for axis, label in axes.items()}


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
        name: {0: BATCH_LABEL} | {a: lengths[n] for a, n in enumerate(y.shape) if a > 0 and n in lengths}
        for name, y in zip(job.outputs, found, strict=True)
    }


Exporter = tuple[str, Callable[[_Job, Path], None]]
_EXPORTERS: tuple[Exporter, ...] = (
    ("dynamo", _dynamo),
    ("torchscript", _torchscript),
)


def chosen_exporters(choice: ExporterChoice, exporters: Sequence[Exporter]) -> list[Exporter]:
    """The exporters a recipe's ``export.exporter`` allows, in the order they are tried."""
    return [(name, export) for name, export in exporters if choice in ("auto", name)]


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
