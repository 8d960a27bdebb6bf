"""C7: report, plan, input schema, recipe and ONNX file must list the same columns in the same order."""

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
    from glprune.schema.plan import InputPlan, Plan
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Feature, Input, Report


def check_names(
    report: Report,
    plan: Plan | None,
    contract: InputSchema | None,
    recipe: Recipe | None,
    model: ModelProto | None,
) -> list[Finding]:
    """Compare the files that could be read."""
    findings: list[Finding] = []
    if report.export.file != bundles.ONNX:
        findings.append(Finding(bundles.REPORT, "/export/file", f"is {report.export.file[:60]!r}"))
    if plan is not None:
        findings += [*_plan(report, plan), *_features(report, plan)]
    if recipe is not None:
        findings += _names_option(report, recipe)
    if plan is not None and recipe is not None:
        findings += _factory(plan, recipe)
    if model is not None:
        findings += [*_signature(report, model), *_metadata(report, plan, model)]
    if plan is not None and contract is not None and model is not None:
        findings += _input_schema(report, plan, contract, model)
    return findings


def _plan(report: Report, plan: Plan) -> Iterator[Finding]:
    stated = [(i.name, i.dtype, i.axis) for i in report.export.inputs]
    if [(p.name, p.dtype, p.axis) for p in plan.inputs] != stated:
        yield Finding(bundles.PLAN, "/inputs", "are not those of the report's export")
        return
    for n, (given, part) in enumerate(zip(report.export.inputs, plan.inputs, strict=True)):
        where = f"/inputs/{n}"
        if part.axis is None:
            if part.columns != given.columns:
                yield Finding(bundles.PLAN, f"{where}/columns", "are not those of the report's export")
            continue
        ascending = part.kept == sorted(set(part.kept))
        if not ascending or not part.kept or not 0 <= part.kept[0] <= part.kept[-1] < part.size:
            yield Finding(bundles.PLAN, f"{where}/kept", f"must be ascending positions below {part.size}")
        elif part.columns != _read(report, given, part):
            yield Finding(
                bundles.PLAN, f"{where}/columns", "are not those of the report's export, in its order"
            )
        total = sum(len(f.columns) for f in report.features if f.input == part.name)
        if total != part.size:
            yield Finding(
                bundles.PLAN, f"{where}/size", f"is {part.size}; the report's features have {total} columns"
            )


def _read(report: Report, given: Input, part: InputPlan) -> list[str] | None:
    """Return the columns of an input that the network reads, by the report; None if the plan differs."""
    if report.export.signature == "slim":
        return given.columns if len(given.columns) == len(part.kept) else None
    return [given.columns[k] for k in part.kept] if len(given.columns) == part.size else None


def _features(report: Report, plan: Plan) -> Iterator[Finding]:
    """Require that columns are read only of kept features, at the positions of the export."""
    parts = {p.name: p for p in plan.inputs}
    read = {p.name: set(p.columns) for p in plan.inputs}
    exported = {i.name: _first_positions(i.columns) for i in report.export.inputs}
    for n, feature in enumerate(report.features):
        where = f"/features/{n}"
        part, positions = parts.get(feature.input), exported.get(feature.input)
        if part is None or positions is None:
            yield Finding(bundles.REPORT, f"{where}/input", f"no input {feature.input!r} in plan or export")
            continue
        yield from _status(feature, part, read[part.name], where)
        if feature.input_columns is not None:
            found = [positions[c] for c in feature.columns if c in positions]
            if feature.input_columns != found:
                what = f"says {feature.input_columns}; the export has {feature.name!r} at {found}"
                yield Finding(bundles.REPORT, f"{where}/input_columns", what)


def _first_positions(columns: Sequence[str]) -> dict[str, int]:
    """Map each name to its first position."""
    return {name: n for n, name in reversed([*enumerate(columns)])}


def _status(feature: Feature, part: InputPlan, columns: set[str], where: str) -> Iterator[Finding]:
    """Compare the status of a feature with the columns that are read."""
    read = [c for c in feature.columns if c in columns]
    if feature.status == "removed" and read:
        what = f"{feature.name!r} is removed, but {read[0]!r} is read"
        yield Finding(bundles.REPORT, f"{where}/status", what)
    # an input whose features all became zero keeps one column, even if its feature had several
    if feature.status == "kept" and len(read) < len(feature.columns) and part.columns != read[:1]:
        missing = next(c for c in feature.columns if c not in read)
        yield Finding(
            bundles.REPORT, f"{where}/status", f"{feature.name!r} is kept, but {missing!r} is not read"
        )


