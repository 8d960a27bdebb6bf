"""Compare the reports of two bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.schema.report import Report


def compare(old: Report, new: Report) -> dict[str, Any]:
    """Return the differences of two reports: features, metrics, sizes, rules and origin of the models.

    Args:
        old: The earlier report.
        new: The later one.
    """
    before, after = _kept(old), _kept(new)
    known, listed = [f.name for f in old.features], [f.name for f in new.features]
    return {
        "features": {
            "gained": _without(after, before),
            "lost": _without(before, after),
            "new_in_data": _without(listed, known),
            "gone_from_data": _without(known, listed),
            "kept_by_both": len(set(before) & set(after)),
        },
        "metrics": _metrics(old, new),
        "size": {
            key: [getattr(old.size, key), getattr(new.size, key)]
            for key in ("parameters_after", "macs_after", "onnx_bytes_after")
        },
        "hidden": {
            layer.name: [next((h.after for h in old.hidden if h.name == layer.name), None), layer.after]
            for layer in new.hidden
        },
        "changed": {
            key: [a, b]
            for key, a, b in (
                ("task", old.task, new.task),
                ("signature", old.export.signature, new.export.signature),
                ("original model", old.digests.model, new.digests.model),
                ("shipped model", *(r.digests.outputs.get(bundles.ONNX) for r in (old, new))),
                ("recipe", old.digests.recipe_resolved, new.digests.recipe_resolved),
                ("data", old.digests.data, new.digests.data),
                ("policy", *(r.policy and r.policy.model_dump() for r in (old, new))),
                ("glprune", *(r.run.versions.get("glprune") for r in (old, new))),
            )
            if a != b
        },
        "warnings": {
            "new": _without(new.warnings, old.warnings),
            "gone": _without(old.warnings, new.warnings),
        },
    }


def _without(names: list[str], others: list[str]) -> list[str]:
    """Return the names that are not among the others."""
    taken = set(others)
    return [name for name in names if name not in taken]


def _kept(report: Report) -> list[str]:
    return [f.name for f in report.features if f.status == "kept"]


def _metrics(old: Report, new: Report) -> dict[str, dict[str, float | None]]:
    before = {m.name: m.final for m in old.performance}
    return {
        m.name: {
            "old": before.get(m.name),
            "new": m.final,
            "change": m.final - before[m.name] if m.name in before else None,
        }
        for m in new.performance
    }
