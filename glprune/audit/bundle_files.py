"""Read the files of a bundle once, as bytes, so that the parsed bytes are the hashed ones."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from glprune.audit.findings import Finding, UnreadableError
from glprune.schema import bundle as bundles

_SIGNATURE = re.compile(rf"[a-z0-9][a-z0-9-]{{0,39}}\.dsse\.json|{re.escape(bundles.TIMESTAMP)}")
_MEGABYTE = 1 << 20
# in MiB: recipe and manifest are short, a model can be as large as a protobuf
_SIZE_LIMITS = dict.fromkeys((bundles.ONNX, bundles.INT8, bundles.ORIGINAL, bundles.WEIGHTS), 2048)
_SIZE_LIMITS |= {bundles.RECIPE: 1, bundles.MANIFEST: 1}
_DEFAULT_LIMIT = 64
_SIGNATURE_LIMIT = 4
_MAX_ENTRIES = 64
_FOLDERS = (bundles.SIGNATURES, bundles.POINTS)


@dataclass(frozen=True)
class Files:
    """The files of a bundle.

    Attributes:
        folder: The folder.
        contents: File name -> bytes; files that cannot be read safely are left out.
        signatures: File name in ``signatures/`` -> bytes; signatures, and the timestamp of the manifest.
        findings: Errors of the folder itself.
    """

    folder: Path
    contents: dict[str, bytes]
    signatures: dict[str, bytes]
    findings: list[Finding]


def read_files(folder: Path) -> Files:
    """Read all files of a bundle.

    Raises:
        UnreadableError: The path is not a folder, cannot be read, or has neither manifest nor report.
    """
    files = Files(folder, {}, {}, [])
    try:
        mode = os.lstat(folder).st_mode
        if stat.S_ISLNK(mode) and folder.is_dir():
            mode = os.stat(folder).st_mode  # the auditor may pass a link to a bundle
        if not stat.S_ISDIR(mode):
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
        if bundles.REPORT in files.contents and not (files.folder / bundles.INPUT_SCHEMA).exists():
            raise UnreadableError(
                f"{folder}: was written before bundles had a {bundles.MANIFEST}; run glprune again."
            )
        files.findings.append(Finding(bundles.MANIFEST, "", "is missing or was not read"))
    return files


def _read_level(folder: Path, prefix: str, files: Files) -> None:
    known = {*bundles.FILES, *bundles.OPTIONAL, bundles.MANIFEST, *_FOLDERS}
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda e: (e.name not in known, e.name))
    for entry in found[:_MAX_ENTRIES]:
        _read_entry(entry, prefix + entry.name, prefix, files)
    if len(found) > _MAX_ENTRIES:
        files.findings.append(
            Finding(prefix or ".", "", f"{len(found)} entries; at most {_MAX_ENTRIES} are read")
        )


def _read_entry(entry: os.DirEntry[str], name: str, prefix: str, files: Files) -> None:
    info = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(info.st_mode):
        files.findings.append(Finding(name, "", "is a symbolic link"))
    elif stat.S_ISDIR(info.st_mode):
        if name in _FOLDERS and not prefix:
            _read_level(Path(entry.path), f"{name}/", files)
        else:
            allowed = " and ".join(f"{folder}/" for folder in _FOLDERS)
            files.findings.append(Finding(name, "", f"is a folder; a bundle has only the folders {allowed}"))
    elif not stat.S_ISREG(info.st_mode):
        files.findings.append(Finding(name, "", "is not a plain file"))
    elif info.st_size > _limit(name) * _MEGABYTE:
        files.findings.append(
            Finding(name, "", f"has {info.st_size:,} bytes; at most {_limit(name)} MiB are read")
        )
    elif _is_signature(name) and not _SIGNATURE.fullmatch(entry.name):
        files.findings.append(
            Finding(name, "", f"is not named like a signature, <role>.dsse.json or {bundles.TIMESTAMP}")
        )
    elif prefix and not _is_signature(name) and not bundles.POINT_FILE.fullmatch(name):
        files.findings.append(Finding(name, "", "is not named like a point, <size>.safetensors"))
    elif _is_signature(name):
        files.signatures[entry.name] = _read(entry.path, info.st_size)
    else:
        files.contents[name] = _read(entry.path, info.st_size)


def _is_signature(name: str) -> bool:
    return name.startswith(f"{bundles.SIGNATURES}/")


def _limit(name: str) -> int:
    if bundles.POINT_FILE.fullmatch(name):
        return _SIZE_LIMITS[bundles.WEIGHTS]
    return _SIGNATURE_LIMIT if _is_signature(name) else _SIZE_LIMITS.get(name, _DEFAULT_LIMIT)


def _read(path: str, size: int) -> bytes:
    """Read at most ``size + 1`` bytes, and never through a link created in the meantime."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(size + 1)


def check_closed(files: Files, listed: list[str]) -> list[Finding]:
    """Compare the folder with the list of the manifest: no file may be added, unknown or missing.

    Optional files may be withheld; the manifest still has their digest.
    """
    known = {*bundles.FILES, *bundles.OPTIONAL}
    present = set(files.contents) - {bundles.MANIFEST}
    reported = {f.file for f in files.findings}
    findings = [
        Finding(name, "", "is in the folder and not in the manifest")
        for name in sorted(present - set(listed))
    ]
    findings += [
        Finding(bundles.MANIFEST, f"/subject/{n}", f"{name[:80]!r} is not in the folder")
        for n, name in enumerate(listed)
        if name not in present and name not in reported and name not in bundles.OPTIONAL
    ]
    findings += [
        Finding(bundles.MANIFEST, f"/subject/{n}", f"{name[:80]!r} is listed twice")
        for n, name in enumerate(listed)
        if name in listed[:n]
    ]
    findings += [
        Finding(name[:80], "", "is not a file of a bundle")
        for name in sorted({*listed} - known)
        if not bundles.POINT_FILE.fullmatch(name)
    ]
    findings += [
        Finding(name, "", "is missing from the manifest") for name in bundles.FILES if name not in listed
    ]
    return findings
