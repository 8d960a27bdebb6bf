"""Write slim networks as ONNX files under the recipe's signature and run them on the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from glprune.data.splits import Inputs, first_rows, identity
from glprune.export.onnx_export import ColumnSelector, ExportResult, FileVariants, OnnxSignature, export_onnx
from glprune.model.counting import parameters
from glprune.model.prediction import as_function, predict
from glprune.pruning.verification import difference
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.export.onnx_runtime import OnnxFile
    from glprune.pruning.removal import RemovalResult
    from glprune.search.job import Job
    from glprune.search.outcome import Outcomes


@dataclass(frozen=True)
class ShippedModel:
    """The network that a run ships and the folder with its files.

    Attributes:
        job: The job of the original network.
        removed: What was removed from that.
        outcomes: What became of each feature, in the order of the data.
        network: The slim network after the refit.
        folder: The bundle's files so far.
    """

    job: Job
    removed: RemovalResult
    outcomes: Outcomes
    network: nn.Module
    folder: Path

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return self.folder / bundles.ONNX

    @property
    def select_columns(self) -> Callable[[Inputs], Inputs]:
        """Selects the columns of a full batch that the file has inputs for."""
        return file_columns(self.job, self.removed)


def write_onnx(
    job: Job, network: nn.Module, example: Inputs, path: Path, variants: FileVariants | None = None
) -> ExportResult:
    """Write a network as the recipe's ``export`` section says; see ``export_onnx``.

    Args:
        job: The job.
        network: The network, in evaluation mode.
        example: Rows of its inputs, at least 2.
        path: The file to write.
        variants: Metadata of the file and its size limit.

    Raises:
        ModelError: The network cannot be exported.
    """
    spec = job.recipe.export
    signature = OnnxSignature(job.input_names, job.outputs.names, spec.opset, spec.dynamic, spec.exporter)
    return export_onnx(network, example, path, signature, variants or FileVariants())


def write_shipped(
    job: Job,
    removed: RemovalResult,
    network: nn.Module,
    path: Path,
    metadata: Sequence[Mapping[str, str]] = (),
) -> ExportResult:
    """Write a refitted slim network under the recipe's signature.

    A file with metadata is kept within ``glprune.schema.bundle.size_limit`` where that is possible.

    Raises:
        ModelError: The network cannot be exported.
    """
    variants = FileVariants(metadata, bundles.size_limit(parameters(network))) if metadata else None
    if job.recipe.export.signature == "original":
        network = ColumnSelector(network, removed.columns, job.axes).eval()
    example = file_columns(job, removed)(first_rows(job.data.test, 4))
    return write_onnx(job, network, example, path, variants)


def file_columns(job: Job, removed: RemovalResult) -> Callable[[Inputs], Inputs]:
    """Return the function that selects the columns of a full batch that the shipped file has inputs for."""
    if job.recipe.export.signature == "original":
        return identity
    return removed.selection


def on_test_rows(
    job: Job, removed: RemovalResult, network: nn.Module, file: OnnxFile
) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """Run a file of a slim network on the test split.

    Args:
        job: The job.
        removed: What was removed.
        network: The refitted network that the file was made from.
        file: The file.

    Returns:
        Its outputs, the targets, and the largest relative difference to PyTorch's outputs.
    """
    found, target = predict(file, job.data.test, file_columns(job, removed))
    expected, _ = predict(as_function(network), job.data.test, removed.selection)
    return found, target, difference(expected, found)
