"""Compute the figures of stability again from the digits of every resample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from glprune.audit.findings import Found, check_close, check_equal
from glprune.report.stability_index import Supports, false_bound, jaccard, nogueira, stable

if TYPE_CHECKING:
    from glprune.schema.report import Report, Stability

_MIN_FOR_INTERVAL, _MAX_RESAMPLES = 10, 10_000


def check_stability(report: Report) -> Iterator[Found]:
    """Check that the figures of stability follow from the digits."""
    record, features = report.stability, len(report.features)
    if record is None:
        for n, feature in enumerate(report.features):
            if feature.kept_in is not None or feature.kept_share is not None:
                yield f"/features/{n}/kept_in", "is given without resamples"
        return
    digits = [record.removable, *(r.kept for r in record.resamples)]
    if len(record.resamples) < 2 or any(len(d) != features for d in digits):
        yield "/stability/resamples", f"must be two or more, each with {features} digits"
        return
    if len(record.resamples) > _MAX_RESAMPLES:
        yield "/stability/resamples", f"are more than {_MAX_RESAMPLES:,}, the most that a recipe may ask for"
        return
    yield from _counts(report, record)
    yield from _indices(record)


def _counts(report: Report, record: Stability) -> Iterator[Found]:
    total = len(record.resamples)
    kept = sum(f.status == "kept" for f in report.features)
    if record.limit != kept:
        yield "/stability/limit", f"says {record.limit}, but {kept} features are kept"
    for n, feature in enumerate(report.features):
        removable = record.removable[n] == "1"
        found = sum(r.kept[n] == "1" for r in record.resamples) if removable else None
        yield from check_equal(f"/features/{n}/kept_in", feature.kept_in, found, "the digits give")
        share = None if found is None else found / total
        yield from check_equal(f"/features/{n}/kept_share", feature.kept_share, share, "the digits give")


def _indices(record: Stability) -> Iterator[Found]:
    removable = [digit == "1" for digit in record.removable]
    digits = "".join(r.kept for r in record.resamples).encode("ascii", errors="replace")
    shape = (len(record.resamples), len(removable))
    supports: Supports = (np.frombuffer(digits, dtype=np.uint8) == ord("1")).reshape(shape)[:, removable]
    if not any(removable):
        yield "/stability/removable", "no feature can be removed"
        return
    index = nogueira(supports)
    interval = index if len(record.resamples) >= _MIN_FOR_INTERVAL else None
    stated = record.nogueira_interval
    pairs: list[tuple[str, float | None, float | None]] = [
        ("stable", record.stable, stable(supports, record.threshold)),
        ("mean_kept", record.mean_kept, float(supports.sum(axis=1).mean())),
        ("jaccard", record.jaccard, jaccard(supports)),
        ("nogueira", record.nogueira, index.value if index else None),
        ("nogueira_interval/low", stated.low if stated else None, interval.low if interval else None),
        ("nogueira_interval/high", stated.high if stated else None, interval.high if interval else None),
        (
            "false_bound",
            record.false_bound,
            false_bound(supports, record.threshold) if record.pairs else None,
        ),
    ]
    for key, value, found in pairs:
        yield from check_close(f"/stability/{key}", value, found, "the digits give")
