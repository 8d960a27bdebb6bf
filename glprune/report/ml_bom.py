"""Render a report as a machine-learning bill of materials in CycloneDX 1.6.

References:
    ECMA-424, CycloneDX Bill of Materials Specification, 1st edition (June 2024): version 1.6 of the format.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from glprune.report.model_card import TASKS
from glprune.schema import bundle as bundles
from glprune.schema.metrics import label

if TYPE_CHECKING:
    from glprune.schema.report import Metric, PairedIntervals, Report

Json = dict[str, Any]
_MODEL = "model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def make_ml_bom(report: Report) -> Json:
    """Return the bill of materials of a report's model, as JSON values; the same report gives the same one.

    Args:
        report: The records.

    Raises:
        ValueError: The time of the report is not one.
    """
    parts = [*_data(report), *_other_files(report), *_libraries(report)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, report.model_dump_json()).urn,
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromisoformat(report.timing.generated_at).isoformat(),
            "tools": {"components": [_package("application", "glprune", report.run.versions["glprune"])]},
            "component": _model(report),
        },
        "components": parts,
        "dependencies": [{"ref": _MODEL, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _model(report: Report) -> Json:
    digest = report.digests.outputs[report.export.file]
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": report.title,
        "version": digest.removeprefix("sha256:")[:12],
        "hashes": _hashes(digest),
        "pedigree": {"ancestors": [_original(report)], "notes": _change(report)},
        "modelCard": {
            "modelParameters": _parameters(report),
            "quantitativeAnalysis": {"performanceMetrics": [*_metrics(report), *_segments(report)]},
            "considerations": _considerations(report),
            "properties": _features(report),
        },
    }


def _original(report: Report) -> Json:
    """Describe the network before pruning, with its metrics on the same rows."""
    metrics = [_measured(m.name, m.original, _rows(m), m.intervals, "original") for m in report.performance]
    return {
        "type": "machine-learning-model",
        "bom-ref": "original-model",
        "name": f"{report.title}, original",
        "hashes": _hashes(report.digests.model),
        "modelCard": {"quantitativeAnalysis": {"performanceMetrics": metrics}},
    }


def _change(report: Report) -> str:
    kept = sum(f.status == "kept" for f in report.features)
    before, after = report.size.parameters_before, report.size.parameters_after
    return (
        f"Pruned by glprune: {kept:,} of {len(report.features):,} input features and {after:,} of {before:,} "
        "parameters are left."
    )


def _parameters(report: Report) -> Json:
    approach = {} if report.task == "distillation" else {"approach": {"type": "supervised"}}
    return {
        **approach,
        "task": TASKS[report.task],
        "datasets": [{"ref": part["bom-ref"]} for part in _data(report)],
        "inputs": [{"format": f"{i.name}: {i.dtype}"} for i in report.export.inputs],
        "outputs": [{"format": f"{o.name}: {o.meaning}"} for o in report.export.outputs],
    }


def _metrics(report: Report) -> Iterator[Json]:
    for metric in report.performance:
        yield _measured(metric.name, metric.final, _rows(metric), metric.intervals, "final")


def _rows(metric: Metric) -> str:
    return f"test split, {metric.rows:,} rows"


def _segments(report: Report) -> Iterator[Json]:
    for attribute in report.segments.attributes if report.segments else ():
        for segment in attribute.segments:
            rows = f"{attribute.name} = {segment.value}, {segment.rows:,} rows of the test split"
            for metric in segment.metrics:
                if metric.final is not None:
                    yield _measured(metric.name, metric.final, rows, metric.intervals, "final")


def _measured(name: str, value: float, rows: str, intervals: PairedIntervals | None, network: str) -> Json:
    found = {"type": label(name), "value": repr(value), "slice": rows}
    interval = intervals.values.get(network) if intervals is not None else None
    if interval is None:
        return found
    bounds = {"lowerBound": repr(interval.low), "upperBound": repr(interval.high)}
    return {**found, "confidenceInterval": bounds}


def _considerations(report: Report) -> Json:
    found = {
        "useCases": [report.purpose] if report.purpose else [],
        "technicalLimitations": [*report.warnings, *report.not_measured],
    }
    return {key: values for key, values in found.items() if values}


def _features(report: Report) -> list[Json]:
    return [{"name": f"glprune:feature:{f.status}", "value": f.name} for f in report.features]


def _data(report: Report) -> list[Json]:
    splits = ", ".join(f"{name} {facts.rows:,} rows" for name, facts in report.data.splits.items())
    return [
        {
            "type": "data",
            "bom-ref": f"data:{name}",
            "name": name,
            "hashes": _hashes(digest),
            "data": [{"type": "dataset", "name": report.data.source, "description": f"Splits: {splits}"}],
        }
        for name, digest in report.digests.data.items()
    ]


def _other_files(report: Report) -> Iterator[Json]:
    """Yield the recipe, and the 8-bit file where there is one."""
    outputs = report.digests.outputs
    recipe = {"type": "configuration", "name": bundles.RECIPE}
    yield _file(bundles.RECIPE, outputs[bundles.RECIPE], "data") | {"data": [recipe]}
    if bundles.INT8 in outputs:
        yield _file(bundles.INT8, outputs[bundles.INT8], "machine-learning-model")


def _file(name: str, digest: str, kind: str) -> Json:
    return {"type": kind, "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(digest)}


def _libraries(report: Report) -> list[Json]:
    """Describe what the run used; the shipped file needs none of it."""
    return [
        _package("library", name, version) | {"bom-ref": f"library:{name}", "scope": "excluded"}
        for name, version in report.run.versions.items()
    ]


def _package(kind: str, name: str, version: str) -> Json:
    purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'), safe='')}@{quote(version, safe='')}"
    found = {"type": kind, "name": name, "version": version}
    return found if name == "python" else {**found, "purl": purl}


def _hashes(digest: str) -> list[Json]:
    found = _DIGEST.fullmatch(digest)
    return [{"alg": "SHA-256", "content": found[1]}] if found else []
