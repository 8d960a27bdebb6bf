"""End all processes of a run if one of them fails, with one error message.

A launcher ends the other processes as soon as one has left. So a process that fails publishes its error in
the store through which the processes connected, closes its connections (which ends the operations in which
others wait), and stays until process 0, which reads the error there, is about to report it.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

from glprune.errors import (
    DataError,
    GlpruneError,
    ModelError,
    PeerFailedError,
    TargetError,
    UsageError,
    error_text,
    exit_code,
    user_message,
)

_GLOO_REASON = re.compile(r"\.cc:\d+\] (.*?)(?:\. |\n|$)")
_WAIT_FOR_MAIN, _WAIT_FOR_OTHERS = 60.0, 5.0  # seconds
_POLL = 0.02
_KEY = "word"
_ERRORS = {error.exit_code: error for error in (UsageError, ModelError, DataError, TargetError)}


@dataclass(frozen=True)
class FailureRecord:
    """Why a process ended.

    Attributes:
        rank: Its number.
        text: The error message.
        code: Its exit code.
        stopped: Whether it was stopped from outside or by a bug, so that its checkpoints are worth keeping.
    """

    rank: int
    text: str
    code: int
    stopped: bool


class FailureStore:
    """Where processes publish why they ended.

    Args:
        store: The store through which they connected.
        rank: Number of this process.
        size: Number of processes.

    Attributes:
        reported: Whether process 0 reports why all end, so that this process, another one, need not.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self.reported = False

    def publish(self, error: BaseException) -> None:
        """Publish an error; the first one that any process publishes counts."""
        expected = isinstance(error, GlpruneError) and not isinstance(error, PeerFailedError)
        text = user_message(error) or f"{type(error).__name__}: {error_text(error)}"
        record = FailureRecord(self.rank, text, exit_code(error), not expected)
        with contextlib.suppress(RuntimeError):  # the process that held the store may be gone
            self._store.compare_set(_KEY, "", json.dumps(asdict(record)))

    def received(self, error: RuntimeError) -> GlpruneError:
        """Return the error to raise after a lost connection: that of the process that closed it.

        Args:
            error: The error of gloo.
        """
        record = self._first_record()
        if record is None:
            return PeerFailedError(
                f"another process was lost: {failure_reason(error)} (killed, out of memory, or its machine)"
            )
        text = f"process {record.rank}: {record.text}"
        if record.stopped:
            return PeerFailedError(text, record.code)
        return _ERRORS.get(record.code, GlpruneError)(text)

    def leave(self, failed: bool) -> None:
        """Leave; after an error all leave together, process 0 a moment before the others."""
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            if failed and self.rank:
                self.reported = self._wait([_left_key(0)], _WAIT_FOR_MAIN)
            self._store.set(_left_key(self.rank), "")
            if failed and not self.rank:
                self._wait([_left_key(rank) for rank in range(1, self.size)], _WAIT_FOR_OTHERS)

    def _first_record(self) -> FailureRecord | None:
        try:
            if self._store.check([_KEY]):
                return FailureRecord(**json.loads(self._store.get(_KEY)))
        except RuntimeError:
            pass
        return None

    def _wait(self, keys: Sequence[str], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._store.check(list(keys)):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL)
        return True


def failure_reason(error: Exception) -> str:
    """Return the reason that gloo or a store gives, without its place in the source and its advice."""
    found = _GLOO_REASON.search(str(error))
    return found[1] if found else str(error).partition("\n")[0]


def _left_key(rank: int) -> str:
    return f"left/{rank}"
