"""Run ONNX files with ONNX Runtime and measure their latency."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from glprune.schema.report import Latency

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

EXPORT_TOLERANCE = 1e-4  # relative; two runtimes order their sums differently


class OnnxFile:
    """An ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: Threads of one operator; 0 lets ONNX Runtime choose.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised, so they need no log
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.threads = threads
        self.names = [i.name for i in self.session.get_inputs()]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return all outputs for a batch of inputs, both in the file's order."""
        feed = {name: x.numpy() for name, x in zip(self.names, inputs, strict=True)}
        return tuple(torch.from_numpy(y) for y in self.session.run(None, feed))


def latency(original: OnnxFile, slim: OnnxFile, inputs: Inputs, slim_inputs: Inputs, batch: int) -> Latency:
    """Measure the latency of two files, run in turn so that the load of the machine is the same for both.

    Args:
        original: The original network's file.
        slim: The slim file, opened with as many threads.
        inputs: At least one row for the original.
        slim_inputs: The same rows for the slim file.
        batch: Rows in one call; rows are repeated to fill it.
    """
    full, selected = _repeat(inputs, batch), _repeat(slim_inputs, batch)
    start = time.perf_counter()
    for _ in range(10):
        original(full), slim(selected)
        if time.perf_counter() - start > 2.0:
            break
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < 50 or (time.perf_counter() - start < 1.0 and len(pairs) < 1000):
        pairs.append((_time(original, full), _time(slim, selected)))
        if time.perf_counter() - start > 20.0:
            break
    before, after = ([p[i] * 1e3 for p in pairs] for i in (0, 1))
    return Latency(
        batch=batch,
        runs=len(pairs),
        threads=original.threads,
        original_ms=statistics.median(before),
        original_p95_ms=float(np.percentile(before, 95)),
        slim_ms=statistics.median(after),
        slim_p95_ms=float(np.percentile(after, 95)),
        speedup=statistics.median(b / a for b, a in zip(before, after, strict=True)),
    )


def _repeat(inputs: Inputs, batch: int) -> Inputs:
    return tuple(x[torch.arange(batch) % x.shape[0]].contiguous() for x in inputs)


def _time(model: OnnxFile, inputs: Inputs) -> float:
    start = time.perf_counter()
    model(inputs)
    return time.perf_counter() - start
