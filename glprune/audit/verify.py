"""Run all checks on a bundle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from onnx import ModelProto
from pydantic import BaseModel, ValidationError
from securesystemslib.signer import SSlibKey

from glprune._version import __version__
from glprune._wording import counted
from glprune.audit import signing
from glprune.audit.bundle_files import Files, check_closed, read_files
from glprune.audit.checks.columns import check_columns, check_expected_columns
from glprune.audit.checks.execution import Claims, Int8, Removed, check_execution
from glprune.audit.checks.figures.consistency import check_consistency
from glprune.audit.checks.graph import ExpectedGraph, ExpectedInput, check_graph, control_flow, reaching
from glprune.audit.checks.hashes import check_digests, check_hashes, check_proxies
from glprune.audit.checks.int8 import check_int8
from glprune.audit.checks.lineage import Expected, check_lineage
from glprune.audit.checks.names import check_names
from glprune.audit.checks.policy import check_policy, protected_kept, readable_names
from glprune.audit.checks.rendering import check_rendering
from glprune.audit.checks.units import check_units
from glprune.audit.checks.weights import check_readers, check_shared, check_weights
from glprune.audit.findings import NOT_CHECKED, Check, Finding, UnreadableError, Verdict, make_check
from glprune.audit.isolation import verify_isolated
from glprune.audit.limits import SECONDS
from glprune.audit.onnx_reader import NotOnnxError, input_shapes, parse
from glprune.audit.safetensors_reader import Tensors, read_tensors
from glprune.audit.steps import Steps
from glprune.audit.trust.attestation import Attestation
from glprune.audit.trust.roles import Trust, check_people, check_trust
from glprune.audit.trust.timestamps import Authority, check_timestamp
from glprune.errors import RecipeError
from glprune.schema import bundle as bundles
from glprune.schema.column_names import lookalikes, spelled_out
from glprune.schema.column_table import ColumnTable, column_tables
from glprune.schema.frontier import StoredFrontier
from glprune.schema.input_schema import InputSchema
from glprune.schema.manifest import Manifest, sha256
from glprune.schema.plan import Plan
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Policy, ProxyAnalysis, Report, report_schema
from glprune.schema.strict_json import StrictError, read_json

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

_MAX_LISTED_ERRORS = 1000
_OTHER_POINTS = (
    "The other networks of the frontier: the producer measured their figures. `glprune select` makes a "
    "bundle of one, which can be verified."
)
_SCHEMA_IDS = {bundles.REPORT: "glprune.report/2", bundles.INPUT_SCHEMA: "glprune.input/2"}
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class VerificationOptions:
    """What the auditor brings along; none of it is read from the bundle.

    Attributes:
        trust: Trusted public keys.
        key_roles: Id of a trusted key -> the roles in which it counts; others count in any role.
        authority: Certificates of the time-stamping authority that the auditor trusts.
        roles: Roles whose countersignature is required.
        policy: The auditor's rules on features, and the file they come from.
        model: Expected digest of ``model.onnx``.
        original: Expected digest of the original model, or a signed statement on it.
        previous: Report of the previous bundle.
        columns: Columns of the trained network, in order, and the file they come from.
    """

    trust: Sequence[SSlibKey] = ()
    key_roles: Mapping[str, frozenset[str]] = field(default_factory=dict)
    authority: Authority | None = None
    roles: Sequence[str] = ()
    policy: tuple[Policy, str] | None = None
    model: str | None = None
    original: str | Attestation | None = None
    previous: Report | None = None
    columns: tuple[Sequence[str], str] | None = None

    @property
    def trusted(self) -> Trust:
        """The trusted keys with their roles."""
        return Trust(self.trust, self.key_roles)

    @property
    def expected(self) -> Expected:
        """What the models of the bundle are compared with."""
        return Expected(self.model, self.original, self.previous, self.trusted)


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
    _check_published_schema(opened)
    return opened


def integrity_findings(opened: ParsedBundle) -> list[Finding]:
    """Return the reasons not to sign or serve a bundle: files missing, changed or unreadable."""
    if opened.manifest is None:
        return opened.files.findings or opened.findings
    listed = [s.name for s in opened.manifest.subject]
    closed = check_closed(opened.files, listed)
    return [*opened.files.findings, *closed, *_hashes(opened).findings, *opened.findings]


def refusals(opened: ParsedBundle) -> list[Finding]:
    """Return the reasons not to run the models of a bundle: those not to sign it, or what C6 refuses."""
    found = integrity_findings(opened)
    if found or opened.report is None:
        return found or [Finding(bundles.REPORT, "", "cannot be read")]
    report = opened.report
    graph = Steps().run("C6", lambda: _graph(opened, report))
    incomplete = [Finding(bundles.ONNX, "", graph.note)] if graph.status == "incomplete" else []
    return [*graph.findings, *incomplete]


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


def _check_published_schema(opened: ParsedBundle) -> None:
    """Compare the schema in the bundle with the published one, where this version wrote the bundle."""
    value = _read(opened, bundles.SCHEMA, _read_object)
    same = opened.report is not None and opened.report.run.versions.get("glprune") == __version__
    if value is not None and same and value != _published():
        opened.findings.append(Finding(bundles.SCHEMA, "", f"is not the schema of glprune {__version__}"))


def verify(
    folder: Path,
    options: VerificationOptions | None = None,
    *,
    seconds: float = SECONDS,
    isolated: bool = True,
) -> Verdict:
    """Check from the files of a bundle alone what its report states.

    Args:
        folder: The bundle.
        options: What the auditor brings along.
        seconds: Time limit for running the model.
        isolated: Run the checks in processes with limits of time and memory; otherwise in this one, without.

    Raises:
        UnreadableError: The folder is not a bundle, or has a schema this version does not know.
    """
    options = options or VerificationOptions()
    if isolated:
        return verify_isolated(folder, options, seconds)
    return verify_steps(folder, options, Steps())


def verify_steps(folder: Path, options: VerificationOptions, steps: Steps) -> Verdict:
    """Run the checks in this process; the model in one of its own if it has a time limit.

    Args:
        folder: The bundle.
        options: What the auditor brings along.
        steps: Runs each check.

    Raises:
        UnreadableError: The folder is not a bundle, or has a schema this version does not know.
    """
    opened = open_bundle(folder, lambda name: steps.begin(f"C4 {name}"))
    signatures: list[signing.Signature] = []
    signed = "not checked"

    def trust() -> Check:
        nonlocal signatures, signed
        signatures, check, signed = _signatures(opened, options)
        return check

    checks = [
        steps.run("C1", lambda: _files(opened)),
        steps.run("C2", lambda: _hashes(opened)),
        steps.run("C3", trust),
        _formats(opened),
    ]
    report = opened.report
    if report is None:
        note = f"{bundles.REPORT} cannot be read"
        checks += [Check(f"C{n}", "incomplete", note=note) for n in range(5, 15)]
    else:
        checks += _report_checks(opened, report, signatures, options, steps)
    raw = opened.raw(bundles.ONNX)
    left_out = [check.left_out for check in checks] + _not_in_bundle(opened)
    not_checked = (*(sentence for sentence in left_out if sentence), *NOT_CHECKED)
    return Verdict(str(folder), signed, sha256(raw) if raw is not None else "", tuple(checks), not_checked)


def _report_checks(
    opened: ParsedBundle,
    report: Report,
    signatures: Sequence[signing.Signature],
    options: VerificationOptions,
    steps: Steps,
) -> list[Check]:
    """Run C5 to C14."""
    graph = steps.run("C6", lambda: _graph(opened, report))
    executed = steps.run_all(("C9", "C10"), lambda: _execution(opened, report, graph, steps.seconds))
    return [
        steps.run("C5", lambda: _consistency(opened, report)),
        graph,
        steps.run("C7", lambda: _names(opened, report, options)),
        steps.run("C8", lambda: _weights(opened, report)),
        *executed,
        steps.run("C11", lambda: _policy(opened, report, options)),
        steps.run("C12", lambda: _rendering(opened, report)),
        steps.run("C13", lambda: _people(opened, report, signatures, options)),
        steps.run("C14", lambda: check_lineage(report, options.expected, signatures)),
    ]


def _not_in_bundle(opened: ParsedBundle) -> list[str]:
    """Return sentences on figures whose source is not in the bundle."""
    if opened.report is None:
        return []
    frontier = _OTHER_POINTS if opened.report.frontier is not None else ""
    return [_withheld(opened, opened.report), frontier]


def _files(opened: ParsedBundle) -> Check:
    files = opened.files
    listed = [s.name for s in opened.manifest.subject] if opened.manifest else []
    closed = check_closed(files, listed) if opened.manifest else []
    return make_check("C1", [*files.findings, *closed], f"{len(files.contents)} files")


def _formats(opened: ParsedBundle) -> Check:
    note = "strict JSON, report, plan, input schema, recipe, weights"
    return make_check("C4", opened.findings, note)


def _people(
    opened: ParsedBundle,
    report: Report,
    signatures: Sequence[signing.Signature],
    options: VerificationOptions,
) -> Check:
    generated, manifest = report.timing.generated_at, opened.raw(bundles.MANIFEST) or b""
    raw = opened.files.signatures.get(bundles.TIMESTAMP)
    stamp = check_timestamp(raw, manifest, options.authority, generated)
    return check_people(signatures, options.trusted, generated, stamp)


def _consistency(opened: ParsedBundle, report: Report) -> Check:
    found = check_consistency(report, opened.recipe, opened.files.contents)
    return make_check("C5", found, "every table of the report")


def _names(opened: ParsedBundle, report: Report, options: VerificationOptions) -> Check:
    tables = opened.tables
    found = check_columns(report, opened.plan, opened.recipe, tables)
    if not found:  # the rest follows from this list
        found = check_names(report, tables, opened.input_schema, opened.recipe, opened.model)
    if options.columns is not None:
        found += check_expected_columns(report, tables, *options.columns)
    note = counted(len(report.features), "feature")
    if not found and report.data.columns is None:
        note = "the report, of glprune 0.2.0, does not state the order of the columns"
        return Check("C7", "incomplete", note=note)
    alike = lookalikes(name for table in tables for name in (table.name, *table.columns))
    pairs = [f"{spelled_out(a)} and {spelled_out(b)}" for a, b in alike[:4]]
    return make_check("C7", found, f"{note}; look alike: {'; '.join(pairs)}" if pairs else note)


def _hashes(opened: ParsedBundle) -> Check:
    if opened.manifest is None:
        return Check("C2", "incomplete", note=f"{bundles.MANIFEST} cannot be read")
    findings = check_hashes(opened.manifest, opened.files.contents)
    if opened.report is not None:
        findings += check_digests(opened.report.digests.outputs, opened.files.contents)
        findings += check_proxies(opened.report.proxies, opened.proxies, opened.files.contents)
    return make_check("C2", findings, f"{len(opened.manifest.subject)} SHA-256")


def _signatures(
    opened: ParsedBundle, options: VerificationOptions
) -> tuple[list[signing.Signature], Check, str]:
    """Return the signatures, C3, and a description of who signed."""
    files, manifest = opened.files.signatures, opened.raw(bundles.MANIFEST) or b""
    found, findings = signing.read_signatures(files, manifest, options.trust)
    if options.trust or options.roles:
        findings += check_trust(found, options.trusted, options.roles)
    names = options.trusted.signers(found)
    state = f"signed by {', '.join(names)}" if names else "signed, not checked" if files else "unsigned"
    if options.trust and files and not names:
        state = "signed by no trusted key"
    if findings or options.trust:
        return found, make_check("C3", findings, state), state
    if files:
        return found, Check("C3", "incomplete", note="signed; name the trusted keys with --trust"), state
    return found, Check("C3", "skipped", note="unsigned"), state


def _graph(opened: ParsedBundle, report: Report) -> Check:
    raw, model = opened.raw(bundles.ONNX), opened.model
    if raw is None or model is None or opened.plan is None:
        return Check("C6", "incomplete", note=f"{bundles.ONNX} or {bundles.PLAN} cannot be read")
    outputs = [o.name for o in report.export.outputs]
    tables = opened.tables
    expected = ExpectedGraph(_expected_inputs(tables), outputs, report.export.opset)
    findings = check_graph(model, raw, expected)
    if opened.int8 is not None and report.quantized is not None:
        int8 = opened.raw(bundles.INT8) or b""
        findings += check_graph(opened.int8, int8, expected, bundles.INT8)
        if not findings:  # nodes have the inputs of their operators
            findings += check_int8(report.quantized, opened.int8, model)
    if opened.original is not None:
        original = opened.raw(bundles.ORIGINAL) or b""
        findings += check_graph(opened.original, original, _original(expected, opened.plan), bundles.ORIGINAL)
    reach = sorted(set().union(*reaching(model.graph).values())) if not findings else []
    columns = sum(len(t.kept) for t in tables if t.axis is not None)
    total = sum(len(t.columns) for t in tables if t.axis is not None)
    note = f"{len(model.graph.node)} nodes; inputs that reach an output: {', '.join(reach)}"
    note += f"; {columns} of {total} columns" if total else ""
    flow = control_flow(model)
    return make_check("C6", findings, f"{note}; control flow: {', '.join(flow)}" if flow else note)


def _expected_inputs(tables: Sequence[ColumnTable]) -> list[ExpectedInput]:
    """Derive the inputs of the file: widths and kept columns."""
    return [
        ExpectedInput(
            table.name,
            table.axis,
            len(table.exported),
            table.kept if table.whole and table.axis is not None else None,
        )
        for table in tables
    ]


def _original(shipped: ExpectedGraph, plan: Plan) -> ExpectedGraph:
    """Derive the interface of the original's file: all columns of every input."""
    sizes = {part.name: part.size for part in plan.inputs}
    inputs = [
        replace(given, width=sizes.get(given.name, given.width), selects=None) for given in shipped.inputs
    ]
    return replace(shipped, inputs=inputs)


