"""A second file in 8-bit integers, made of the shipped one and measured like it; it is not lossless.

Convolutional and dense networks are quantised statically: their activations' ranges are the least and the
largest value over training rows. Of convolutions a dynamic one took three times as long; of dense layers it
was a tenth faster, but a row's output then depends on the rows beside it. Networks of matrix products such
as transformers are quantised dynamically all the same, by the range of the batch at hand: a static one made
them no faster, this one by half (``benchmarks/latency.py``).

References:
    Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", CVPR 2018.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
import torch
from onnxruntime import quantization
from safetensors.torch import load_file
from torch import Tensor

from glprune.audit.checks.int8 import PROPERTY, products
from glprune.data.splits import Inputs, first_rows
from glprune.errors import ModelError
from glprune.export.exporters import first_line
from glprune.export.onnx_runtime import OnnxFile, latency
from glprune.export.shipped_model import file_columns
from glprune.export.shrink import strip_exporter_metadata
from glprune.model.prediction import predict
from glprune.schema import bundle as bundles
from glprune.schema.recipe import HIGHER_IS_BETTER, METRICS
from glprune.schema.report import Quantized, QuantizedLatency, QuantizedMetric

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.search.job import Job

Method = Literal["static", "dynamic"]
_KINDS = ["Conv", "Gemm", "MatMul"]  # what is quantised: nothing in front of the choice of columns
_ROWS, _CHUNK = 1024, 128


def write_int8(source: Path, target: Path, rows: Sequence[dict[str, Any]]) -> Method:
    """Quantise an ONNX file to 8-bit integers.

    Args:
        source: The file.
        target: The file to write: the same inputs, outputs, operator set and metadata.
        rows: Batches of training rows, input name -> array, that ranges are taken from.

    Returns:
        How its activations are quantised.

    Raises:
        ModelError: There is nothing to quantise, or it cannot be done.
    """
    model = onnx.load(source)
    kinds = {node.op_type for node in model.graph.node}
    method: Method = "dynamic" if "MatMul" in kinds and "Conv" not in kinds else "static"
    try:
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder, _quiet():
            made = Path(folder) / target.name
            quantize(source, made, method, rows)
            found = onnx.load(made)
        metadata = {p.key: p.value for p in model.metadata_props} | {PROPERTY: f"int8, {method}"}
        strip_exporter_metadata(found, metadata, next(o.version for o in model.opset_import if not o.domain))
        onnx.checker.check_model(found, full_check=True)
    except Exception as error:  # the quantiser raises whatever it meets
        raise ModelError(
            f"export.quantize: int8: the network cannot be quantised ({first_line(error)}); remove the key."
        ) from error
    if not products(found)[0]:
        raise ModelError(
            "export.quantize: int8: the network has no convolution or dense layer that could be quantised, "
            f"only {', '.join(sorted(kinds))}; remove the key."
        )
    target.write_bytes(found.SerializeToString(deterministic=True))
    return method


def quantize(source: Path, made: Path, method: Method, rows: Sequence[dict[str, Any]]) -> None:
    """Quantise as a method says, through ONNX Runtime; see :func:`write_int8`."""
    int8 = quantization.QuantType.QInt8
    if method == "dynamic":
        quantization.quantize_dynamic(source, made, op_types_to_quantize=_KINDS, weight_type=int8)
        return
    quantization.quantize_static(
        source,
        made,
        _Rows(rows),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_KINDS,
        per_channel=True,
        activation_type=int8,
        weight_type=int8,
    )


class _Rows(quantization.CalibrationDataReader):
    """Batches for the quantiser."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.left = iter(rows)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch."""
        return next(self.left, None)


def quantized(job: Job, removed: RemovalResult, folder: Path, batches: Sequence[int]) -> Quantized:
    """Write and measure the 8-bit file of a bundle.

    Args:
        job: The job.
        removed: What was cut.
        folder: The bundle's files so far, ``model.onnx`` and the golden vectors among them.
        batches: Rows of a call, for latency.

    Raises:
        ModelError: See :func:`write_int8`.
    """
    rows = _training_rows(job, removed)
    target, threads = folder / bundles.INT8, job.recipe.threads
    method = write_int8(folder / bundles.ONNX, target, rows)
    before, after = OnnxFile(folder / bundles.ONNX, threads), OnnxFile(target, threads)
    narrow = file_columns(job, removed)
    wide, labels = predict(before, job.data.test, narrow)
    whole, _ = predict(after, job.data.test, narrow)
    golden = load_file(folder / bundles.GOLDEN)
    own = after(tuple(golden[f"input.{name}"] for name in after.names))
    expected = [golden[f"output.{name}"] for name in job.outputs.names]
    of, all_of = products(onnx.load(target))
    full = narrow(first_rows(job.data.test, max(batches)))
    return Quantized(
        file=bundles.INT8,
        method=method,
        products=of,
        products_of=all_of,
        calibration_rows=sum(len(next(iter(batch.values()))) for batch in rows) if method == "static" else 0,
        bytes=target.stat().st_size,
        rows=len(labels),
        metrics=_metrics(job, wide, whole, labels),
        same_decisions=_same_decisions(job, wide, whole),
        difference=gap(wide, whole),
        golden_difference=gap(expected, own),
        latency=[_latency(before, after, full, batch, threads) for batch in batches],
    )


def gap(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference of outputs over the largest value of each output."""
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True)]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in pairs)


def _training_rows(job: Job, removed: RemovalResult) -> list[dict[str, Any]]:
    """The first training rows as a shuffle by the seed gives them, as the file takes them."""
    narrow, found, rows = file_columns(job, removed), [], 0
    generator = torch.Generator().manual_seed(job.recipe.seed)
    for inputs, _ in job.data.train.batches(_CHUNK, generator):
        given = zip(job.input_names, narrow(inputs), strict=True)
        found.append({name: x.contiguous().numpy() for name, x in given})
        rows += len(inputs[0])
        if rows >= _ROWS:
            break
    return found


def _metrics(
    job: Job, wide: Sequence[Tensor], whole: Sequence[Tensor], labels: Tensor
) -> list[QuantizedMetric]:
    exact, found = (job.task.metrics(job.task.view(y), labels) for y in (wide, whole))
    return [
        QuantizedMetric(
            name=name, higher_is_better=HIGHER_IS_BETTER[name], float32=exact[name], int8=found[name]
        )
        for name in METRICS[job.task.kind]
    ]


def _same_decisions(job: Job, wide: Sequence[Tensor], whole: Sequence[Tensor]) -> float | None:
    if job.task.kind not in ("binary", "multiclass"):
        return None
    one, other = (job.task.log_probabilities(job.task.view(y)).argmax(1) for y in (wide, whole))
    return float((one == other).double().mean())


def _latency(before: OnnxFile, after: OnnxFile, rows: Inputs, batch: int, threads: int) -> QuantizedLatency:
    times = latency(before, after, rows, rows, batch, threads)
    return QuantizedLatency(
        batch=batch,
        runs=times.runs,
        float32_ms=times.original_ms,
        int8_ms=times.slim_ms,
        speedup=times.speedup,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice out of the user's terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
