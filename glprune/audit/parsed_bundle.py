"""Read and parse the files of a bundle strictly; nothing in them is run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from onnx import ModelProto
from pydantic import BaseModel, ValidationError

from glprune._version import __version__
from glprune.audit.bundle_files import Files, read_files
from glprune.audit.findings import Finding, UnreadableError
from glprune.audit.onnx_reader import NotOnnxError, parse
from glprune.audit.safetensors_reader import Tensors, read_tensors
from glprune.errors import RecipeError
from glprune.schema import bundle as bundles
from glprune.schema.column_table import ColumnTable, column_tables
from glprune.schema.frontier import StoredFrontier
from glprune.schema.input_schema import InputSchema
from glprune.schema.manifest import Manifest
from glprune.schema.plan import Plan
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import ProxyAnalysis, Report, report_schema
from glprune.schema.strict_json import StrictError, read_json

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

_MAX_LISTED_ERRORS = 1000
_SCHEMA_IDS = {bundles.REPORT: "glprune.report/2", bundles.INPUT_SCHEMA: "glprune.input/2"}
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass
class ParsedBundle:
    """The parsed files of a bundle; None where a file is missing or cannot be read.

    Attributes:
        files: The raw bytes.
        begin: Called with the name of each file before it is parsed.
        findings: Why files could not be read.
    """

    files: Files
    begin: Callable[[str], None] = lambda name: None
    findings: list[Finding] = field(default_factory=list)
    manifest: Manifest | None = None
    report: Report | None = None
    plan: Plan | None = None
    input_schema: InputSchema | None = None
    proxies: ProxyAnalysis | None = None
    frontier: StoredFrontier | None = None
    recipe: Recipe | None = None
    weights: Tensors | None = None
    model: ModelProto | None = None
    int8: ModelProto | None = None
    original: ModelProto | None = None

    @functools.cached_property
    def tables(self) -> list[ColumnTable]:
        """The columns of every input; none where the report cannot be read."""
        return column_tables(self.report, self.plan) if self.report is not None else []

    def raw(self, name: str) -> bytes | None:
        """Return the bytes of a file; None where it is missing."""
        return self.files.contents.get(name)


def open_bundle(folder: Path, begin: Callable[[str], None] = lambda name: None) -> ParsedBundle:
    """Read and parse a bundle strictly.

    Args:
        folder: The bundle.
        begin: Called with the name of each file before it is parsed.

    Raises:
        UnreadableError: The folder is not a bundle, or has a schema this version does not know.
    """
    opened = ParsedBundle(read_files(folder), begin)
    opened.manifest = _read_record(opened, bundles.MANIFEST, Manifest)
    opened.report = _read_record(opened, bundles.REPORT, Report)
    opened.plan = _read_record(opened, bundles.PLAN, Plan)
    opened.input_schema = _read_record(opened, bundles.INPUT_SCHEMA, InputSchema)
    opened.proxies = _read_record(opened, bundles.PROXIES, ProxyAnalysis)
    opened.frontier = _read_record(opened, bundles.FRONTIER, StoredFrontier)
    for name in filter(bundles.POINT_FILE.fullmatch, opened.files.contents):
        _read(opened, name, read_tensors)
    opened.recipe = _read(opened, bundles.RECIPE, _parse_recipe)
    opened.weights = _read(opened, bundles.WEIGHTS, read_tensors)
    opened.model = _read(opened, bundles.ONNX, parse)
    opened.int8 = _read(opened, bundles.INT8, parse)
    opened.original = _read(opened, bundles.ORIGINAL, parse)
    _check_written(opened)
    return opened


def read_report(folder: Path) -> Report:
    """Read the report of a bundle, for commands that need nothing else.

    Raises:
        UnreadableError: The folder is not a bundle, or its report cannot be read.
    """
    opened = open_bundle(folder)
    if opened.report is None:
        found = [*opened.files.findings, *opened.findings]
        reason = next((str(f) for f in found if f.file == bundles.REPORT), f"no {bundles.REPORT}")
        raise UnreadableError(f"{folder}: {reason}.")
    return opened.report


def _read(opened: ParsedBundle, name: str, reader: Callable[[bytes], T]) -> T | None:
    raw = opened.raw(name)
    if raw is None:
        return None
    opened.begin(name)
    try:
        return reader(raw)
    except (StrictError, NotOnnxError, RecipeError) as error:
        opened.findings.append(Finding(name, "", str(error)))
        return None


def _read_record(opened: ParsedBundle, name: str, record: type[M]) -> M | None:
    """Read a JSON file as a record; a file of an unknown schema ends the audit."""
    value = _read(opened, name, _read_object)
    if value is None:
        return None
    _check_schema_id(name, value)
    del value  # a large report takes a gigabyte, and the record as much again
    try:
        return record.model_validate_json(opened.raw(name) or b"", strict=True)
    except ValidationError as error:
        for where, what in _validation_errors(error):
            opened.findings.append(Finding(name, where, what))
        return None


def _read_object(raw: bytes) -> dict[str, Any]:
    value = read_json(raw)
    if not isinstance(value, dict):
        raise StrictError("is not a JSON object")
    return value


def _validation_errors(error: ValidationError) -> list[tuple[str, str]]:
    """Return place and message of the first errors; only their number if there are too many."""
    if error.error_count() > _MAX_LISTED_ERRORS:
        return [("", f"does not fit its schema in {error.error_count():,} places")]
    listed = error.errors(include_url=False, include_context=False, include_input=False)
    return [("".join(f"/{part}" for part in item["loc"]), item["msg"]) for item in listed[:5]]


def _check_schema_id(name: str, value: Mapping[str, Any]) -> None:
    """Refuse a file of an older or a newer schema.

    Raises:
        UnreadableError: Its schema has another number.
    """
    found = value.get("schema")
    known = _SCHEMA_IDS.get(name)
    if known is None or not isinstance(found, str) or found == known:
        return
    if found.startswith(known.rpartition("/")[0] + "/"):
        raise UnreadableError(f"{name} is of schema {found[:40]!r}; glprune {__version__} reads {known}.")


def _parse_recipe(raw: bytes) -> Recipe:
    with TemporaryDirectory() as folder:
        path = Path(folder) / bundles.RECIPE
        path.write_bytes(raw)
        try:
            return load_recipe(path)
        except RecipeError as error:
            raise StrictError(str(error).replace(f"{path}:", "line ").replace(str(path), "it")) from None


_published = functools.cache(report_schema)


def _check_written(opened: ParsedBundle) -> None:
    """Compare schema and recipe with what this version writes, where it wrote the bundle."""
    value = _read(opened, bundles.SCHEMA, _read_object)
    if opened.report is None or opened.report.run.versions.get("glprune") != __version__:
        return
    if value is not None and value != _published():
        opened.findings.append(Finding(bundles.SCHEMA, "", f"is not the schema of glprune {__version__}"))
    recipe, raw = opened.recipe, opened.raw(bundles.RECIPE)
    if recipe is not None and recipe.to_yaml().encode() != raw:
        what = f"is not the text that glprune {__version__} writes for these settings"
        opened.findings.append(Finding(bundles.RECIPE, "", what))
