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
ENDING = 10.0
"""Seconds that a worker, whose answers ended, is given to end by itself and with its own status."""
DID_NOT_RUN = "did not run"
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
        before_running: Whether only the checks are made that a model must pass before it is run.
    """

    folder: Path
    options: VerificationOptions
    known: dict[str, Check]
    seconds: float
    checking: float
    memory: int
    before_running: bool = False


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


def verify_isolated(
    folder: Path, options: VerificationOptions, seconds: float, *, before_running: bool = False
) -> Verdict:
    """Verify a bundle in processes that are stopped where a check takes too much.

    Args:
        folder: The bundle.
        options: What the auditor brings along.
        seconds: Limit of the time to run the model.
        before_running: Make only the checks that a model must pass before it is run.

    Raises:
        UnreadableError: The folder is not a bundle, or has a schema this version does not know.
    """
    sizes = _sizes(folder)
    progress, checking = _Progress(), time_limit(sizes, seconds)
    for _ in CHECKS:
        memory = memory_limit(sizes)
        request = Request(folder, options, progress.known, seconds, checking, memory, before_running)
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
    checks = (progress.known.get(c, Check(c, "incomplete", note=DID_NOT_RUN)) for c in CHECKS)
    return Verdict(str(folder), "not checked", "", tuple(checks), NOT_CHECKED)


class Worker:
    """A process that runs a module of glprune's; it is ended after some time, or with the ``with`` block.

    Args:
        module: The module.
        longest: Seconds after which it is ended.
    """

    def __init__(self, module: str, longest: float) -> None:
        # -P: a module in the current folder, which may be the bundle, is not imported
        self._command = [sys.executable, "-P", "-m", module]
        self._longest = longest
        self._status, self._last, self.expired = 0, "", False

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()
        environment = os.environ | dict.fromkeys(_THREADS, "1")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self._timer = threading.Timer(self._longest, self._process.kill)
        self._timer.start()
        return self._process

    def __exit__(self, *error: object) -> None:
        self.expired = not self._timer.is_alive()
        self._timer.cancel()
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # what was not read need not be
                if stream is not None:
                    stream.close()
        self._status = self._process.wait()
        with self._errors as errors:
            errors.seek(0)
            self._last = errors.read(_ERRORS).decode(errors="replace").strip().rpartition("\n")[2]

    def ending(self, seconds: float) -> str:
        """Describe how it ended.

        Args:
            seconds: Its limit of processor time.
        """
        if self.expired:
            return f"stopped after {self._longest:g} s"
        reason = ending(self._status, seconds)
        return f"{reason} ({self._last[:200]})" if self._status > 0 and self._last else reason


def _run(request: Request, progress: _Progress) -> str:
    """Run a worker and read what it prints; returns how it ended."""
    worker = Worker("glprune.audit.worker", 3 * request.checking + request.seconds + _GRACE)
    with worker as process:
        _talk(process, request, progress)
    return worker.ending(request.checking)


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
