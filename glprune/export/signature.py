"""Inputs and outputs of the shipped file as the report states them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.schema.report import (
    DType,
    Input,
    Output,
)

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.search.job import Job


def shipped_inputs(job: Job, removed: RemovalResult) -> list[Input]:
    """The inputs of the shipped file."""
    whole = job.recipe.export.signature == "original"
    return [
        Input(
            name=part.name,
            dtype=dtype_name(x),
            axis=part.axis,
            columns=[part.columns[n] for n in _shipped(len(part.columns), kept, whole or part.axis is None)],
        )
        for part, kept, x in zip(job.data.inputs, removed.columns, job.probe, strict=True)
    ]


def _shipped(width: int, kept: Tensor, whole: bool) -> Sequence[int]:
    return range(width) if whole else kept.tolist()


def dtype_name(x: Tensor) -> DType:
    """The type of an input's values, as NumPy names it."""
    names: dict[torch.dtype, DType] = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}
    return names[x.dtype]


def _output(job: Job, number: int) -> Output:
    """An output and its meaning; of those the task is not about nothing is known but where they come from."""
    about = job.outputs.predicted in (None, number)
    meaning = output_meaning(job) if about else f"output {number} of the network"
    return Output(name=job.outputs.names[number], meaning=meaning)


def output_meaning(job: Job) -> str:
    """What the predicted output says, in words."""
    if job.task.kind == "distillation":
        return "what the original network returns, approximately"
    if job.task.kind == "regression":
        return "predicted value"
    kind = "logits" if job.task.output == "logits" else "probabilities"
    classes = job.data.classes or ()
    if job.task.kind == "binary" and job.task.width == 1:
        return f"{kind[:-1] if kind == 'logits' else 'probability'} of class {classes[1]!r}"
    return f"{kind} of the classes in order: {', '.join(classes)}"
