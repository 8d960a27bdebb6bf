"""Latency of ONNX files, measured side by side."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from glprune.data.splits import first_rows
from glprune.export.onnx_export import export_onnx
from glprune.export.onnx_runtime import OnnxFile, latency

if TYPE_CHECKING:
    from torch import nn

    from glprune.data.splits import ColumnSelection, Inputs
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.report import Latency
    from glprune.search.job import Job


class OnnxLatencyMeter:
    """Measures the latency of networks of other widths, as ONNX files beside the original's.

    Implements :class:`glprune.search.budget.LatencyMeter`.

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
        """The original's file."""
        return self._file(self.job.network, self.inputs, "original.onnx")

    def __call__(self, network: nn.Module, selection: ColumnSelection) -> tuple[float, float]:
        """Return the latency of a network in ms, and as a share of the original's, run in turn."""
        slim = selection(self.inputs)
        file = self._file(network, slim, "slim.onnx")
        times = latency(self.original, file, self.inputs, slim, self.batch, self.threads)
        return times.slim_ms, 1.0 / times.speedup

    def against(self, first: RemovalResult, second: RemovalResult) -> Latency:
        """Return the latency of two slim networks, run in turn, and the speed-up of the second one."""
        before, after = (removed.selection(self.inputs) for removed in (first, second))
        one = self._file(first.network, before, "first.onnx")
        other = self._file(second.network, after, "second.onnx")
        return latency(one, other, before, after, self.batch, self.threads)

    def _file(self, network: nn.Module, inputs: Inputs, name: str) -> OnnxFile:
        names, outputs, spec = self.job.input_names, self.job.outputs.names, self.job.recipe.export
        path = self.folder / name
        export_onnx(
            network,
            inputs,
            names,
            outputs,
            path,
            opset=spec.opset,
            dynamic=spec.dynamic,
            exporter=spec.exporter,
        )
        return OnnxFile(path, self.threads)