def _names_option(report: Report, recipe: Recipe) -> Iterator[Finding]:
    if recipe.export.names not in ("auto", report.export.names):
        what = f"is {report.export.names!r}; {bundles.RECIPE} says {recipe.export.names!r}"
        yield Finding(bundles.REPORT, "/export/names", what)


def _factory(plan: Plan, recipe: Recipe) -> Iterator[Finding]:
    if (plan.factory, plan.arguments) != (recipe.model.factory, recipe.model.arguments):
        yield Finding(bundles.PLAN, "/factory", f"factory or arguments are not those of {bundles.RECIPE}")


def _signature(report: Report, model: ModelProto) -> Iterator[Finding]:
    found = [(i.name, dtype_of(i)) for i in model.graph.input]
    stated: list[tuple[str, str]] = [(i.name, i.dtype) for i in report.export.inputs]
    if found != stated:
        yield Finding(bundles.ONNX, "inputs", f"are {found}; the report says {stated}")
    outputs, named = [o.name for o in model.graph.output], [o.name for o in report.export.outputs]
    if outputs != named:
        yield Finding(bundles.ONNX, "outputs", f"are {outputs}; the report says {named}")


def _metadata(report: Report, plan: Plan | None, model: ModelProto) -> Iterator[Finding]:
    expected: dict[str, object] = {
        "glprune.version": report.run.versions.get("glprune"),
        "glprune.task": report.task,
        "glprune.signature": report.export.signature,
        "glprune.inputs": [_record(report, plan, given) for given in report.export.inputs],
        "glprune.classes": report.data.classes or [],
    }
    found = properties(model)
    for key in {*expected, *found} - {"glprune.output"}:
        value = _parsed(found.get(key), plain=not isinstance(expected.get(key), list))
        if key == "glprune.inputs" and plan is None:
            value = _without_positions(value)  # the positions are only in the plan
        if value != expected.get(key):
            yield Finding(
                bundles.ONNX, f"metadata {key[:60]}", f"is {_short(value)}, not {_short(expected.get(key))}"
            )
    meanings = [o.meaning for o in report.export.outputs]
    if found.get("glprune.output") not in meanings:
        yield Finding(
            bundles.ONNX, "metadata glprune.output", "is not the meaning of an output of the report"
        )


def _record(report: Report, plan: Plan | None, given: Input) -> dict[str, object]:
    """Build the expected metadata of an input: columns by name or digest, and those that are read."""
    record: dict[str, object] = {"name": given.name, "dtype": given.dtype, "axis": given.axis}
    if report.export.names == "digest":
        listed = json.dumps(given.columns, ensure_ascii=False, separators=(",", ":")).encode()
        return record | {"count": len(given.columns), "sha256": hashlib.sha256(listed).hexdigest()}
    record["columns"] = given.columns
    part = next((p for p in plan.inputs if p.name == given.name), None) if plan is not None else None
    if part is not None and report.export.signature == "original" and given.axis is not None:
        record["read"] = _ranges(part.kept)
    return record


def _ranges(positions: list[int]) -> str:
    """Format ascending positions like the metadata: first and last of each run."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def _without_positions(records: object) -> object:
    if not isinstance(records, list):
        return records
    return [{k: v for k, v in r.items() if k != "read"} if isinstance(r, dict) else r for r in records]


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


def _input_schema(report: Report, plan: Plan, contract: InputSchema, model: ModelProto) -> Iterator[Finding]:
    shapes, axes = input_shapes(model), [i.axis for i in report.export.inputs]
    fits = all(i.name in shapes and shapes[i.name] for i in report.export.inputs)
    if not fits or {i.name for i in report.export.inputs} - {p.name for p in plan.inputs}:
        yield Finding(bundles.INPUT_SCHEMA, "/inputs", "cannot be compared: the ONNX file lacks an input")
        return
    expected = make_input_schema(report, plan, shapes)
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
