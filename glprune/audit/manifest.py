"""The manifest: every file of a bundle with its digest, as an in-toto Statement."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from glprune import bundle as bundles
from glprune.audit.findings import Finding
from glprune.report import Proxies, ProxyAnalysis

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
    """What the statement says of its subjects."""

    schema_: Literal["glprune.bundle/1"] = Field(alias="schema")
    files: int
    bytes: int
    closed: Literal[True] = Field(description="the bundle holds no file but these and signatures of them")


class Manifest(_Strict):
    """All of ``MANIFEST.json``, an in-toto Statement v1."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Subject]
    predicate_type: Literal["urn:glprune:bundle:1"] = Field(alias="predicateType")
    predicate: Contents


def make_manifest(files: Mapping[str, bytes]) -> dict[str, object]:
    """The manifest of some files, by name."""
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
    """Write the manifest of a bundle's files; signatures of an older one do not belong to it."""
    names = [n for n in (*bundles.FILES, *bundles.OPTIONAL) if (folder / n).is_file()]
    files = {name: (folder / name).read_bytes() for name in names}
    bundles.write_json(folder / bundles.MANIFEST, make_manifest(files))


def sha256(raw: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(raw).hexdigest()


def check_hashes(manifest: Manifest, files: Mapping[str, bytes]) -> list[Finding]:
    """Compare every file with the manifest."""
    findings = []
    for number, subject in enumerate(manifest.subject):
        if subject.name in files and sha256(files[subject.name]) != subject.digest.sha256:
            findings.append(
                Finding(subject.name, "", f"its SHA-256 is not the one of /subject/{number} in the manifest")
            )
    withheld = any(s.name in bundles.OPTIONAL and s.name not in files for s in manifest.subject)
    total = sum(len(files[s.name]) for s in manifest.subject if s.name in files)
    if manifest.predicate.files != len(manifest.subject):
        findings.append(
            Finding(
                bundles.MANIFEST,
                "/predicate/files",
                f"says {manifest.predicate.files}, lists {len(manifest.subject)}",
            )
        )
    if manifest.predicate.bytes != total and not withheld:
        findings.append(
            Finding(bundles.MANIFEST, "/predicate/bytes", f"says {manifest.predicate.bytes}, found {total}")
        )
    return findings


def check_digests(stated: Mapping[str, str], files: Mapping[str, bytes]) -> list[Finding]:
    """Compare the files with the digests the report states of them."""
    findings = []
    for name in sorted({*stated, *bundles.MADE_BEFORE_THE_REPORT}):
        found = f"sha256:{sha256(files[name])}" if name in files else "no such file"
        if stated.get(name) != found:
            findings.append(
                Finding(bundles.REPORT, f"/digests/outputs/{name}", f"says {stated.get(name)}, found {found}")
            )
    return findings


def check_proxies(
    stated: Proxies | None, analysis: ProxyAnalysis | None, files: Mapping[str, bytes]
) -> list[Finding]:
    """Compare the proxy analysis with what the report says of it; it may be withheld."""
    raw = files.get(bundles.PROXIES)
    if raw is None:
        return []
    found = f"sha256:{sha256(raw)}"
    findings = []
    if stated is None or stated.digest != found:
        said = stated.digest if stated else None
        findings.append(Finding(bundles.REPORT, "/proxies/digest", f"says {said}, found {found}"))
    model = f"sha256:{sha256(files.get(bundles.ONNX, b''))}"
    if analysis is not None and analysis.model != model:
        findings.append(
            Finding(bundles.PROXIES, "/model", f"is of the model {analysis.model}, which is not the one here")
        )
    return findings
