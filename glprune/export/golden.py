"""Write what a bundle can be checked with: golden vectors on synthetic rows, and the input schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.numpy import save_file

from glprune.audit.onnx_reader import input_shapes, parse
from glprune.data.splits import first_rows
from glprune.data.synthetic import synthetic
from glprune.export.onnx_runtime import OnnxFile
from glprune.schema import bundle as bundles
from glprune.schema.column_table import column_tables
from glprune.schema.input_schema import make_input_schema
from glprune.search.prepare import PROBE_ROWS

if TYPE_CHECKING:
    from pathlib import Path

    from glprune.export.shipped_model import ShippedModel
    from glprune.schema.plan import Plan
    from glprune.schema.report import Report


def write_golden(shipped: ShippedModel) -> None:
    """Run the shipped file on synthetic rows and write inputs and outputs to ``golden.safetensors``."""
    job = shipped.job
    rows = synthetic(first_rows(job.data.test, PROBE_ROWS), job.axes, job.recipe.seed)
    inputs = tuple(x.contiguous() for x in shipped.select_columns(rows))
    outputs = OnnxFile(shipped.file, job.recipe.threads)(inputs)
    tensors = {f"input.{name}": x.numpy() for name, x in zip(job.input_names, inputs, strict=True)}
    tensors |= {
        f"output.{name}": y.contiguous().numpy() for name, y in zip(job.outputs.names, outputs, strict=True)
    }
    path = shipped.folder / bundles.GOLDEN
    save_file(tensors, path)
    path.chmod(0o644)


def write_input_schema(report: Report, plan: Plan, folder: Path) -> None:
    """Write ``input_schema.json`` from the report, the plan and the shapes of the shipped file."""
    shapes = input_shapes(parse((folder / bundles.ONNX).read_bytes()))
    schema = make_input_schema(report, column_tables(report, plan), shapes)
    bundles.write_json(folder / bundles.INPUT_SCHEMA, schema.model_dump(mode="json", by_alias=True))
