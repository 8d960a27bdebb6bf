"""Measure the latency of slim networks beside the original network."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from glprune.data.splits import first_rows
from glprune.export.onnx_runtime import OnnxFile, latency
from glprune.export.shipped_model import write_onnx

if TYPE_CHECKING:
    from torch import nn

    from glprune.data.splits import ColumnSelection, Inputs
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.report import Latency
    from glprune.search.job import Job


class OnnxLatencyMeter:
    """Measures networks of any width as ONNX files, beside the file of the original network.

    Implements ``glprune.search.budget.LatencyMeter``.

    Args:
        job: The job whose network is the original.
        batch: Rows of one call.
        folder: An empty folder for the files.
    """

    def __init__(self, job: Job, batch: int, folder: Path) -> None:
        self.job, self.batch, self.folder = job, batch, folder
        self.inputs = first_rows(job.data.test, batch)
        self.threads = job.recipe.threads

    @functools.cached_property
    def original(self) -> OnnxFile:
        """The file of the original network."""
        return self._file(self.job.network, self.inputs, "original.onnx")

    def __call__(self, network: nn.Module, selection: ColumnSelection) -> tuple[float, float]:
        """Return the latency of a network in ms and as a share of the original's; both files run in turn."""
        slim = selection(self.inputs)
        file = self._file(network, slim, "slim.onnx")
        times = latency(self.original, file, self.inputs, slim, self.batch)
        return times.slim_ms, 1.0 / times.speedup

    def against(self, first: RemovalResult, second: RemovalResult) -> Latency:
        """Return the latency of two slim networks, run in turn, and the speed-up of the second."""
        first_inputs, second_inputs = (removed.selection(self.inputs) for removed in (first, second))
        first_file = self._file(first.network, first_inputs, "first.onnx")
        second_file = self._file(second.network, second_inputs, "second.onnx")
        return latency(first_file, second_file, first_inputs, second_inputs, self.batch)

    def _file(self, network: nn.Module, inputs: Inputs, name: str) -> OnnxFile:
        path = self.folder / name
        write_onnx(self.job, network, inputs, path)
        return OnnxFile(path, self.threads)
