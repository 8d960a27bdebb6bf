"""The files of a bundle: names, digests, and how JSON is written.

This module does not need PyTorch; ``glprune.export.slim_network`` rebuilds the network from a bundle.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

ONNX = "model.onnx"
INT8 = "model.int8.onnx"
ORIGINAL = "original.onnx"
WEIGHTS = "model.safetensors"
PLAN = "plan.json"
REPORT = "report.json"
PAGE = "report.html"
SUMMARY = "report.md"
RECIPE = "recipe.resolved.yaml"
SCHEMA = "report.schema.json"
INPUT_SCHEMA = "input_schema.json"
GOLDEN = "golden.safetensors"
PROXIES = "proxy.json"
FRONTIER = "frontier.json"
POINTS = "frontier"
MANIFEST = "MANIFEST.json"
SIGNATURES = "signatures"
TIMESTAMP = "manifest.tsr"
FILES = (ONNX, WEIGHTS, PLAN, REPORT, PAGE, SUMMARY, RECIPE, SCHEMA, INPUT_SCHEMA, GOLDEN)
"""The files of every bundle besides the manifest and its signatures."""
OPTIONAL = (PROXIES, INT8, ORIGINAL, FRONTIER)
"""Files that a bundle may hold in addition; a listed one may be withheld from an auditor.

Those of ``STATED_IF_PRESENT`` may not be withheld: the report states their digests among the outputs.
"""
POINT_FILE = re.compile(r"frontier/[1-9]\d{0,8}\.safetensors")
"""Names of the files with the points of a frontier, by size; their digests are among the outputs too."""
STATED_IF_PRESENT = (INT8, ORIGINAL, FRONTIER)
"""Optional files whose digests the report states, as it does for the points of a frontier."""
MADE_BEFORE_THE_REPORT = (ONNX, WEIGHTS, PLAN, RECIPE, GOLDEN)
"""The files whose digests the report states."""


def point_file(size: int) -> str:
    """Return the name of the file with the point of a frontier that has ``size`` features."""
    return f"{POINTS}/{size}.safetensors"


def point_files(folder: Path) -> list[str]:
    """Return the names of the files with points of a frontier in a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in (folder / POINTS).glob("*.safetensors"))


def size_limit(parameters: int) -> int:
    """Return the largest size of a model file in bytes: 4 for each parameter, plus 5 %, plus 4000."""
    return int(1.05 * 4 * parameters) + 4000


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as ``sha256:<hex>``."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def as_json(value: object) -> str:
    """Return a value as strict, reproducible JSON: two-space indent, no NaN, final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write a value as strict, reproducible JSON in UTF-8."""
    path.write_text(as_json(value), encoding="utf-8")
