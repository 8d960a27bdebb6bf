"""The input contract, ``input_schema.json``: what the shipped file takes and gives, for who calls it.

The file is a JSON Schema of one row of named values, and says in keys of its own how rows become tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from glprune.schema.plan import Plan
from glprune.schema.report import DType, Input, Record, Report

_LARGEST = 3.4028234663852886e38
_VALUES: dict[DType, dict[str, Any]] = {
    "float32": {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST},
    "int64": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "bool": {"type": "boolean"},
}


class Column(Record):
    """One position along an input's feature axis."""

    position: int
    name: str
    feature: str | None = Field(description="the feature it belongs to; null where the input has none")
    read: bool = Field(description="whether its value can reach an output")


class SchemaInput(Record):
    """One input of the shipped file, to be filled in this order."""

    name: str
    dtype: DType
    shape: list[int | str] = Field(description="sizes; a name stands for any length, equal names for equal")
    axis: int | None = Field(description="axis of the columns, from the front; null where it passes whole")
    columns: list[Column]


class SchemaOutput(Record):
    """One output of the shipped file."""

    name: str
    meaning: str


class InputSchema(Record):
    """All of ``input_schema.json``: a JSON Schema of a row, which ignores the keys it does not know."""

    dialect: Literal["https://json-schema.org/draft/2020-12/schema"] = Field(alias="$schema")
    title: str
    type: Literal["object"]
    properties: dict[str, dict[str, Any]] = Field(
        description="column -> its value; input -> nested lists where it has no named columns"
    )
    required: list[str] = Field(description="the properties that can reach an output")
    schema_: Literal["glprune.input/1"] = Field(alias="schema")
    signature: Literal["slim", "original"]
    inputs: list[SchemaInput]
    outputs: list[SchemaOutput]


Shape = list[int | str]


def make_input_schema(report: Report, plan: Plan, shapes: Mapping[str, Shape]) -> InputSchema:
    """The contract that follows from a report, the plan and the shapes of the ONNX file's inputs."""
    reads = {part.name: set(part.columns) for part in plan.inputs}
    inputs = [
        _input(given, shapes[given.name], _owners(report, given), reads[given.name])
        for given in report.export.inputs
    ]
    properties, required = _row(inputs)
    return InputSchema.model_validate(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"{report.title}: one row",
            "type": "object",
            "properties": properties,
            "required": required,
            "schema": "glprune.input/1",
            "signature": report.export.signature,
            "inputs": inputs,
            "outputs": [
                SchemaOutput(name=output.name, meaning=output.meaning) for output in report.export.outputs
            ],
        }
    )


def _row(inputs: Sequence[SchemaInput]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Properties of a row and those it must have: columns by name, and whole inputs where those are not flat.

    Where a name would stand for two things, every input goes by its own name.
    """
    flat = [part for part in inputs if len(part.shape) == 2 and len(part.columns) == part.shape[1]]
    names = [c.name for part in flat for c in part.columns] + [p.name for p in inputs if p not in flat]
    if len(set(names)) < len(names):
        flat = []
    properties: dict[str, dict[str, Any]] = {}
    required: list[str] = []
    for part in inputs:
        if part in flat:
            properties |= {c.name: dict(_VALUES[part.dtype]) for c in part.columns}
            required += [c.name for c in part.columns if c.read]
        else:
            properties[part.name] = _nested(part.shape[1:], part.dtype)
            required.append(part.name)
    return properties, required


def _nested(sizes: Sequence[int | str], dtype: DType) -> dict[str, Any]:
    """The schema of nested lists; a name among the sizes stands for any length."""
    if not sizes:
        return dict(_VALUES[dtype])
    length = {"minItems": sizes[0], "maxItems": sizes[0]} if isinstance(sizes[0], int) else {}
    return {"type": "array", "items": _nested(sizes[1:], dtype), **length}


def _input(given: Input, shape: Shape, owners: Mapping[str, str], reads: set[str]) -> SchemaInput:
    return SchemaInput(
        name=given.name,
        dtype=given.dtype,
        shape=shape,
        axis=None if given.axis is None else given.axis % len(shape),
        columns=[
            Column(position=n, name=name, feature=owners.get(name), read=name in reads)
            for n, name in enumerate(given.columns)
        ],
    )


def _owners(report: Report, given: Input) -> dict[str, str]:
    """Column -> feature, of one input."""
    return {c: f.name for f in report.features if f.input == given.name for c in f.columns}
