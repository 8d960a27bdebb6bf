"""Run every check on a bundle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from onnx import ModelProto
from pydantic import BaseModel, ValidationError
from securesystemslib.signer import SSlibKey

from glprune._version import __version__
from glprune.audit import signing
from glprune.audit.bundle_files import Files, check_closed, read_files
from glprune.audit.checks import lineage
from glprune.audit.checks.consistency import check_consistency
from glprune.audit.checks.execution import Int8, Removed, check_execution
from glprune.audit.checks.graph import Expected, check_graph, control_flow, reaching
from glprune.audit.checks.hashes import check_digests, check_hashes, check_proxies
from glprune.audit.checks.int8 import check_int8
from glprune.audit.checks.names import check_names
from glprune.audit.checks.policy import check_policy, protected_kept
from glprune.audit.checks.rendering import check_rendering
from glprune.audit.checks.weights import check_shared, check_weights
from glprune.audit.findings import NOT_CHECKED, Check, Finding, UnreadableError, Verdict, make_check
from glprune.audit.onnx_reader import NotOnnxError, input_shapes, parse
from glprune.audit.safetensors_reader import Tensors, read_tensors
from glprune.errors import RecipeError
from glprune.schema import bundle as bundles
from glprune.schema.input_schema import InputSchema
from glprune.schema.manifest import Manifest, sha256
from glprune.schema.plan import Plan
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Policy, ProxyAnalysis, Report, report_schema
from glprune.schema.strict_json import StrictError, read_json

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

SECONDS = 300.0
_MOST_MISTAKES = 1000
_SCHEMA_IDS = {bundles.REPORT: "glprune.report/2", bundles.CONTRACT: "glprune.input/1"}
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class VerificationOptions:
    """What the auditor brings along; nothing of it is read from the bundle.

    Attributes:
        trust: Keys whose signatures count.
        roles: Roles that must have countersigned.
        policy: Rules of the auditor's own, and the file they are from.
        model: Digest ``model.onnx`` must have.
        original: Digest the original model must have.
        previous: A bundle this one follows.
    """

    trust: Sequence[SSlibKey] = ()
    roles: Sequence[str] = ()
    policy: tuple[Policy, str] | None = None
    model: str | None = None
    original: str | None = None
    previous: Report | None = None


@dataclass
class ParsedBundle:
    """The files of a bundle as far as they have one reading.

    Attributes:
        files: Their bytes.
        findings: Why others could not be read.
    """

    files: Files
    findings: list[Finding] = field(default_factory=list)
    manifest: Manifest | None = None
    report: Report | None = None
    plan: Plan | None = None
    contract: InputSchema | None = None
    proxies: ProxyAnalysis | None = None
    recipe: Recipe | None = None
    weights: Tensors | None = None
    model: ModelProto | None = None
    int8: ModelProto | None = None

    def raw(self, name: str) -> bytes | None:
        """The bytes of a file; None where it is not there."""
        return self.files.contents.get(name)


def open_bundle(folder: Path) -> ParsedBundle:
    """Read a bundle strictly.

    Raises:
        UnreadableError: It is no bundle, or of a schema this version does not know.
    """
    opened = ParsedBundle(read_files(folder))
    opened.manifest = _record(opened, bundles.MANIFEST, Manifest)
    opened.report = _record(opened, bundles.REPORT, Report)
    opened.plan = _record(opened, bundles.PLAN, Plan)
    opened.contract = _record(opened, bundles.CONTRACT, InputSchema)
    opened.proxies = _record(opened, bundles.PROXIES, ProxyAnalysis)
    opened.recipe = _read(opened, bundles.RECIPE, _recipe)
    opened.weights = _read(opened, bundles.WEIGHTS, read_tensors)
    opened.model = _read(opened, bundles.ONNX, parse)
    opened.int8 = _read(opened, bundles.INT8, parse)
    _schema(opened)
    return opened


def integrity_findings(opened: ParsedBundle) -> list[Finding]:
    """What stands against signing a bundle: files that are missing, changed or unreadable."""
    if opened.manifest is None:
        return opened.files.findings or opened.findings
    listed = [s.name for s in opened.manifest.subject]
    closed = check_closed(opened.files, listed)
    return [*opened.files.findings, *closed, *_hashes(opened).findings, *opened.findings]


def read_report(folder: Path) -> Report:
    """The report of a bundle, for commands that only read it.

    Raises:
        UnreadableError: It is no bundle, or its report has no reading.
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
    try:
        return reader(raw)
    except (StrictError, NotOnnxError, RecipeError) as error:
        opened.findings.append(Finding(name, "", str(error)))
        return None


