"""``MANIFEST.json``: every file of a bundle with its digest, as an in-toto Statement."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from glprune.schema import bundle as bundles

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:glprune:bundle:1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Digest(_Strict):
    """SHA-256 of a subject."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Subject(_Strict):
    """A file and its digest."""

    name: str
    digest: Digest


class Contents(_Strict):
    """The predicate of the statement: number and size of the files."""

    schema_: Literal["glprune.bundle/1"] = Field(alias="schema")
    files: int
    bytes: int
    closed: Literal[True] = Field(
        description="the bundle holds no files except these and the signatures of the manifest"
    )


class Manifest(_Strict):
    """The contents of ``MANIFEST.json``, an in-toto Statement v1."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Subject]
    predicate_type: Literal["urn:glprune:bundle:1"] = Field(alias="predicateType")
    predicate: Contents


def make_manifest(files: Mapping[str, bytes]) -> dict[str, object]:
    """Return the manifest of files, given by name."""
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256(raw)}} for name, raw in sorted(files.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "schema": "glprune.bundle/1",
            "files": len(files),
            "bytes": sum(map(len, files.values())),
            "closed": True,
        },
    }


def write_manifest(folder: Path) -> None:
    """Write the manifest of a bundle's files; signatures of an earlier manifest are not part of it."""
    names = [n for n in (*bundles.FILES, *bundles.OPTIONAL) if (folder / n).is_file()]
    names += bundles.point_files(folder)
    files = {name: (folder / name).read_bytes() for name in names}
    bundles.write_json(folder / bundles.MANIFEST, make_manifest(files))


def sha256(raw: bytes) -> str:
    """Return a SHA-256 in hex."""
    return hashlib.sha256(raw).hexdigest()