def _weights(opened: ParsedBundle, report: Report) -> Check:
    if opened.plan is None or opened.weights is None:
        return Check("C8", "incomplete", note=f"{bundles.WEIGHTS} or {bundles.PLAN} cannot be read")
    findings = check_weights(report, opened.plan, opened.weights)
    if opened.plan.units or report.data.columns is not None:
        tables = opened.tables
        findings += check_units(report, opened.plan, opened.weights, tables)
    if opened.model is not None:
        findings += check_shared(opened.plan, opened.weights, opened.model)
        findings += check_readers(opened.plan, opened.weights, opened.model)
    shared, total = len(opened.plan.in_model), len(opened.weights.arrays)
    return make_check("C8", findings, f"{shared} of {total} tensors are in {bundles.ONNX} bit for bit")


def _execution(opened: ParsedBundle, report: Report, graph: Check, seconds: float | None) -> list[Check]:
    """Run C9 and C10; a model whose graph failed C6 is not run."""
    model, golden = opened.raw(bundles.ONNX), opened.raw(bundles.GOLDEN)
    if graph.status != "passed" or model is None or golden is None or opened.model is None:
        note = "not run: its graph failed C6" if graph.status == "failed" else "a file cannot be read"
        return [Check(c, "incomplete", note=note) for c in ("C9", "C10")]
    try:
        read_tensors(golden)
    except StrictError as error:
        failed = make_check("C9", [Finding(bundles.GOLDEN, "", str(error))])
        return [failed, Check("C10", "incomplete", note="needs the golden rows")]
    int8 = opened.raw(bundles.INT8)
    quantized = Int8(int8, report.quantized.golden_difference) if int8 and report.quantized else None
    stated = report.size.macs_after if report.data.columns is not None else None
    claims = Claims(_removed(opened, report), quantized, stated, report.size.macs_of == "onnx")
    return check_execution(model, golden, claims, seconds)


