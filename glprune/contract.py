"""The input contract, ``input_schema.json``: what the shipped file takes and gives, for who calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from glprune.plan import Plan
from glprune.report import DType, Input, Record, Report


class Column(Record):
    """One position along an input's feature axis."""

    position: int
    name: str
    field: str | None = Field(description="the field it belongs to; null where the input has none")
    read: bool = Field(description="whether its value can reach an output")


class ContractInput(Record):
    """One input of the shipped file, to be filled in this order."""

    name: str
    dtype: DType
    shape: list[int | str] = Field(description="sizes; a name stands for any length, equal names for equal")
    axis: int | None = Field(description="axis of the columns, from the front; null where it passes whole")
    columns: list[Column]


class ContractOutput(Record):
    """One output of the shipped file."""

    name: str
    meaning: str


class Contract(Record):
    """All of ``input_schema.json``."""

    schema_: Literal["glprune.input/1"] = Field(alias="schema")
    signature: Literal["slim", "original"]
    inputs: list[ContractInput]
    outputs: list[ContractOutput]


Shape = list[int | str]


def make_contract(report: Report, plan: Plan, shapes: Mapping[str, Shape]) -> Contract:
    """The contract that follows from a report, the plan and the shapes of the ONNX file's inputs."""
    reads = {part.name: set(part.columns) for part in plan.inputs}
    return Contract(
        schema="glprune.input/1",
        signature=report.export.signature,
        inputs=[
            _input(given, shapes[given.name], _owners(report, given), reads[given.name])
            for given in report.export.inputs
        ],
        outputs=[
            ContractOutput(name=output.name, meaning=output.meaning) for output in report.export.outputs
        ],
    )


def _input(given: Input, shape: Shape, owners: Mapping[str, str], reads: set[str]) -> ContractInput:
    return ContractInput(
        name=given.name,
        dtype=given.dtype,
        shape=shape,
        axis=None if given.axis is None else given.axis % len(shape),
        columns=[
            Column(position=n, name=name, field=owners.get(name), read=name in reads)
            for n, name in enumerate(given.columns)
        ],
    )


def _owners(report: Report, given: Input) -> dict[str, str]:
    """Column -> field, of one input."""
    return {c: f.name for f in report.features if f.input == given.name for c in f.columns}
