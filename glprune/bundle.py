"""The bundle's files: their names, digests and strict JSON, written whole or not at all.

No PyTorch here: the auditor's commands read bundles without it. :mod:`glprune.reload` rebuilds the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from glprune.errors import UsageError

ONNX = "model.onnx"
WEIGHTS = "model.safetensors"
PLAN = "plan.json"
REPORT = "report.json"
PAGE = "report.html"
SUMMARY = "report.md"
RECIPE = "recipe.resolved.yaml"
SCHEMA = "report.schema.json"
CONTRACT = "input_schema.json"
GOLDEN = "golden.safetensors"
PROXIES = "proxy.json"
MANIFEST = "MANIFEST.json"
SIGNATURES = "signatures"

FILES = (ONNX, WEIGHTS, PLAN, REPORT, PAGE, SUMMARY, RECIPE, SCHEMA, CONTRACT, GOLDEN)
"""What every bundle holds beside its manifest and the signatures of it."""

OPTIONAL = (PROXIES,)
"""What a bundle may hold besides; once listed in the manifest it may be withheld."""

MADE_BEFORE_THE_REPORT = (ONNX, WEIGHTS, PLAN, RECIPE, GOLDEN)
"""The files whose digests the report states."""


def digest(path: Path) -> str:
    """SHA-256 of a file as ``sha256:<hex>``."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def as_json(value: object) -> str:
    """Strict, stable JSON: two-space indent, no NaN, final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write strict, stable JSON as UTF-8."""
    path.write_text(as_json(value), encoding="utf-8")


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that exists, before any work is done.

    Raises:
        UsageError: The folder exists and ``overwrite`` is not set, or it is not a bundle.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise UsageError(f"{folder} exists; choose another --out or pass --overwrite.")
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / REPORT).exists()):
        raise UsageError(f"{folder} is not a bundle (it holds no {REPORT}); it is not overwritten.")


@contextlib.contextmanager
def staged(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` and move it into place when the block ends well.

    Raises:
        UsageError: The place cannot be written to, or was taken meanwhile.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"{folder.parent}: cannot write here ({error.strerror}); choose another --out."
        ) from error
    try:
        stage.chmod(0o755)
        yield stage
        check_free(folder, overwrite)
        _replace(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(stage: Path, folder: Path) -> None:
    """Move ``stage`` to ``folder``; an older bundle is kept until the new one stands."""
    if not folder.exists():
        stage.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old / folder.name)
    try:
        stage.rename(folder)
    except OSError:
        (old / folder.name).rename(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
