"""What lets a bundle be checked without us: golden vectors on synthetic rows, and the input contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.numpy import save_file
from torch import Tensor

from glprune import bundle as bundles
from glprune.audit.onnxfile import input_shapes, parse
from glprune.audit.tensors import read_tensors
from glprune.audit.weights import shared
from glprune.contract import make_contract
from glprune.job import PROBE_ROWS, Job, first_rows
from glprune.measure import OnnxFile, random_like
from glprune.plan import Plan
from glprune.removal import Removed
from glprune.report import Report
from glprune.shipping import file_columns
from glprune.units import Inputs

_ROWS = 32
_FEW = 4
_NUMBERS = 1 << 18  # a megabyte of float32 is enough evidence


def write_golden(job: Job, removed: Removed, folder: Path) -> None:
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


def synthetic(inputs: Inputs, axes: Sequence[int | None], seed: int) -> Inputs:
    """Rows that are nobody's: numbers drawn around the real ones, the rest shuffled position by position.

    Codes, and inputs without features (ids, masks), take at each position a value that some real row
    has there, each position from another row: no other value need mean anything to the network.

    Args:
        inputs: Real rows of each input, shape (n_rows, ...).
        axes: The feature axis of each input.
        seed: Seed of the draw.
    """
    numbers = max(1, sum(x[0].numel() for x in inputs))
    rows = max(_FEW, min(_ROWS, _NUMBERS // numbers))
    generator = torch.Generator().manual_seed(seed)
    drawn = random_like(inputs, axes, rows, seed)
    return tuple(
        new if axis is not None and x.is_floating_point() else _shuffled(x, rows, generator)
        for x, new, axis in zip(inputs, drawn, axes, strict=True)
    )


def _shuffled(x: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    flat = x.reshape(len(x), -1)
    picked = torch.randint(len(x), (rows, flat.shape[1]), generator=generator)
    return flat.gather(0, picked).reshape(rows, *x.shape[1:])


def tensors_in_model(folder: Path) -> list[str]:
    """The saved tensors whose values are in the shipped file bit for bit."""
    weights, model = ((folder / name).read_bytes() for name in (bundles.WEIGHTS, bundles.ONNX))
    return shared(read_tensors(weights), parse(model))


def write_contract(report: Report, plan: Plan, folder: Path) -> None:
    """Write ``input_schema.json`` from the report, the plan and the shapes of the shipped file."""
    shapes = input_shapes(parse((folder / bundles.ONNX).read_bytes()))
    contract = make_contract(report, plan, shapes)
    bundles.write_json(folder / bundles.CONTRACT, contract.model_dump(mode="json", by_alias=True))
