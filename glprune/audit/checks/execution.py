"""C9 and C10: run the model on its golden rows and on probes, in a process of its own with a time limit.

That process is ``python -m glprune.audit.checks.execution FOLDER``: it reads files and request from the
folder and prints one JSON line for each part it completes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from glprune.audit.findings import Check, Finding, make_check
from glprune.audit.limits import ending, limit_memory, limit_time, memory_limit
from glprune.audit.onnx_file.counts import measured_macs
from glprune.audit.onnx_reader import parse
from glprune.audit.safetensors_reader import Array, read_tensors
from glprune.errors import first_line
from glprune.schema import bundle as bundles

_TOLERANCE = 2e-5  # relative to the largest output value: another processor orders sums differently
_REFERENCE_TOLERANCE = 1e-4
_INT8_SLACK, _INT8_STEP = 0.5, 4e-3  # other kernels round a product to the next of 255 steps
_MIN_ROWS = 4
_REQUEST = "request.json"
PROBES = ("NaN", "Inf", "-Inf", "3e38", "-3e38")


@dataclass(frozen=True)
class Removed:
    """Removed columns of an input of the file; no output may depend on them.

    Attributes:
        input: Name of the input.
        axis: Axis of the columns.
        columns: Their positions.
    """

    input: str
    axis: int
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Int8:
    """The 8-bit file beside the model.

    Attributes:
        content: Its bytes.
        difference: The difference to the recorded outputs on the golden rows, as the report states it.
    """

    content: bytes
    difference: float


@dataclass(frozen=True)
class OriginalFile:
    """The file of the original network, whose multiply-accumulates are counted on a row of zeros.

    Attributes:
        content: The ONNX file; C6 must have passed for it.
        macs: Its multiply-accumulates for one row, as the report states them.
        widths: Input -> axis and number of its columns; inputs without features are not named.
    """

    content: bytes
    macs: int
    widths: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Claims:
    """What the report states of a run of the model.

    Attributes:
        removed: Columns that no output depends on, to fill with extreme values; empty for a slim signature.
        int8: The 8-bit file, if there is one; C6 must have passed for it too.
        macs: Multiply-accumulates for one row; None: they are not compared.
        from_file: Whether they are said to be counted from the file.
        original: The file of the original network, if there is one.
    """

    removed: Sequence[Removed] = ()
    int8: Int8 | None = None
    macs: int | None = None
    from_file: bool = True
    original: OriginalFile | None = None


def check_execution(model: bytes, golden: bytes, claims: Claims, seconds: float | None) -> list[Check]:
    """Run the model and compare its outputs with the recorded ones.

    Args:
        model: The ONNX file; C6 must have passed, since this runs it.
        golden: The golden vectors: recorded inputs and outputs.
        claims: What the report states.
        seconds: Time limit of the process that runs the model; None: run it in this process, without a limit.

    Returns:
        C9 and C10.
    """
    request, int8 = [[r.input, r.axis, list(r.columns)] for r in claims.removed], claims.int8
    if seconds is None:
        parts = dict(measure(model, golden, request, int8, claims.original))
    else:
        parts = dict(_measure_isolated(model, golden, request, seconds, claims))
    reference, quantized = parts.get("reference", {}), parts.get("int8", {})
    findings = [f for p in (parts.get("golden", {}), quantized, reference) for f in p.get("findings", [])]
    counting = parts.get("macs", {})
    if counting and claims.macs is not None:
        findings += _count_errors(claims.macs, claims.from_file, counting["count"])
    if claims.original is not None and claims.from_file and counting:
        findings += _original_errors(claims.original.macs, counting["original"])
    # a model that fails on the golden rows ends the run before its 8-bit file
    if "golden" in parts and (int8 is None or quantized or findings):
        note = " and ".join(p["note"] for p in (parts["golden"], reference) if p.get("note"))
        note += f"; {quantized['note']}" if quantized.get("note") else ""
        c9 = make_check("C9", [Finding(*f) for f in findings], note)
    else:
        c9 = Check("C9", "incomplete", note=parts.get("ended", {}).get("note", "did not run"))
    skipped = "the reference evaluator ran out of time" if not reference else reference.get("skipped")
    unchecked = f"A second runtime: {skipped}." if skipped else ""
    return [replace(c9, left_out=unchecked), _probed(parts, claims.removed)]


def _count_errors(stated: int, from_file: bool, counted: int | None) -> list[tuple[str, str, str]]:
    """Compare multiply-accumulates with those of the file, which are stated wherever they can be counted."""
    if from_file != (counted is not None):
        what = f"says {'onnx' if from_file else 'pytorch'}; the file can{'' if counted else 'not'} be counted"
        return [(bundles.REPORT, "/size/macs_of", what)]
    if counted is not None and counted != stated:
        what = f"says {stated:,}; the file computes {counted:,}"
        return [(bundles.REPORT, "/size/macs_after", what)]
    return []


def _original_errors(stated: int, counted: int | None) -> list[tuple[str, str, str]]:
    """Compare multiply-accumulates of the original network with those of its file."""
    if counted is None or counted == stated:
        return []
    what = f"says {stated:,}; {bundles.ORIGINAL} computes {counted:,}"
    return [(bundles.REPORT, "/size/macs_before", what)]


def _probed(parts: Mapping[str, Any], removed: Sequence[Removed]) -> Check:
    if not removed:
        return Check("C10", "skipped", note="the file has no input for removed columns")
    if "probes" not in parts:
        return Check("C10", "incomplete", note=parts.get("ended", {}).get("note", "did not run"))
    return make_check("C10", [Finding(*f) for f in parts["probes"]["findings"]], parts["probes"]["note"])


Part = tuple[str, dict[str, Any]]


def _measure_isolated(
    model: bytes, golden: bytes, request: object, seconds: float, claims: Claims
) -> Iterator[Part]:
    """Run ``measure`` in a process of its own, with a time limit."""
    int8, original = claims.int8, claims.original
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / bundles.ONNX).write_bytes(model)
        (folder / bundles.GOLDEN).write_bytes(golden)
        if int8 is not None:
            (folder / bundles.INT8).write_bytes(int8.content)
        if original is not None:
            (folder / bundles.ORIGINAL).write_bytes(original.content)
        asked = {
            "removed": request,
            "seconds": seconds,
            "difference": int8.difference if int8 is not None else None,
            "original": {**original.widths} if original is not None else None,
        }
        bundles.write_json(folder / _REQUEST, asked)
        # -P: a module in the current folder, which may be the bundle, is not imported
        command = [sys.executable, "-P", "-m", "glprune.audit.checks.execution", name]
        try:
            done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
            printed, ended = done.stdout, f"the runtime {ending(done.returncode, seconds)}"
        except subprocess.TimeoutExpired as error:
            printed, ended = error.stdout or b"", f"stopped after {seconds:g} s"
    for line in printed.splitlines():
        with contextlib.suppress(ValueError):  # a line that was cut off
            part = json.loads(line)
            yield part["part"], part
    yield "ended", {"note": ended}


def measure(
    model: bytes,
    golden: bytes,
    request: Sequence[Sequence[Any]],
    int8: Int8 | None = None,
    original: OriginalFile | None = None,
) -> Iterator[Part]:
    """Run the model in this process: golden vectors, probes, then the reference evaluator."""
    arrays = read_tensors(golden).arrays
    try:
        session = _session(model)
    except Exception as error:  # noqa: BLE001 - the runtime raises several kinds of its own
        yield (
            "golden",
            {"findings": [(bundles.ONNX, "", f"ONNX Runtime rejects it: {first_line(error, 160)}")]},
        )
        return
    names = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    errors = [*_vector_errors(session, arrays)]
    if errors:
        yield "golden", {"findings": errors}
        return
    feed = {name: arrays[f"input.{name}"] for name in names}
    expected = {name: arrays[f"output.{name}"] for name in outputs}
    try:
        found = dict(zip(outputs, session.run(None, feed), strict=True))
    except Exception as error:  # noqa: BLE001 - as above
        yield (
            "golden",
            {"findings": [(bundles.GOLDEN, "", f"ONNX Runtime fails on it: {first_line(error, 160)}")]},
        )
        return
    rows = len(next(iter(feed.values())))
    yield (
        "golden",
        {
            "findings": [*_differences(found, expected, _TOLERANCE, "ONNX Runtime")],
            "note": f"{rows} rows in ONNX Runtime {ort.__version__}",
        },
    )
    counted = _macs_of_original(original, feed) if original is not None else None
    yield "macs", {"count": measured_macs(parse(model), feed), "original": counted}
    quantized = _Int8Session(int8, feed, expected) if int8 is not None else None
    if quantized is not None:
        yield "int8", quantized.part
    if request:
        findings, note = _probe(session, feed, found, request)
        if quantized is not None and quantized.session is not None:
            more, _ = _probe(quantized.session, feed, quantized.found, request)
            findings += [(bundles.INT8, where, what) for _, where, what in more]
        yield "probes", {"findings": findings, "note": note}
    yield "reference", _reference(model, feed, expected)


def _macs_of_original(original: OriginalFile, feed: Mapping[str, Array]) -> int | None:
    """Count on zeros in the shape of a golden row, with all columns."""
    rows = {}
    for name, x in feed.items():
        shape = [1, *x.shape[1:]]
        axis, width = original.widths.get(name, (None, 0))
        if axis is not None and -len(shape) <= axis < len(shape):
            shape[axis] = width
        rows[name] = np.zeros(shape, dtype=x.dtype)
    return measured_macs(parse(original.content), rows)


class _Int8Session:
    """Runs the 8-bit file on the golden rows."""

    def __init__(self, int8: Int8, feed: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
        self.session: ort.InferenceSession | None = None
        self.found: dict[str, Any] = {}
        self.part: dict[str, Any]
        try:
            session = _session(int8.content)
            self.found = dict(zip(expected, session.run(list(expected), dict(feed)), strict=True))
            pairs = ((self.found[name], wanted) for name, wanted in expected.items())
            gap = max(_gap(y.astype(np.float64), wanted.astype(np.float64)) for y, wanted in pairs)
        except Exception as error:  # noqa: BLE001 - the runtime raises several kinds of its own
            self.part = {
                "findings": [(bundles.INT8, "", f"ONNX Runtime fails on it: {first_line(error, 160)}")]
            }
            return
        self.session = session
        findings = []
        if not abs(gap - int8.difference) <= _INT8_SLACK * int8.difference + _INT8_STEP:
            what = f"says {int8.difference:.2g}; on the golden rows {bundles.INT8} gives {gap:.2g}"
            findings.append((bundles.REPORT, "/quantized/golden_difference", what))
        self.part = {"findings": findings, "note": f"{bundles.INT8} differs by up to {gap:.1%}"}


def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


def _vector_errors(
    session: ort.InferenceSession, arrays: Mapping[str, Array]
) -> Iterator[tuple[str, str, str]]:
    """Require vectors for every input and output, with several different rows."""
    wanted = [f"input.{i.name}" for i in session.get_inputs()]
    wanted += [f"output.{o.name}" for o in session.get_outputs()]
    if set(arrays) != set(wanted):
        name = sorted(set(arrays) ^ set(wanted))[0]
        yield bundles.GOLDEN, name[:60], "is missing, or is not an input or output of the model"
        return
    rows = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(rows) != 1 or min(rows) < _MIN_ROWS:
        yield (
            bundles.GOLDEN,
            "",
            f"has {sorted(rows)} rows; every tensor needs the same number, at least {_MIN_ROWS}",
        )
        return
    given = {i.name: arrays[f"input.{i.name}"] for i in session.get_inputs()}
    for i in session.get_inputs():
        if given[i.name].dtype != _TYPES.get(i.type):
            what = f"is {given[i.name].dtype}; the model takes {i.type}"
            yield bundles.GOLDEN, f"input.{i.name}", what
    if all(x[1:].tobytes() == np.repeat(x[:1], len(x) - 1, axis=0).tobytes() for x in given.values()):
        yield bundles.GOLDEN, "", "repeats a single row, which proves nothing"
    for name, x in given.items():
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            yield bundles.GOLDEN, f"input.{name}", "holds NaN or Inf"
    results = [arrays[f"output.{o.name}"] for o in session.get_outputs()]
    if not any(np.isfinite(y.astype(np.float64)).any() for y in results):
        yield bundles.GOLDEN, "", "has no finite output, which proves nothing"


def _differences(
    found: Mapping[str, Any], expected: Mapping[str, Array], tolerance: float, runtime: str
) -> Iterator[tuple[str, str, str]]:
    for name, wanted in expected.items():
        y, where = np.asarray(found[name]), f"output.{name}"
        if y.shape != wanted.shape or y.dtype != wanted.dtype:
            yield (
                bundles.GOLDEN,
                where,
                f"is {wanted.dtype} {wanted.shape}; {runtime} gives {y.dtype} {y.shape}",
            )
        elif not np.issubdtype(y.dtype, np.floating):
            if not np.array_equal(y, wanted):
                yield bundles.GOLDEN, where, f"{runtime} gives other values"
        else:
            gap = _gap(y.astype(np.float64), wanted.astype(np.float64))
            if not gap <= tolerance:
                yield bundles.GOLDEN, where, f"{runtime} differs by {gap:.1e} of the largest value"


def _gap(a: Any, b: Any) -> float:
    """Return the largest difference relative to the largest value; infinite where NaN or Inf differ."""
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(float(np.abs(b[finite]).max()), 1e-6))


def _probe(
    session: ort.InferenceSession,
    feed: Mapping[str, Array],
    before: Mapping[str, Any],
    request: Sequence[Sequence[Any]],
) -> tuple[list[tuple[str, str, str]], str]:
    """Fill all removed columns with extreme values, then those of each input; no output bit may change."""
    findings, count = [], 0
    for probe in PROBES:
        for group in [request, *([[r] for r in request] if len(request) > 1 else [])]:
            given = dict(feed)
            for name, axis, columns in group:
                given[name] = _with_value(given[name], axis, columns, float(probe))
            count += 1
            try:
                after = dict(zip(before, session.run(None, given), strict=True))
            except Exception as error:  # noqa: BLE001 - the runtime raises several kinds of its own
                findings.append(
                    (bundles.ONNX, "", f"fails with {probe} in removed columns: {first_line(error, 160)}")
                )
                continue
            for name, y in after.items():
                if np.asarray(y).tobytes() != np.asarray(before[name]).tobytes():
                    where = f"output {name!r}"
                    findings.append((bundles.ONNX, where, f"changes with {probe} in removed columns"))
    return findings, f"{count} probes of {', '.join(PROBES)}"


def _with_value(x: Array, axis: int, columns: Sequence[int], value: float) -> Array:
    """Copy an array with a value in some columns; integers take their extremes, booleans are inverted."""
    changed = np.array(x)
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = list(columns)
    selected = tuple(index)
    if x.dtype == np.bool_:
        changed[selected] = ~changed[selected]
    elif x.dtype == np.int64:
        limits = np.iinfo(np.int64)
        changed[selected] = limits.min if value < 0 else limits.max
    else:
        changed[selected] = value
    return changed


def _reference(model: bytes, feed: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, Any]:
    """Run the first rows in the reference evaluator of ONNX, which shares no code with ONNX Runtime."""
    rows = _MIN_ROWS
    try:
        with np.errstate(all="ignore"):
            run = ReferenceEvaluator(parse(model)).run(None, {k: x[:rows] for k, x in feed.items()})
        found = dict(zip(expected, run, strict=True))
        first = {name: y[:rows] for name, y in expected.items()}
        # an output that depends on all rows differs on a part of them
        same_shapes = all(np.asarray(found[n]).shape == y.shape for n, y in first.items())
    except Exception as error:  # noqa: BLE001 - it raises several kinds for missing operators
        return {"skipped": f"the reference evaluator cannot run the model ({first_line(error, 160)})"}
    if not same_shapes:
        return {"skipped": "on a part of the rows the reference evaluator gives outputs of other shapes"}
    return {
        "findings": [*_differences(found, first, _REFERENCE_TOLERANCE, "the reference evaluator")],
        "note": f"{rows} in the reference evaluator",
    }


def _main(folder: Path) -> None:
    request = json.loads((folder / _REQUEST).read_bytes())
    limit_memory(memory_limit({path.name: path.stat().st_size for path in folder.iterdir()}))
    limit_time(request["seconds"])
    model, golden = ((folder / name).read_bytes() for name in (bundles.ONNX, bundles.GOLDEN))
    stated = request["difference"]
    int8 = Int8((folder / bundles.INT8).read_bytes(), stated) if stated is not None else None
    widths, original = request["original"], None
    if widths is not None:
        original = OriginalFile((folder / bundles.ORIGINAL).read_bytes(), 0, widths)
    for name, part in measure(model, golden, request["removed"], int8, original):
        print(json.dumps({"part": name, **part}), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
