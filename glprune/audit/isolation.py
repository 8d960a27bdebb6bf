"""Verify a bundle in a process of its own, with limits of time and memory.

The process is ``python -m glprune.audit.worker``. It prints one JSON line before each check and one after it.
A check in which it ends is incomplete; a new process then does the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glprune.audit.findings import CHECKS, NOT_CHECKED, Check, Finding, UnreadableError, Verdict
from glprune.audit.limits import ending, memory_limit, time_limit

if TYPE_CHECKING:
    from glprune.audit.verify import VerificationOptions

_LEAST = 5.0  # seconds of processor time after a check was stopped
_GRACE = 30.0  # seconds to start and to end
_ERRORS = 1 << 16  # bytes of a worker's messages
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Request:
    """What a worker is to do.

    Attributes:
        folder: The bundle.
        options: What the auditor brings along.
        known: Results of checks that need not run.
        seconds: Limit of the time to run the model.
        checking: Limit of processor time of everything else.
        memory: Limit of memory, in bytes.
    """

    folder: Path
    options: VerificationOptions
    known: dict[str, Check]
    seconds: float
    checking: float
    memory: int


@dataclass
class _Progress:
    """What a worker has printed: the step it is in, and its verdict or error if it reached one."""

    step: str = "C4"
    known: dict[str, Check] = field(default_factory=dict)
    verdict: Verdict | None = None
    unreadable: str | None = None

    def read(self, line: bytes) -> None:
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:  # a line that was cut off
            return
        self.step = said.get("begin", self.step)
        self.unreadable = said.get("unreadable")
        if "check" in said:
            found = check_from(said["check"])
            self.known[found.id] = found
        if "verdict" in said:
            record = said["verdict"]
            checks = tuple(check_from(check) for check in record.pop("checks"))
            self.verdict = Verdict(**record | {"checks": checks, "not_checked": tuple(record["not_checked"])})


def verify_isolated(folder: Path, options: VerificationOptions, seconds: float) -> Verdict:
    """Verify a bundle in processes that are stopped where a check takes too much.

    Raises:
        UnreadableError: The folder is not a bundle, or has a schema this version does not know.
    """
    sizes = _sizes(folder)
    progress, checking = _Progress(), time_limit(sizes, seconds)
    for _ in CHECKS:
        request = Request(folder, options, progress.known, seconds, checking, memory_limit(sizes))
        reason = _run(request, progress)
        if progress.unreadable is not None:
            raise UnreadableError(progress.unreadable)
        if progress.verdict is not None:
            return progress.verdict
        check, _, file = progress.step.partition(" ")
        stopped = Check(check, "incomplete", note=f"{f'reading {file} ' if file else ''}{reason}")
        progress.known[check] = stopped
        if file:  # every check needs the files
            break
        if check == "C9":
            progress.known["C10"] = Check("C10", "incomplete", note=stopped.note)
        checking = max(_LEAST, checking / 2)
    checks = (progress.known.get(c, Check(c, "incomplete", note="did not run")) for c in CHECKS)
    return Verdict(str(folder), "not checked", "", tuple(checks), NOT_CHECKED)


def _run(request: Request, progress: _Progress) -> str:
    """Run a worker and read what it prints; returns how it ended."""
    # -P: a module in the current folder, which may be the bundle, is not imported
    command = [sys.executable, "-P", "-m", "glprune.audit.worker"]
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    longest = 3 * request.checking + request.seconds + _GRACE
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as process,
    ):
        timer = threading.Timer(longest, process.kill)
        timer.start()
        try:
            _talk(process, request, progress)
        finally:
            expired = not timer.is_alive()
            timer.cancel()
            process.kill()
        status = process.wait()
        errors.seek(0)
        last = errors.read(_ERRORS).decode(errors="replace").strip().rpartition("\n")[2]
    if expired:
        return f"stopped after {longest:g} s"
    reason = ending(status, request.checking)
    return f"{reason} ({last[:200]})" if status > 0 and last else reason


def _talk(process: subprocess.Popen[bytes], request: Request, progress: _Progress) -> None:
    """Give a worker its request and read what it prints until it ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it ended before it read all
        process.stdin.write(pickle.dumps(request))
        process.stdin.close()
    for line in process.stdout:
        progress.read(line)
    process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files of a folder by name; what cannot be read is the worker's to name."""
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat(follow_symlinks=False).st_size for e in entries if e.is_file()}
    except (OSError, ValueError):
        return {}


def check_from(record: dict[str, Any]) -> Check:
    """Read a check that a worker printed."""
    findings = tuple(Finding(**finding) for finding in record["findings"])
    return Check(**record | {"findings": findings})


def line_of(key: str, value: object) -> str:
    """Write a line for ``_Progress``: a name, a text, a check or a verdict."""
    return json.dumps({key: value if isinstance(value, str) else asdict(value)})  # type: ignore[call-overload]
