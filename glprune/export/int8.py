"""Quantise the shipped file to 8-bit integers and measure the result; quantisation is not lossless.

Convolutional and dense networks are quantised statically: the range of an activation goes from the smallest
to the largest value over training rows. Dynamic quantisation made convolutions three times slower; it made
dense layers a tenth faster, but the output of a row then depends on the other rows of the batch. Networks of
matrix products such as transformers are quantised dynamically all the same, by the range of the current
batch: static quantisation did not make them faster, dynamic quantisation made them faster by half
(``benchmarks/latency.py``).

Weights have 7 bits, because kernels for processors without VNNI add products of 8 bits in pairs in 16 bits
and saturate; see ``glprune.audit.checks.int8``. Unsigned weights of 8 bits are safe too and more exact, but
their kernels were 2 to 9 times slower. Activations are unsigned, so that products of two of them are safe.

References:
    Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", CVPR 2018.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
import torch
from onnxruntime import quantization
from safetensors.torch import load_file
from torch import Tensor

from glprune.audit.checks.int8 import PAIR_LIMIT, PROPERTY, largest_pair, products
from glprune.data.splits import Inputs, first_rows
from glprune.errors import ModelError
from glprune.export.exporters import root_cause, silence_exporters
from glprune.export.onnx_runtime import OnnxFile, latency
from glprune.export.shrink import strip_exporter_metadata
from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.model.prediction import predict
from glprune.schema import bundle as bundles
from glprune.schema.recipe import HIGHER_IS_BETTER, METRICS
from glprune.schema.report import InstructionSet, Quantized, QuantizedLatency, QuantizedMetric

if TYPE_CHECKING:
    from glprune.export.shipped_model import ShippedModel
    from glprune.search.job import Job

Method = Literal["static", "dynamic"]
_OPERATORS = ["Conv", "Gemm", "MatMul"]  # quantised; all of them read columns that are selected already
_CPU_INFO = Path("/proc/cpuinfo")
_INSTRUCTION_SETS: Mapping[str, InstructionSet] = {
    "ssse3": "SSSE3",
    "avx2": "AVX2",
    "avx512bw": "AVX-512 BW",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "i8mm": "NEON I8MM",
}
_CALIBRATION_ROWS, _CALIBRATION_BATCH = 1024, 128


def write_int8(source: Path, target: Path, rows: Sequence[dict[str, Any]]) -> Method:
    """Quantise an ONNX file to 8-bit integers.

    Args:
        source: The file.
        target: The file to write: the same inputs, outputs, operator set and metadata.
        rows: Batches of training rows, input name -> array, that the ranges are taken from.

    Returns:
        How activations are quantised.

    Raises:
        ModelError: There is nothing to quantise, or the quantiser fails.
    """
    model = onnx.load(source)
    operators = {node.op_type for node in model.graph.node}
    method: Method = "dynamic" if "MatMul" in operators and "Conv" not in operators else "static"
    try:
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder, silence_exporters():
            unchecked = Path(folder) / target.name
            quantize(source, unchecked, method, rows)
            found = onnx.load(unchecked)
        metadata = {p.key: p.value for p in model.metadata_props} | {PROPERTY: f"int8, {method}"}
        strip_exporter_metadata(found, metadata, next(o.version for o in model.opset_import if not o.domain))
        onnx.checker.check_model(found, full_check=True)
    except Exception as error:  # the quantiser raises errors of any class
        raise ModelError(
            f"export.quantize: int8: the network cannot be quantised ({root_cause(error)}); remove the key."
        ) from error
    if not products(found)[0]:
        raise ModelError(
            "export.quantize: int8: the network has no convolution or dense layer that could be quantised, "
            f"only {', '.join(sorted(operators))}; remove the key."
        )
    if largest_pair(found) > PAIR_LIMIT:
        raise ModelError(
            "export.quantize: int8: products of 8 bits would saturate on processors without VNNI; remove the "
            "key."
        )
    target.write_bytes(found.SerializeToString(deterministic=True))
    return method


def quantize(source: Path, target: Path, method: Method, rows: Sequence[dict[str, Any]]) -> None:
    """Quantise with ONNX Runtime; see ``write_int8``."""
    int8 = quantization.QuantType.QInt8
    if method == "dynamic":
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            reduce_range=True,
            weight_type=int8,
        )
        return
    quantization.quantize_static(
        source,
        target,
        _CalibrationRows(rows),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=_OPERATORS,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=int8,
    )


class _CalibrationRows(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Batches for the quantiser."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.remaining = iter(rows)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch."""
        return next(self.remaining, None)


