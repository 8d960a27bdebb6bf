"""Compare the files of a bundle with their stated digests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glprune.audit.findings import Finding
from glprune.schema import bundle as bundles
from glprune.schema.manifest import (
    Manifest,
    sha256,
)

if TYPE_CHECKING:
    from glprune.schema.report import Proxies, ProxyAnalysis


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
    """Compare the files with the digests in the report, which states those of every model file."""
    findings = []
    present = {n for n in files if n in bundles.STATED_IF_PRESENT or bundles.POINT_FILE.fullmatch(n)}
    for name in sorted({*stated, *present, *bundles.MADE_BEFORE_THE_REPORT}):
        found = f"sha256:{sha256(files[name])}" if name in files else "no such file"
        if stated.get(name) != found:
            findings.append(
                Finding(bundles.REPORT, f"/digests/outputs/{name}", f"says {stated.get(name)}, found {found}")
            )
    return findings


def check_proxies(
    stated: Proxies | None, analysis: ProxyAnalysis | None, files: Mapping[str, bytes]
) -> list[Finding]:
    """Compare the proxy analysis with its digest in the report; it may be withheld."""
    raw = files.get(bundles.PROXIES)
    if raw is None:
        return []
    found = f"sha256:{sha256(raw)}"
    findings = []
    if stated is None or stated.digest != found:
        digest = stated.digest if stated else None
        findings.append(Finding(bundles.REPORT, "/proxies/digest", f"says {digest}, found {found}"))
    model = f"sha256:{sha256(files.get(bundles.ONNX, b''))}"
    if analysis is not None and analysis.model != model:
        findings.append(
            Finding(
                bundles.PROXIES,
                "/model",
                f"was made with the model {analysis.model}, which is not the one in the bundle",
            )
        )
    return findings
