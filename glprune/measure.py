"""Measurements on the shipped file: predictions and latency through ONNX Runtime, and counts."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from glprune.data import Narrowing, Split, StreamedSplit
from glprune.report import Latency
from glprune.task import joined
from glprune.units import Inputs

EXPORT_TOLERANCE = 1e-4  # relative; two runtimes order their sums differently
_CHUNK = 1024
_CONSTANT, _AROUND_CONSTANT = 1e-7, 1e-3  # spread over mean that is round-off, and what is drawn with instead


class OnnxFile:
    """An ONNX file run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: Threads of one operator; 0 lets ONNX Runtime choose.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is raised
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """All outputs for a batch of inputs, both in the file's order."""
        feed = {name: x.numpy() for name, x in zip(self.names, inputs, strict=True)}
        return tuple(torch.from_numpy(y) for y in self.session.run(None, feed))


def predict(
    model: Callable[[Inputs], Sequence[Tensor]], split: Split, narrow: Callable[[Inputs], Inputs]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """All outputs of a model over a split, in order, with the targets.

    Args:
        model: Takes a tuple of inputs.
        split: The rows.
        narrow: Takes the model's columns out of a full batch.
    """
    if isinstance(split, StreamedSplit) and isinstance(narrow, Narrowing):
        split, narrow = split.narrowed(narrow), lambda inputs: inputs
    with torch.no_grad():
        return joined(((model(narrow(x)), y) for x, y in split.batches(_CHUNK, None)), split.rows)


def latency(
    original: OnnxFile, slim: OnnxFile, inputs: Inputs, slim_inputs: Inputs, batch: int, threads: int
) -> Latency:
    """Latency of two files, run in turn so that both meet the same machine.

    Args:
        original: The original network's file.
        slim: The shipped file.
        inputs: At least one row for the original.
        slim_inputs: The same rows for the slim file.
        batch: Rows in one call; rows are repeated to fill it.
        threads: Threads both files were opened with, for the record.
    """
    wide, narrow = _repeat(inputs, batch), _repeat(slim_inputs, batch)
    start = time.perf_counter()
    for _ in range(10):
        original(wide), slim(narrow)
        if time.perf_counter() - start > 2.0:
            break
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < 50 or (time.perf_counter() - start < 1.0 and len(pairs) < 1000):
        pairs.append((_time(original, wide), _time(slim, narrow)))
        if time.perf_counter() - start > 20.0:
            break
    before, after = ([p[i] * 1e3 for p in pairs] for i in (0, 1))
    return Latency(
        batch=batch,
        runs=len(pairs),
        threads=threads,
        original_ms=statistics.median(before),
        original_p95_ms=float(np.percentile(before, 95)),
        slim_ms=statistics.median(after),
        slim_p95_ms=float(np.percentile(after, 95)),
        speedup=statistics.median(b / a for b, a in zip(before, after, strict=True)),
    )


def macs(network: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one row: matrix products and convolutions, half their FLOPs.

    Args:
        network: The network, in evaluation mode.
        inputs: At least one row of each input.
    """
    # fused recurrent kernels are not counted; without them the same products are seen one by one
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of hardware this build does not know
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(torch.no_grad())
        counter = stack.enter_context(FlopCounterMode(display=False))
        network(*(x[:1] for x in inputs))
    return counter.get_total_flops() // 2


def parameters(network: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(p.numel() for p in network.parameters())


def _repeat(inputs: Inputs, batch: int) -> Inputs:
    return tuple(x[torch.arange(batch) % x.shape[0]].contiguous() for x in inputs)


def _time(model: OnnxFile, inputs: Inputs) -> float:
    start = time.perf_counter()
    model(inputs)
    return time.perf_counter() - start


def random_like(inputs: Sequence[Tensor], axes: Sequence[int | None], rows: int, seed: int) -> Inputs:
    """Random rows around real ones: normal with three times their spread, or around a constant.

    Integers, and inputs without features (ids, masks), are drawn from the real rows: no other value
    need mean anything to the network.

    Args:
        inputs: Real rows of each input.
        axes: The feature axis of each input.
        rows: Number of random rows.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for x, axis in zip(inputs, axes, strict=True):
        if x.is_floating_point() and axis is not None:
            noise = torch.randn((rows, *x.shape[1:]), generator=generator, dtype=x.dtype)
            mean, spread = x.double().mean(0), x.double().std(0, unbiased=False)
            spread = spread.where(spread > _CONSTANT * mean.abs(), _AROUND_CONSTANT)
            most = torch.finfo(x.dtype).max
            drawn.append((mean + 3.0 * spread * noise).clamp(-most, most).to(x.dtype))
        else:
            drawn.append(x[torch.randint(x.shape[0], (rows,), generator=generator)])
    return tuple(drawn)