def _removed(opened: ParsedBundle, report: Report) -> list[Removed]:
    """Return the columns that the file accepts and must not read."""
    if opened.model is None:
        return []
    shapes = input_shapes(opened.model)
    found = []
    for table in opened.tables:
        shape = shapes.get(table.name, [])
        if table.axis is None or not table.whole or not -len(shape) <= table.axis < len(shape):
            continue  # C6 compares the width of the file
        removed = tuple(sorted({*range(len(table.columns))} - {*table.kept}))
        if removed and shape[table.axis] == len(table.columns):
            found.append(Removed(table.name, table.axis % len(shape), removed))
    return found


def _policy(opened: ParsedBundle, report: Report, options: VerificationOptions) -> Check:
    """Run C11 with the rules of the bundle and of the auditor."""
    rules = [(report.policy, bundles.REPORT)] if report.policy is not None else []
    rules += [options.policy] if options.policy is not None else []
    if not rules:
        return Check("C11", "skipped", note="no rules in the bundle, none given with --policy")
    names = readable_names(report, opened.tables, opened.recipe)
    findings = [f for policy, source in rules for f in check_policy(names, policy, source)]
    kept = sorted({name for policy, _ in rules for name in protected_kept(names, policy)})
    note = f"rules of {' and '.join(source for _, source in rules)}"
    return make_check("C11", findings, f"{note}; protected and kept: {', '.join(kept)}" if kept else note)


def _withheld(opened: ParsedBundle, report: Report) -> str:
    """Say that the proxy analysis was made and is not in the bundle; nothing otherwise."""
    made = report.proxies is not None and report.proxies.performed
    if not made or opened.raw(bundles.PROXIES) is not None:
        return ""
    return f"{bundles.PROXIES}, the proxy analysis: it was made and is withheld."


def _rendering(opened: ParsedBundle, report: Report) -> Check:
    raw, summary = opened.raw(bundles.PAGE), opened.raw(bundles.SUMMARY)
    if raw is None or summary is None:
        missing = bundles.PAGE if raw is None else bundles.SUMMARY
        return Check("C12", "incomplete", note=f"no {missing}")
    return check_rendering(report, raw, summary)
