"""The file a run ships: a slim network as ONNX under the recipe's signature, run on the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from glprune.data.splits import Inputs, first_rows, identity
from glprune.export.onnx_export import ColumnSelector, ExportResult, export_onnx
from glprune.model.counting import parameters
from glprune.model.prediction import as_function, predict
from glprune.pruning.verification import difference
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.export.onnx_runtime import OnnxFile
    from glprune.pruning.removal import RemovalResult
    from glprune.search.job import Job


def write_onnx(
    job: Job,
    network: nn.Module,
    example: Inputs,
    path: Path,
    metadata: Sequence[Mapping[str, str]] = ({},),
    limit: int | None = None,
) -> ExportResult:
    """Write a network as the recipe's ``export`` says; see :func:`glprune.export.onnx_export.export_onnx`.

    Args:
        job: The job.
        network: The network, in evaluation mode.
        example: Rows of its inputs, at least 2.
        path: The file to write.
        metadata: What the file may say of itself, the fullest first.
        limit: Bytes it should not exceed.

    Raises:
        ModelError: The network cannot be exported.
    """
    return export_onnx(
        network,
        example,
        job.input_names,
        job.outputs.names,
        path,
        opset=job.recipe.export.opset,
        metadata=metadata,
        limit=limit,
        dynamic=job.recipe.export.dynamic,
        exporter=job.recipe.export.exporter,
    )


def write_shipped(
    job: Job,
    removed: RemovalResult,
    network: nn.Module,
    path: Path,
    metadata: Sequence[Mapping[str, str]] = (),
) -> ExportResult:
    """Write a refitted slim network under the recipe's signature.

    A file that says something of itself is kept within :func:`glprune.schema.bundle.size_limit`, where that can be.

    Raises:
        ModelError: The network cannot be exported.
    """
    limit = bundles.size_limit(parameters(network)) if metadata else None
    if job.recipe.export.signature == "original":
        network = ColumnSelector(network, removed.columns, job.axes).eval()
    example = file_columns(job, removed)(first_rows(job.data.test, 4))
    return write_onnx(job, network, example, path, metadata or ({},), limit)


def file_columns(job: Job, removed: RemovalResult) -> Callable[[Inputs], Inputs]:
    """Take the columns the shipped file has inputs for out of a full batch."""
    if job.recipe.export.signature == "original":
        return identity
    return removed.selection


def on_test_rows(
    job: Job, removed: RemovalResult, network: nn.Module, file: OnnxFile
) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """Run a shipped file on the test split.

    Args:
        job: The job.
        removed: What was cut.
        network: The refitted network the file was made from.
        file: The file.

    Returns:
        Its outputs, the targets, and the largest relative difference to PyTorch's outputs.
    """
    found, target = predict(file, job.data.test, file_columns(job, removed))
    expected, _ = predict(as_function(network), job.data.test, removed.selection)
    return found, target, difference(expected, found)