def _record(opened: ParsedBundle, name: str, kind: type[M]) -> M | None:
    """Read a JSON file as a record; of an unknown schema nothing can be said."""
    value: Any = _read(opened, name, read_json)
    if value is None:
        return None
    _check_schema_id(name, value)
    del value  # of a large report a gigabyte, which the record would come on top of
    try:
        return kind.model_validate_json(opened.raw(name) or b"", strict=True)
    except ValidationError as error:
        for where, what in _mistakes(error):
            opened.findings.append(Finding(name, where, what))
        return None


def _mistakes(error: ValidationError) -> list[tuple[str, str]]:
    """Place and kind of the first mistakes; of too many to be listed, their number."""
    if error.error_count() > _MOST_MISTAKES:
        return [("", f"does not fit its schema in {error.error_count():,} places")]
    listed = error.errors(include_url=False, include_context=False, include_input=False)
    return [("".join(f"/{part}" for part in wrong["loc"]), wrong["msg"]) for wrong in listed[:5]]


def _check_schema_id(name: str, value: Any) -> None:
    """Refuse a file of an older or a newer schema.

    Raises:
        UnreadableError: Its schema has another number.
    """
    found = value.get("schema") if isinstance(value, dict) else None
    known = _SCHEMA_IDS.get(name)
    if known is None or not isinstance(found, str) or found == known:
        return
    if found.startswith(known.rpartition("/")[0] + "/"):
        raise UnreadableError(f"{name} is of schema {found[:40]!r}; glprune {__version__} reads {known}.")


def _recipe(raw: bytes) -> Recipe:
    with TemporaryDirectory() as folder:
        path = Path(folder) / bundles.RECIPE
        path.write_bytes(raw)
        try:
            return load_recipe(path)
        except RecipeError as error:
            raise StrictError(str(error).replace(f"{path}:", "line ").replace(str(path), "it")) from None


_published = functools.cache(report_schema)


def _schema(opened: ParsedBundle) -> None:
    """The shipped schema is the one this version publishes, where the same version wrote it."""
    value = _read(opened, bundles.SCHEMA, read_json)
    same = opened.report is not None and opened.report.run.versions.get("glprune") == __version__
    if value is not None and same and value != _published():
        opened.findings.append(Finding(bundles.SCHEMA, "", f"is not the schema of glprune {__version__}"))


def verify(
    folder: Path,
    demands: VerificationOptions | None = None,
    *,
    seconds: float = SECONDS,
    isolated: bool = True,
) -> Verdict:
    """Prove what a bundle's report says from its files alone, or say what does not hold.

    Args:
        folder: The bundle.
        demands: What the auditor brings along.
        seconds: Time limit for running the model.
        isolated: Run the model in a process of its own.

    Raises:
        UnreadableError: It is no bundle, or of a schema this version does not know.
    """
    demands = demands or VerificationOptions()
    opened = open_bundle(folder)
    files, report = opened.files, opened.report
    listed = [s.name for s in opened.manifest.subject] if opened.manifest else []
    closed = check_closed(files, listed) if opened.manifest else []
    checks = [make_check("C1", [*files.findings, *closed], f"{len(files.contents)} files")]
    checks.append(_hashes(opened))
    signatures, trusted, signed = _signatures(opened, demands)
    checks += [
        trusted,
        make_check("C4", opened.findings, "strict JSON, report, plan, contract, recipe, weights"),
    ]
    skipped: list[str | None] = []
    if report is None:
        checks += [
            Check(f"C{n}", "incomplete", note=f"{bundles.REPORT} has no reading") for n in range(5, 15)
        ]
    else:
        graph = _guarded("C6", lambda: _graph(opened, report))
        ran, unrun = _running(opened, report, graph, seconds, isolated)
        page, undrawn = _page(opened, report)
        checks += [
            _guarded("C5", lambda: _figures(opened, report)),
            graph,
            _guarded("C7", lambda: _names(opened, report)),
            _guarded("C8", lambda: _weights(opened, report)),
            *ran,
            _guarded("C11", lambda: _policy(report, demands)),
            page,
            make_check(
                "C13",
                signing.check_people(signatures, report.timing.generated_at),
                f"{len(signatures)} signatures",
            ),
            _lineage(report, demands),
        ]
        skipped += [unrun and f"A second runtime: {unrun}.", undrawn, _withheld(opened, report)]
    raw = opened.raw(bundles.ONNX)
    left = tuple(s for s in skipped if s)
    return Verdict(
        str(folder), signed, sha256(raw) if raw is not None else "", tuple(checks), (*left, *NOT_CHECKED)
    )


