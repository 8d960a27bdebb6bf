"""The file a run ships: a slim network as ONNX under the recipe's signature, run on the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from glprune.export import Select, export_onnx
from glprune.job import Job, caller, everything, first_rows, narrowing
from glprune.measure import OnnxFile, predict
from glprune.proof import difference
from glprune.removal import Removed
from glprune.units import Inputs


def write_onnx(job: Job, network: nn.Module, example: Inputs, path: Path, metadata: Mapping[str, str]) -> str:
    """Write a network as the recipe's ``export`` says and return the exporter used.

    Args:
        job: The job.
        network: The network, in evaluation mode.
        example: Rows of its inputs, at least 2.
        path: The file to write.
        metadata: What the file says of itself.

    Raises:
        ModelError: The network cannot be exported.
    """
    spec = job.recipe.export
    names, outputs = job.input_names, job.outputs.names
    return export_onnx(
        network, example, names, outputs, path, opset=spec.opset, metadata=metadata, dynamic=spec.dynamic
    )


def write_shipped(
    job: Job, removed: Removed, network: nn.Module, path: Path, metadata: Mapping[str, str]
) -> str:
    """Write a refitted slim network under the recipe's signature and return the exporter used.

    Raises:
        ModelError: The network cannot be exported.
    """
    if job.recipe.export.signature == "original":
        network = Select(network, removed.columns, job.axes).eval()
    example = file_columns(job, removed)(first_rows(job.data.test, 4))
    return write_onnx(job, network, example, path, metadata)


def file_columns(job: Job, removed: Removed) -> Callable[[Inputs], Inputs]:
    """Take the columns the shipped file has inputs for out of a full batch."""
    if job.recipe.export.signature == "original":
        return everything
    return narrowing(removed.columns, job.axes)


def on_test_rows(
    job: Job, removed: Removed, network: nn.Module, file: OnnxFile
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
    expected, _ = predict(caller(network), job.data.test, narrowing(removed.columns, job.axes))
    return found, target, difference(expected, found)
