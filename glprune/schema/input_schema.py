"""``input_schema.json``: the inputs and outputs of the shipped model, for its callers.

The file is a JSON Schema of one row of named values. Further keys say how rows become tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from glprune.schema.column_table import ColumnTable
from glprune.schema.report import DType, Input, Record, Report

_MAX_FLOAT32 = 3.4028234663852886e38
_VALUES: dict[DType, dict[str, Any]] = {
    "float32": {"type": "number", "minimum": -_MAX_FLOAT32, "maximum": _MAX_FLOAT32},
    "int64": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "bool": {"type": "boolean"},
}


class Column(Record):
    """One position along an input's feature axis."""

    position: int
    name: str
    feature: str | None = Field(description="the feature it belongs to; null if the input has no features")
    read: bool = Field(description="whether its value can reach an output")


class SchemaInput(Record):
    """One input of the shipped model; the inputs are in order."""

    name: str
    dtype: DType
    shape: list[int | str] = Field(
        description="sizes; a name stands for any length, the same name for the same length"
    )
    axis: int | None = Field(
        description="axis of the columns, counted from 0; null if the input is kept whole"
    )
    columns: list[Column]


class SchemaOutput(Record):
    """One output of the shipped model."""

    name: str
    meaning: str


class InputSchema(Record):
    """The contents of ``input_schema.json``: a JSON Schema of a row, with keys that validators ignore."""

    dialect: Literal["https://json-schema.org/draft/2020-12/schema"] = Field(alias="$schema")
    title: str
    type: Literal["object"]
    properties: dict[str, dict[str, Any]] = Field(
        description="column -> its value; for an input without named columns: input -> nested lists"
    )
    required: list[str] = Field(description="the properties that can reach an output")
    schema_: Literal["glprune.input/2"] = Field(alias="schema")
    signature: Literal["slim", "original"]
    inputs: list[SchemaInput]
    outputs: list[SchemaOutput]


Shape = list[int | str]


def make_input_schema(
    report: Report, tables: Sequence[ColumnTable], shapes: Mapping[str, Shape]
) -> InputSchema:
    """Make the input schema from a report, its columns and the shapes of the ONNX file's inputs."""
    inputs = [
        _input(given, shapes[given.name], table)
        for given, table in zip(report.export.inputs, tables, strict=True)
    ]
    properties, required = _row(inputs)
    return InputSchema.model_validate(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"{report.title}: one row",
            "type": "object",
            "properties": properties,
            "required": required,
            "schema": "glprune.input/2",
            "signature": report.export.signature,
            "inputs": inputs,
            "outputs": [
                SchemaOutput(name=output.name, meaning=output.meaning) for output in report.export.outputs
            ],
        }
    )


def _row(inputs: Sequence[SchemaInput]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the properties of a row and the required ones: columns by name, and inputs that are not flat.

    If a name would be ambiguous, every input is a property.
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
    """Return the schema of nested lists; a name among the sizes stands for any length."""
    if not sizes:
        return dict(_VALUES[dtype])
    length = {"minItems": sizes[0], "maxItems": sizes[0]} if isinstance(sizes[0], int) else {}
    return {"type": "array", "items": _nested(sizes[1:], dtype), **length}


def _input(given: Input, shape: Shape, table: ColumnTable) -> SchemaInput:
    """Describe one input and its columns."""
    positions = range(len(table.columns)) if table.whole else table.kept
    read = set(table.kept)
    return SchemaInput(
        name=given.name,
        dtype=given.dtype,
        shape=shape,
        axis=None if given.axis is None else given.axis % len(shape),
        columns=[
            Column(
                position=n,
                name=table.columns[position],
                feature=next(iter(table.owners[position]), None),
                read=position in read,
            )
            for n, position in enumerate(positions)
        ],
    )