def _guarded(check: str, run: Callable[[], Check]) -> Check:
    """A report that contradicts itself may break any sum over it, which is a finding and no crash."""
    try:
        return run()
    except Exception as error:
        what = f"contradicts itself so far that the check cannot be made ({type(error).__name__}: {error})"
        return make_check(check, [Finding(bundles.REPORT, "", what[:300])])


def _figures(opened: ParsedBundle, report: Report) -> Check:
    found = check_consistency(report, opened.recipe, opened.files.contents)
    return make_check("C5", found, "every table of the report")


def _names(opened: ParsedBundle, report: Report) -> Check:
    found = check_names(report, opened.plan, opened.contract, opened.recipe, opened.model)
    return make_check("C7", found, f"{len(report.features)} features")


def _hashes(opened: ParsedBundle) -> Check:
    if opened.manifest is None:
        return Check("C2", "incomplete", note=f"{bundles.MANIFEST} has no reading")
    findings = check_hashes(opened.manifest, opened.files.contents)
    if opened.report is not None:
        findings += check_digests(opened.report.digests.outputs, opened.files.contents)
        findings += check_proxies(opened.report.proxies, opened.proxies, opened.files.contents)
    return make_check("C2", findings, f"{len(opened.manifest.subject)} SHA-256")


def _signatures(
    opened: ParsedBundle, demands: VerificationOptions
) -> tuple[list[signing.Signature], Check, str]:
    """The signatures, C3, and the state of them in words."""
    files, manifest = opened.files.signatures, opened.raw(bundles.MANIFEST) or b""
    found, findings = signing.read_signatures(files, manifest, demands.trust)
    if demands.trust or demands.roles:
        findings += signing.check_trust(found, demands.roles)
    names = [f"{s.role} ({', '.join(k[:12] for k in s.trusted)})" for s in found if s.trusted]
    state = f"signed by {', '.join(names)}" if names else "signed, not checked" if files else "unsigned"
    if demands.trust and files and not names:
        state = "signed by nobody trusted"
    if findings or demands.trust:
        return found, make_check("C3", findings, state), state
    if files:
        return found, Check("C3", "incomplete", note="signed; name the keys you trust with --trust"), state
    return found, Check("C3", "skipped", note="unsigned"), state


def _graph(opened: ParsedBundle, report: Report) -> Check:
    raw, model = opened.raw(bundles.ONNX), opened.model
    if raw is None or model is None or opened.plan is None:
        return Check("C6", "incomplete", note=f"{bundles.ONNX} or {bundles.PLAN} has no reading")
    outputs = [o.name for o in report.export.outputs]
    expected, opset = _expected(report, opened.plan), report.export.opset
    findings = check_graph(model, raw, expected, outputs, opset)
    if opened.int8 is not None and report.quantized is not None:
        own = opened.raw(bundles.INT8) or b""
        findings += check_graph(opened.int8, own, expected, outputs, opset, bundles.INT8)
        findings += check_int8(report.quantized, opened.int8, model)
    reach = sorted(set().union(*reaching(model.graph).values())) if not findings else []
    columns = sum(len(p.kept) for p in opened.plan.inputs if p.axis is not None)
    total = sum(p.size for p in opened.plan.inputs if p.axis is not None)
    note = f"{len(model.graph.node)} nodes; inputs that reach an output: {', '.join(reach)}"
    note += f"; {columns} of {total} columns" if total else ""
    flow = control_flow(model)
    return make_check("C6", findings, f"{note}; control flow: {', '.join(flow)}" if flow else note)


def _expected(report: Report, plan: Plan) -> list[Expected]:
    """What the file is to take: the export's width, and the plan's columns where that is the original's."""
    parts = {p.name: p for p in plan.inputs}
    found = []
    for given in report.export.inputs:
        part = parts.get(given.name)
        whole = report.export.signature == "original" and given.axis is not None and part is not None
        selects = tuple(part.kept) if whole and part is not None else None
        found.append(Expected(given.name, given.axis, len(given.columns), selects))
    return found


