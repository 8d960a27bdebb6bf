"""C7: names in ONNX file, input schema and recipe follow from the columns of the report."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onnx import ModelProto

from glprune.audit.findings import Finding
from glprune.audit.onnx_reader import dtype_of, input_shapes, properties
from glprune.schema import bundle as bundles
from glprune.schema.input_schema import InputSchema, make_input_schema
from glprune.schema.strict_json import StrictError, read_json

if TYPE_CHECKING:
    from glprune.schema.column_table import ColumnTable
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Input, Report


def check_names(
    report: Report,
    tables: Sequence[ColumnTable],
    contract: InputSchema | None,
    recipe: Recipe | None,
    model: ModelProto | None,
) -> list[Finding]:
    """Compare the names in the files that could be read with the columns that follow from the report."""
    findings: list[Finding] = []
    if report.export.file != bundles.ONNX:
        findings.append(Finding(bundles.REPORT, "/export/file", f"is {report.export.file[:60]!r}"))
    if recipe is not None:
        findings += _names_option(report, recipe)
    if model is not None:
        findings += [*_signature(report, model), *_metadata(report, tables, model)]
    if contract is not None and model is not None:
        findings += _input_schema(report, tables, contract, model)
    return findings


def _names_option(report: Report, recipe: Recipe) -> Iterator[Finding]:
    if recipe.export.names not in ("auto", report.export.names):
        what = f"is {report.export.names!r}; {bundles.RECIPE} says {recipe.export.names!r}"
        yield Finding(bundles.REPORT, "/export/names", what)


def _signature(report: Report, model: ModelProto) -> Iterator[Finding]:
    found = [(i.name, dtype_of(i)) for i in model.graph.input]
    stated: list[tuple[str, str]] = [(i.name, i.dtype) for i in report.export.inputs]
    if found != stated:
        yield Finding(bundles.ONNX, "inputs", f"are {found}; the report says {stated}")
    outputs, named = [o.name for o in model.graph.output], [o.name for o in report.export.outputs]
    if outputs != named:
        yield Finding(bundles.ONNX, "outputs", f"are {outputs}; the report says {named}")


def _metadata(report: Report, tables: Sequence[ColumnTable], model: ModelProto) -> Iterator[Finding]:
    inputs = zip(report.export.inputs, tables, strict=True)
    expected: dict[str, object] = {
        "glprune.version": report.run.versions.get("glprune"),
        "glprune.task": report.task,
        "glprune.signature": report.export.signature,
        "glprune.inputs": [_record(report, given, table) for given, table in inputs],
        "glprune.classes": report.data.classes or [],
    }
    found = properties(model)
    for key in {*expected, *found} - {"glprune.output"}:
        value = _parsed(found.get(key), plain=not isinstance(expected.get(key), list))
        if value != expected.get(key):
            yield Finding(
                bundles.ONNX, f"metadata {key[:60]}", f"is {_short(value)}, not {_short(expected.get(key))}"
            )
    meanings = [o.meaning for o in report.export.outputs]
    if found.get("glprune.output") not in meanings:
        yield Finding(
            bundles.ONNX, "metadata glprune.output", "is not the meaning of an output of the report"
        )


def _record(report: Report, given: Input, table: ColumnTable) -> dict[str, object]:
    """Build the expected metadata of an input: columns by name or digest, and those that are read."""
    record: dict[str, object] = {"name": given.name, "dtype": given.dtype, "axis": given.axis}
    if report.export.names == "digest":
        listed = json.dumps(table.exported, ensure_ascii=False, separators=(",", ":")).encode()
        return record | {"count": len(table.exported), "sha256": hashlib.sha256(listed).hexdigest()}
    record["columns"] = table.exported
    if table.whole and given.axis is not None:
        record["read"] = _ranges(table.kept)
    return record


def _ranges(positions: Sequence[int]) -> str:
    """Format ascending positions like the metadata: first and last of each run."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def _parsed(text: str | None, plain: bool) -> object:
    if text is None or plain:
        return text
    try:
        return read_json(text.encode())
    except StrictError:
        return text


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


def _input_schema(
    report: Report, tables: Sequence[ColumnTable], contract: InputSchema, model: ModelProto
) -> Iterator[Finding]:
    shapes, axes = input_shapes(model), [i.axis for i in report.export.inputs]
    if not all(i.name in shapes and shapes[i.name] for i in report.export.inputs):
        yield Finding(bundles.INPUT_SCHEMA, "/inputs", "cannot be compared: the ONNX file lacks an input")
        return
    expected = make_input_schema(report, tables, shapes)
    if contract == expected:
        return
    for n, (found, wanted) in enumerate(zip(contract.inputs, expected.inputs, strict=False)):
        if found != wanted:
            key = next(k for k in type(wanted).model_fields if getattr(found, k) != getattr(wanted, k))
            what = f"differs from report, plan and ONNX file for {wanted.name!r} (axis {axes[n]})"
            yield Finding(bundles.INPUT_SCHEMA, f"/inputs/{n}/{key}", what)
            return
    yield Finding(
        bundles.INPUT_SCHEMA, "", "its schema of a row, outputs or signature differ from the report"
    )
