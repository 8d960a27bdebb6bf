"""The bundle's files: their names, digests and strict JSON.

No PyTorch here: the auditor's commands read bundles without it. :mod:`glprune.export.slim_network` rebuilds the network.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ONNX = "model.onnx"
INT8 = "model.int8.onnx"
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
OPTIONAL = (PROXIES, INT8)
"""What a bundle may hold besides; once listed in the manifest it may be withheld.

The report states the digest of the 8-bit file among its outputs: that one is missed.
"""
MADE_BEFORE_THE_REPORT = (ONNX, WEIGHTS, PLAN, RECIPE, GOLDEN)
"""The files whose digests the report states."""


def size_limit(parameters: int) -> int:
    """Bytes a model file should not exceed: four for each parameter, 5 % of them, and 4 kB."""
    return int(1.05 * 4 * parameters) + 4000


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
