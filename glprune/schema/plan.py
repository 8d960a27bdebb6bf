"""``plan.json``: how the slim network is made from the original one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from glprune.schema.report import DType


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Axis(_Record):
    """The positions that are kept along one dimension of one tensor of the original network."""

    tensor: str
    dim: int
    size: int
    kept: list[int]


class Reader(_Record):
    """Where one tensor of the slim network reads an input's columns.

    ``columns`` gives for each position along ``dim`` the column of the original input, or -1 if the position
    reads no column of it.
    """

    tensor: str
    dim: int
    columns: list[int]


class InputPlan(_Record):
    """The kept columns of one input; an input without an axis is kept whole."""

    name: str
    axis: int | None
    dtype: DType
    size: int
    kept: list[int]
    columns: list[str]
    constants: list[float] | None = None
    readers: list[Reader] = []


class AttributePlan(_Record):
    """The value, in the slim network, of a module's attribute that holds a size."""

    module: str
    name: str
    value: int | list[int]


class Plan(_Record):
    """The contents of ``plan.json``.

    ``buffers`` are the saved tensors that are not parameters; ``in_model`` are the tensors whose values
    ``model.onnx`` holds bit for bit (exporters fold or reorder others).
    """

    schema_version: Literal["glprune.plan/1"] = "glprune.plan/1"
    factory: str
    arguments: dict[str, Any]
    standardize: bool
    inputs: list[InputPlan]
    axes: list[Axis]
    attributes: list[AttributePlan]
    buffers: list[str] = []
    in_model: list[str] = []
