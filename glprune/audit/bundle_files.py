"""Read a bundle's files once, as bytes: what is hashed is what is parsed."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from glprune.audit.findings import Finding, UnreadableError
from glprune.schema import bundle as bundles

_SIGNATURE = re.compile(r"^[a-z0-9][a-z0-9-]{0,39}\.dsse\.json$")
_MEGABYTE = 1 << 20
# megabytes: the recipe and the manifest are short, the model as large as a protobuf can be
_LARGEST = dict.fromkeys((bundles.ONNX, bundles.INT8, bundles.WEIGHTS), 2048)
_LARGEST |= {bundles.RECIPE: 1, bundles.MANIFEST: 1}
_LARGE = 64
_LARGEST_SIGNATURE = 4
_MOST_ENTRIES = 64


@dataclass(frozen=True)
class Files:
    """The files of a bundle.

    Attributes:
        folder: Where they lie.
        contents: Name -> bytes; what cannot be read safely is left out.
        signatures: File name below ``signatures/`` -> bytes.
        findings: What is wrong with the folder itself.
    """

    folder: Path
    contents: dict[str, bytes]
    signatures: dict[str, bytes]
    findings: list[Finding]


def read_files(folder: Path) -> Files:
    """Read all files of a bundle.

    Raises:
        UnreadableError: It is no folder, cannot be read, or has neither manifest nor report.
    """
    files = Files(folder, {}, {}, [])
    try:
        kind = os.lstat(folder).st_mode
        if stat.S_ISLNK(kind) and folder.is_dir():
            kind = os.stat(folder).st_mode  # the auditor's own link to a bundle is theirs to make
        if not stat.S_ISDIR(kind):
            raise UnreadableError(f"{folder} is not a folder; name the folder that `glprune run` wrote.")
        _read_level(folder, "", files)
    except OSError as error:
        raise UnreadableError(f"{folder}: cannot be read ({error.strerror}).") from None
    except ValueError as error:  # such as a null byte in a path
        raise UnreadableError(f"{str(folder)[:80]!r}: cannot be read ({error}).") from None
    if not {bundles.MANIFEST, bundles.REPORT} & ({*files.contents} | {f.file for f in files.findings}):
        raise UnreadableError(
            f"{folder} holds neither {bundles.MANIFEST} nor {bundles.REPORT}: not a bundle."
        )
    if bundles.MANIFEST not in files.contents:
        if bundles.REPORT in files.contents and not (files.folder / bundles.CONTRACT).exists():
            raise UnreadableError(
                f"{folder}: written before bundles had a {bundles.MANIFEST}; run glprune anew."
            )
        files.findings.append(Finding(bundles.MANIFEST, "", "is missing or was not read"))
    return files


def _read_level(folder: Path, prefix: str, files: Files) -> None:
    known = {*bundles.FILES, *bundles.OPTIONAL, bundles.MANIFEST, bundles.SIGNATURES}
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda e: (e.name not in known, e.name))
    for entry in found[:_MOST_ENTRIES]:
        _read_entry(entry, prefix + entry.name, prefix, files)
    if len(found) > _MOST_ENTRIES:
        files.findings.append(
            Finding(prefix or ".", "", f"{len(found)} entries; at most {_MOST_ENTRIES} are read")
        )


def _read_entry(entry: os.DirEntry[str], name: str, prefix: str, files: Files) -> None:
    info = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(info.st_mode):
        files.findings.append(Finding(name, "", "is a symbolic link"))
    elif stat.S_ISDIR(info.st_mode):
        if name == bundles.SIGNATURES and not prefix:
            _read_level(Path(entry.path), f"{bundles.SIGNATURES}/", files)
        else:
            files.findings.append(Finding(name, "", "is a folder; a bundle has none but signatures/"))
    elif not stat.S_ISREG(info.st_mode):
        files.findings.append(Finding(name, "", "is not a plain file"))
    elif info.st_size > _limit(name, prefix) * _MEGABYTE:
        files.findings.append(
            Finding(name, "", f"has {info.st_size:,} bytes; at most {_limit(name, prefix)} MiB are read")
        )
    elif prefix and not _SIGNATURE.match(entry.name):
        files.findings.append(Finding(name, "", "is not named as a signature, <role>.dsse.json"))
    else:
        target = files.signatures if prefix else files.contents
        target[entry.name] = _read(entry.path, info.st_size)


def _limit(name: str, prefix: str) -> int:
    return _LARGEST_SIGNATURE if prefix else _LARGEST.get(name, _LARGE)


def _read(path: str, size: int) -> bytes:
    """Read at most ``size`` bytes and one, never through a link put there meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(size + 1)


def check_closed(files: Files, listed: list[str]) -> list[Finding]:
    """Hold the folder against the manifest's list: nothing more, nothing unknown, and nothing less.

    What is optional may be withheld: the manifest then still has its digest.
    """
    known = {*bundles.FILES, *bundles.OPTIONAL}
    present = set(files.contents) - {bundles.MANIFEST}
    told = {f.file for f in files.findings}
    findings = [
        Finding(name, "", "is in the folder and not in the manifest")
        for name in sorted(present - set(listed))
    ]
    findings += [
        Finding(bundles.MANIFEST, f"/subject/{n}", f"{name[:80]!r} is not in the folder")
        for n, name in enumerate(listed)
        if name not in present and name not in told and name not in bundles.OPTIONAL
    ]
    findings += [
        Finding(bundles.MANIFEST, f"/subject/{n}", f"{name[:80]!r} is listed twice")
        for n, name in enumerate(listed)
        if name in listed[:n]
    ]
    findings += [Finding(name[:80], "", "is no file of a bundle") for name in sorted({*listed} - known)]
    findings += [
        Finding(name, "", "is missing from the manifest") for name in bundles.FILES if name not in listed
    ]
    return findings
