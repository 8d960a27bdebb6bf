"""What lets a bundle be checked without us: golden vectors on synthetic rows, and the input contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import save_file

from glprune.audit.checks.weights import shared
from glprune.audit.onnx_reader import input_shapes, parse
from glprune.audit.safetensors_reader import read_tensors
from glprune.data.splits import first_rows
from glprune.data.synthetic import synthetic
from glprune.export.onnx_runtime import OnnxFile
from glprune.export.shipped_model import file_columns
from glprune.schema import bundle as bundles
from glprune.schema.input_schema import make_input_schema
from glprune.search.prepare import PROBE_ROWS

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.plan import Plan
    from glprune.schema.report import Report
    from glprune.search.job import Job


def write_golden(job: Job, removed: RemovalResult, folder: Path) -> None:
    """Run the shipped file on synthetic rows and keep inputs and outputs as ``golden.safetensors``.

    Args:
        job: The job.
        removed: What was cut.
        folder: The bundle's files so far, ``model.onnx`` among them.
    """
    rows = synthetic(first_rows(job.data.test, PROBE_ROWS), job.axes, job.recipe.seed)
    given = tuple(x.contiguous() for x in file_columns(job, removed)(rows))
    file = OnnxFile(folder / bundles.ONNX, job.recipe.threads)
    tensors = {f"input.{name}": x.numpy() for name, x in zip(job.input_names, given, strict=True)}
    tensors |= {
        f"output.{name}": y.contiguous().numpy()
        for name, y in zip(job.outputs.names, file(given), strict=True)
    }
    save_file(tensors, folder / bundles.GOLDEN)
    (folder / bundles.GOLDEN).chmod(0o644)


def tensors_in_model(folder: Path) -> list[str]:
    """The saved tensors whose values are in the shipped file bit for bit."""
    weights, model = ((folder / name).read_bytes() for name in (bundles.WEIGHTS, bundles.ONNX))
    return shared(read_tensors(weights), parse(model))


def write_input_schema(report: Report, plan: Plan, folder: Path) -> None:
    """Write ``input_schema.json`` from the report, the plan and the shapes of the shipped file."""
    shapes = input_shapes(parse((folder / bundles.ONNX).read_bytes()))
    contract = make_input_schema(report, plan, shapes)
    bundles.write_json(folder / bundles.CONTRACT, contract.model_dump(mode="json", by_alias=True))
