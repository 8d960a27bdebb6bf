"""What the shipped ONNX file says of itself: its inputs and their columns, classes, task, output.

Its ``metadata_props`` hold plain text under ``glprune.version``, ``.task``, ``.signature`` and ``.output``,
and JSON without spaces under ``glprune.classes``, a list of labels, and ``glprune.inputs``, one record for
each input: ``name``, ``dtype``, ``axis`` and

- ``columns``, the names along that axis in order, and under the original signature ``read``, the positions
  of those the network reads as ranges such as ``0-3,7`` (without the key it reads all of them); or
- ``count``, the number of the names, and ``sha256``, the digest of their list as such JSON in UTF-8. The
  names themselves are in the bundle's report and contract.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from glprune._version import __version__
from glprune.export.signature import output_meaning, shipped_inputs

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.report import Input
    from glprune.search.job import Job

Names = Literal["all", "digest"]
_OFFERED: dict[str, tuple[Names, ...]] = {"auto": ("all", "digest"), "all": ("all",), "digest": ("digest",)}


def name_encodings(job: Job) -> tuple[Names, ...]:
    """How the file may give the names of its columns, the preferred way first."""
    return _OFFERED[job.recipe.export.names]


def file_metadata(job: Job, removed: RemovalResult, names: Names) -> dict[str, str]:
    """The metadata of the shipped file.

    Args:
        job: The job.
        removed: What was cut.
        names: Whether the names of columns are given, or their number and digest.
    """
    describe = _named if names == "all" else _digested
    picks = job.recipe.export.signature == "original"
    inputs = [
        describe(given, own.tolist() if picks and given.axis is not None else None)
        for given, own in zip(shipped_inputs(job, removed), removed.columns, strict=True)
    ]
    return {
        "glprune.version": __version__,
        "glprune.task": job.task.kind,
        "glprune.signature": job.recipe.export.signature,
        "glprune.inputs": _json(inputs),
        "glprune.classes": _json(list(job.data.classes or ())),
        "glprune.output": output_meaning(job),
    }


def _named(given: Input, read: Sequence[int] | None) -> dict[str, Any]:
    return given.model_dump() | ({} if read is None else {"read": ranges(read)})


def _digested(given: Input, read: Sequence[int] | None) -> dict[str, Any]:
    digest = hashlib.sha256(_json(given.columns).encode()).hexdigest()
    return given.model_dump(exclude={"columns"}) | {"count": len(given.columns), "sha256": digest}


def ranges(positions: Sequence[int]) -> str:
    """Ascending positions as ranges, first and last included: ``0-3,7``."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
