"""Describe the inputs and outputs of the shipped file for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.schema.report import DType, Input, Output, prediction_meaning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from glprune.pruning.removal import RemovalResult
    from glprune.search.job import Job

_DTYPES: dict[torch.dtype, DType] = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}


def shipped_inputs(job: Job, removed: RemovalResult) -> list[Input]:
    """Describe the inputs of the shipped file."""
    keeps_signature = job.recipe.export.signature == "original"
    described = []
    for part, kept, x in zip(job.data.inputs, removed.columns, job.probe, strict=True):
        keeps_all = keeps_signature or part.axis is None
        positions: Sequence[int] = range(len(part.columns)) if keeps_all else kept.tolist()
        columns = [part.columns[n] for n in positions]
        described.append(Input(name=part.name, dtype=dtype_name(x), axis=part.axis, columns=columns))
    return described


def dtype_name(x: Tensor) -> DType:
    """Return the type of an input's values as NumPy names it."""
    return _DTYPES[x.dtype]


def shipped_outputs(job: Job) -> list[Output]:
    """Describe the outputs of the shipped file; outputs that the task does not use have only a number."""
    return [
        Output(
            name=name,
            meaning=output_meaning(job)
            if job.outputs.predicted in (None, number)
            else f"output {number} of the network",
            scale=job.task.scales[number] if job.task.scales else None,
        )
        for number, name in enumerate(job.outputs.names)
    ]


def output_meaning(job: Job) -> str:
    """Describe the predicted output in words."""
    meaning = prediction_meaning(job.task.kind, job.task.output, job.data.classes or ())
    return meaning.of_one_class if job.task.width == 1 and meaning.of_one_class else meaning.of_all