def measure_int8(shipped: ShippedModel, batches: Sequence[int]) -> Quantized:
    """Write and measure the 8-bit file of a bundle that has its ONNX file and golden vectors.

    Args:
        shipped: The shipped model.
        batches: Rows of a call, for latency.

    Raises:
        ModelError: See ``write_int8``.
    """
    job, threads = shipped.job, shipped.job.recipe.threads
    rows = _training_rows(shipped)
    target = shipped.folder / bundles.INT8
    method = write_int8(shipped.file, target, rows)
    float32, int8 = OnnxFile(shipped.file, threads), OnnxFile(target, threads)
    float32_outputs, labels = predict(float32, job.data.test, shipped.select_columns)
    int8_outputs, _ = predict(int8, job.data.test, shipped.select_columns)
    model = onnx.load(target)
    quantized, total = products(model)
    inputs = shipped.select_columns(first_rows(job.data.test, max(batches)))
    return Quantized(
        file=bundles.INT8,
        method=method,
        products=quantized,
        products_of=total,
        largest_pair=largest_pair(model),
        instruction_sets=instruction_sets(),
        calibration_rows=sum(len(next(iter(batch.values()))) for batch in rows) if method == "static" else 0,
        bytes=target.stat().st_size,
        rows=len(labels),
        metrics=_metrics(job, float32_outputs, int8_outputs, labels),
        same_decisions=_same_decisions(job, float32_outputs, int8_outputs),
        difference=relative_gap(float32_outputs, int8_outputs),
        golden_difference=_golden_gap(shipped, int8),
        latency=[_latency(float32, int8, inputs, batch) for batch in batches],
    )


def instruction_sets() -> list[InstructionSet]:
    """Return the instruction sets of this processor on which 8-bit kernels depend; empty if not known."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.partition(":") for line in text.splitlines())
    flags = {
        flag for key, _, words in lines if key.strip() in ("flags", "Features") for flag in words.split()
    }
    return [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags]


def relative_gap(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs over the largest value of each output."""
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True)]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in pairs)


def _golden_gap(shipped: ShippedModel, int8: OnnxFile) -> float:
    """Return the difference of the 8-bit file's outputs to the golden vectors."""
    golden = load_file(shipped.folder / bundles.GOLDEN)
    found = int8(tuple(golden[f"input.{name}"] for name in int8.names))
    return relative_gap([golden[f"output.{name}"] for name in shipped.job.outputs.names], found)


def _training_rows(shipped: ShippedModel) -> list[dict[str, Any]]:
    """Return batches of training rows in the order of a shuffle by the seed, as inputs of the file."""
    job = shipped.job
    batches, n_rows = [], 0
    generator = torch.Generator().manual_seed(job.recipe.seed)
    for inputs, _ in job.data.train.batches(_CALIBRATION_BATCH, generator):
        selected = zip(job.input_names, shipped.select_columns(inputs), strict=True)
        batches.append({name: x.contiguous().numpy() for name, x in selected})
        n_rows += len(inputs[0])
        if n_rows >= _CALIBRATION_ROWS:
            break
    return batches


def _metrics(
    job: Job, float32: Sequence[Tensor], int8: Sequence[Tensor], labels: Tensor
) -> list[QuantizedMetric]:
    views = {"float32": job.task.view(float32), "int8": job.task.view(int8)}
    before, after = (job.task.metrics(view, labels) for view in views.values())
    intervals = confidence_intervals(job.task.scorer, views, labels, job.recipe.seed)
    return [
        QuantizedMetric(
            name=name,
            higher_is_better=HIGHER_IS_BETTER[name],
            float32=before[name],
            int8=after[name],
            intervals=intervals.get(name),
        )
        for name in METRICS[job.task.kind]
    ]


def _same_decisions(job: Job, float32: Sequence[Tensor], int8: Sequence[Tensor]) -> float | None:
    """Return the share of rows for which both files decide for the same class; None without classes."""
    if job.task.kind not in ("binary", "multiclass"):
        return None
    before, after = (
        job.task.log_probabilities(job.task.view(outputs)).argmax(1) for outputs in (float32, int8)
    )
    return float((before == after).double().mean())


def _latency(float32: OnnxFile, int8: OnnxFile, inputs: Inputs, batch: int) -> QuantizedLatency:
    times = latency(float32, int8, inputs, inputs, batch)
    return QuantizedLatency(
        batch=batch,
        runs=times.runs,
        float32_ms=times.original_ms,
        int8_ms=times.slim_ms,
        speedup=times.speedup,
    )
