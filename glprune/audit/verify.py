"""Run all checks on a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from securesystemslib.signer import SSlibKey

from glprune._wording import counted, shortened
from glprune.audit import signing
from glprune.audit.bundle_files import check_closed
from glprune.audit.checks.columns import check_columns, check_expected_columns, names_outside
from glprune.audit.checks.execution import Claims, Int8, OriginalFile, Removed, check_execution
from glprune.audit.checks.figures.consistency import check_consistency
from glprune.audit.checks.figures.frontier import check_points
from glprune.audit.checks.graph import ExpectedGraph, ExpectedInput, check_graph, control_flow, reaching
from glprune.audit.checks.hashes import check_digests, check_hashes, check_proxies
from glprune.audit.checks.int8 import check_int8
from glprune.audit.checks.lineage import Expected, check_lineage
from glprune.audit.checks.names import check_names
from glprune.audit.checks.policy import check_policy, protected_kept, readable_names
from glprune.audit.checks.rendering import check_rendering
from glprune.audit.checks.units import check_original_norms, check_units
from glprune.audit.checks.weights import check_readers, check_shared, check_weights
from glprune.audit.findings import NOT_CHECKED, Check, Finding, Verdict, make_check
from glprune.audit.isolation import verify_isolated
from glprune.audit.limits import SECONDS
from glprune.audit.onnx_reader import input_shapes
from glprune.audit.parsed_bundle import ParsedBundle, open_bundle
from glprune.audit.safetensors_reader import read_tensors
from glprune.audit.steps import Steps
from glprune.audit.trust.attestation import Attestation
from glprune.audit.trust.roles import Trust, check_people, check_trust
from glprune.audit.trust.timestamps import Authority, check_timestamp
from glprune.schema import bundle as bundles
from glprune.schema.column_names import lookalikes, spelled_out
from glprune.schema.column_table import ColumnTable
from glprune.schema.manifest import sha256
from glprune.schema.plan import Plan
from glprune.schema.report import Policy, Report
from glprune.schema.strict_json import StrictError

if TYPE_CHECKING:
    pass

_OTHER_POINTS = (
    "The other networks of the frontier: the producer measured their figures. `glprune select` makes a "
    "bundle of one, which can be verified."
)


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
    files = opened.files.contents
    found = check_consistency(report, opened.recipe, files)
    if opened.frontier is not None and opened.plan is not None:
        points = check_points(report, opened.frontier, files, standardize=opened.plan.standardize)
        found += [Finding(bundles.REPORT, where, what) for where, what in points]
    return make_check("C5", found, "every table of the report")


def _names(opened: ParsedBundle, report: Report, options: VerificationOptions) -> Check:
    tables = opened.tables
    found = check_columns(report, opened.plan, opened.recipe, tables)
    if not found:  # the rest follows from this list
        found = check_names(report, tables, opened.input_schema, opened.recipe, opened.model)
    note = counted(len(report.features), "feature")
    if options.columns is not None:
        expected, source = options.columns
        found += check_expected_columns(report, tables, expected, source)
        outside = [spelled_out(name) for name in names_outside(report, tables, expected)]
        note += f"; of {source} the network does not read {shortened(outside)}" if outside else ""
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
        if opened.original is not None:
            findings += check_original_norms(report, opened.plan, tables, opened.original)
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
    from_file = report.size.macs_of == "onnx"
    claims = Claims(_removed(opened, report), quantized, stated, from_file, _original_file(opened, report))
    return check_execution(model, golden, claims, seconds)


def _original_file(opened: ParsedBundle, report: Report) -> OriginalFile | None:
    """Return the file of the original network with the widths of its inputs; None where there is none."""
    raw, plan = opened.raw(bundles.ORIGINAL), opened.plan
    if raw is None or plan is None or opened.original is None or report.data.columns is None:
        return None
    widths = {part.name: (part.axis, part.size) for part in plan.inputs if part.axis is not None}
    return OriginalFile(raw, report.size.macs_before, widths)


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
