"""Describe the shipped ONNX file in its metadata: inputs and their columns, classes, task, output.

Its ``metadata_props`` hold plain text under ``glprune.version``, ``.task``, ``.signature`` and ``.output``,
and JSON without spaces under ``glprune.classes``, a list of labels, and ``glprune.inputs``, one record for
each input: ``name``, ``dtype``, ``axis`` and

- ``columns``, the names along that axis in order, and under the original signature ``read``, the positions
  of the columns that the network reads, as ranges such as ``0-3,7`` (without this key it reads all); or
- ``count``, the number of names, and ``sha256``, the digest of the list of names as JSON in UTF-8. The
  names themselves are in the bundle's report and in its input schema.
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
_ENCODINGS: dict[str, tuple[Names, ...]] = {"auto": ("all", "digest"), "all": ("all",), "digest": ("digest",)}


def name_encodings(job: Job) -> tuple[Names, ...]:
    """Return the ways the file may give the names of its columns, the preferred way first."""
    return _ENCODINGS[job.recipe.export.names]


def file_metadata(job: Job, removed: RemovalResult, names: Names) -> dict[str, str]:
    """Make the metadata of the shipped file.

    Args:
        job: The job.
        removed: What was removed.
        names: Whether the file gives the names of columns, or their number and digest.
    """
    describe = _with_names if names == "all" else _with_digest
    selects = job.recipe.export.signature == "original"
    inputs = [
        describe(entry, columns.tolist() if selects and entry.axis is not None else None)
        for entry, columns in zip(shipped_inputs(job, removed), removed.columns, strict=True)
    ]
    return {
        "glprune.version": __version__,
        "glprune.task": job.task.kind,
        "glprune.signature": job.recipe.export.signature,
        "glprune.inputs": _json(inputs),
        "glprune.classes": _json(list(job.data.classes or ())),
        "glprune.output": output_meaning(job),
    }


def _with_names(entry: Input, read: Sequence[int] | None) -> dict[str, Any]:
    return entry.model_dump() | ({} if read is None else {"read": ranges(read)})


def _with_digest(entry: Input, _: Sequence[int] | None) -> dict[str, Any]:
    digest = hashlib.sha256(_json(entry.columns).encode()).hexdigest()
    return entry.model_dump(exclude={"columns"}) | {"count": len(entry.columns), "sha256": digest}


def ranges(positions: Sequence[int]) -> str:
    """Write ascending positions as ranges, first and last included: ``0-3,7``."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
