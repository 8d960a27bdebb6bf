"""Divide an auditor's rows by a protected attribute, into the segments of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from glprune._wording import number_texts
from glprune.audit.evaluation.rows import Division
from glprune.schema.report import VALUES
from glprune.tables.protected import Attribute, assigned

if TYPE_CHECKING:
    from glprune.schema.report import ProtectedAttribute

_SHOWN = 3  # values in a reason


def divided(attribute: Attribute, stated: ProtectedAttribute, *, is_test: bool = False) -> Division | str:
    """Return the rows divided by an attribute, or why they cannot be.

    Args:
        attribute: Its values.
        stated: Its segments in the report.
        is_test: Whether the rows are those of the report, each of which must be in a segment.
    """
    if stated.by != VALUES and stated.edges is None:
        return "the report does not state the ranges of its numbers"
    labels = tuple(segment.value for segment in stated.segments)
    division = Division(labels, assigned(attribute, labels, stated.edges))
    if is_test or (division.number >= 0).any():
        return division
    return f"no row has a value that the report has a segment for{_shown(attribute)}"


def _shown(attribute: Attribute) -> str:
    values = attribute.values["test"]
    if attribute.labels is not None:
        texts = [repr(attribute.labels[n]) for n in np.unique(values).tolist()]
    else:
        texts = [*number_texts(np.unique(values[np.isfinite(values)]).tolist())]
    if not texts:
        return " (all are empty)"
    more = ", ..." if len(texts) > _SHOWN else ""
    return f" (they hold {', '.join(texts[:_SHOWN])}{more})"
