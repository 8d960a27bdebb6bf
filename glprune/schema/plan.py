"""The plan: how the slim network is cut out of the original one; all of ``plan.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from glprune.schema.report import DType


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Axis(_Record):
    """Positions kept along one dimension of one tensor of the original network."""

    tensor: str
    dim: int
    size: int
    kept: list[int]


class Reader(_Record):
    """Where weights leaving an input's columns lie in one tensor of the slim network.

    ``columns`` gives for each position along ``dim`` the column of the original input, -1 for nobody's.
    """

    tensor: str
    dim: int
    columns: list[int]


class InputPlan(_Record):
    """The kept columns of one input; without an axis it passes whole."""

    name: str
    axis: int | None
    dtype: DType
    size: int
    kept: list[int]
    columns: list[str]
    constants: list[float] | None = None
    readers: list[Reader] = []


class AttributePlan(_Record):
    """A size that a module's forward reads, in the slim network."""

    module: str
    name: str
    value: int | list[int]


class Plan(_Record):
    """How the slim network is cut out of the original one; all of ``plan.json``.

    ``buffers`` are the saved tensors that are no parameters; ``in_model`` those whose values are in
    ``model.onnx`` bit for bit, as exporters fold or reorder others.
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