def _weights(opened: ParsedBundle, report: Report) -> Check:
    if opened.plan is None or opened.weights is None:
        return Check("C8", "incomplete", note=f"{bundles.WEIGHTS} or {bundles.PLAN} has no reading")
    findings = check_weights(report, opened.plan, opened.weights)
    if opened.model is not None:
        findings += check_shared(opened.plan, opened.weights, opened.model)
    held, total = len(opened.plan.in_model), len(opened.weights.arrays)
    return make_check("C8", findings, f"{held} of {total} tensors are in {bundles.ONNX} bit for bit")


def _running(
    opened: ParsedBundle, report: Report, graph: Check, seconds: float, isolated: bool
) -> tuple[list[Check], str | None]:
    """C9 and C10; a model whose graph is refused is not run."""
    model, golden = opened.raw(bundles.ONNX), opened.raw(bundles.GOLDEN)
    if graph.status != "passed" or model is None or golden is None or opened.model is None:
        note = "not run: its graph was refused" if graph.status == "failed" else "a file has no reading"
        return [Check(c, "incomplete", note=note) for c in ("C9", "C10")], None
    try:
        read_tensors(golden)
    except StrictError as error:
        failed = make_check("C9", [Finding(bundles.GOLDEN, "", str(error))])
        return [failed, Check("C10", "incomplete", note="it runs on the golden rows")], None
    int8 = opened.raw(bundles.INT8)
    other = Int8(int8, report.quantized.golden_difference) if int8 and report.quantized else None
    return check_execution(model, golden, _removed(opened, report), seconds, isolated, other)


def _removed(opened: ParsedBundle, report: Report) -> list[Removed]:
    """The columns the file takes and must not read."""
    if report.export.signature != "original" or opened.plan is None or opened.model is None:
        return []
    shapes = input_shapes(opened.model)
    found = []
    for part in opened.plan.inputs:
        gone = tuple(sorted(set(range(part.size)) - set(part.kept)))
        if part.axis is not None and gone and part.name in shapes:
            found.append(Removed(part.name, part.axis % len(shapes[part.name]), gone))
    return found


def _policy(report: Report, demands: VerificationOptions) -> Check:
    """C11, under the bundle's rules and the auditor's own."""
    rules = [(report.policy, bundles.REPORT)] if report.policy is not None else []
    rules += [demands.policy] if demands.policy is not None else []
    if not rules:
        return Check("C11", "skipped", note="no rules in the bundle, none given with --policy")
    findings = [f for policy, source in rules for f in check_policy(report, policy, source)]
    kept = sorted({name for policy, _ in rules for name in protected_kept(report, policy)})
    note = f"rules of {' and '.join(source for _, source in rules)}"
    return make_check("C11", findings, f"{note}; protected and kept: {', '.join(kept)}" if kept else note)


def _withheld(opened: ParsedBundle, report: Report) -> str | None:
    """What the report says of proxies and the bundle does not show."""
    made = report.proxies is not None and report.proxies.performed
    if not made or opened.raw(bundles.PROXIES) is not None:
        return None
    return f"{bundles.PROXIES}, the analysis of proxies: it was made and is withheld."


def _page(opened: ParsedBundle, report: Report) -> tuple[Check, str | None]:
    raw, summary, skipped = opened.raw(bundles.PAGE), opened.raw(bundles.SUMMARY), None
    if raw is None or summary is None:
        missing = bundles.PAGE if raw is None else bundles.SUMMARY
        return Check("C12", "incomplete", note=f"no {missing}"), None

    def run() -> Check:
        nonlocal skipped
        check, skipped = check_rendering(report, raw, summary)
        return check

    return _guarded("C12", run), skipped


def _lineage(report: Report, demands: VerificationOptions) -> Check:
    findings = lineage.check_expected(report, demands.model, demands.original)
    if demands.previous is not None:
        findings += lineage.check_previous(report, demands.previous)
    given = [demands.model, demands.original, demands.previous]
    if all(x is None for x in given):
        return Check("C14", "skipped", note="no --expect-model, --expect-original or --previous")
    return make_check("C14", findings, f"{sum(x is not None for x in given)} expectations")
