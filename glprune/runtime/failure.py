"""How all processes of a run end when one of them does: one word, and nobody leaves before it is told.

A launcher ends the others as soon as one process has left. So whoever cannot go on leaves word in the store
through which the processes met, closes its connections, which ends the sums in which others wait, and
stays until the first process, which reads the word there, is about to tell it.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch.distributed as dist

from glprune.errors import (
    DataError,
    GlpruneError,
    ModelError,
    PeerFailedError,
    TargetError,
    UsageError,
    exit_code,
    user_message,
)

_TEXT_OF_GLOO = re.compile(r"\.cc:\d+\] (.*?)(?:\. |\n|$)")
_FOR_THE_FIRST, _FOR_OTHERS = 60.0, 5.0  # seconds of waiting for them
_POLL = 0.02
_KINDS = {kind.exit_code: kind for kind in (UsageError, ModelError, DataError, TargetError)}


@dataclass(frozen=True)
class FailureRecord:
    """Why a process ended.

    Attributes:
        rank: Its number.
        text: The reason.
        code: Its exit code.
        stopped: Whether it could have gone on, so that what was done is worth keeping.
    """

    rank: int
    text: str
    code: int
    stopped: bool


class FailureStore:
    """Where the processes leave word for each other.

    Args:
        store: What they met through.
        rank: Number of this one.
        size: How many there are.

    Attributes:
        told: Whether this process, not the first, may be silent: the first one tells why all end.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self.told = False

    def publish(self, error: BaseException) -> None:
        """Leave word of an error; the first word counts."""
        own = isinstance(error, GlpruneError) and not isinstance(error, PeerFailedError)
        word = FailureRecord(self.rank, user_message(error) or _rank_list(error), exit_code(error), not own)
        with contextlib.suppress(RuntimeError):  # the store went with the process that held it
            self._store.compare_set("word", "", json.dumps(asdict(word)))

    def received(self, broken: RuntimeError) -> GlpruneError:
        """What to raise where a connection broke: the error of the process that closed it.

        Args:
            broken: What gloo says of it.
        """
        word = self._record_of()
        if word is None:
            return PeerFailedError(
                f"another process was lost: {failure_reason(broken)} (killed, out of memory, or its machine)"
            )
        text = f"process {word.rank}: {word.text}"
        return PeerFailedError(text, word.code) if word.stopped else _KINDS.get(word.code, GlpruneError)(text)

    def leave(self, failed: bool) -> None:
        """Leave: after an error together, the first process a moment before the others."""
        others = [_left_sentence(rank) for rank in range(1, self.size)]
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            if failed and self.rank:
                self.told = self._wait([_left_sentence(0)], _FOR_THE_FIRST)
            self._store.set(_left_sentence(self.rank), "")
            if failed and not self.rank:
                self._wait(others, _FOR_OTHERS)

    def _record_of(self) -> FailureRecord | None:
        try:
            if self._store.check(["word"]):
                return FailureRecord(**json.loads(self._store.get("word")))
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
    """What gloo or a store says, without the place in its source and its advice."""
    found = _TEXT_OF_GLOO.search(str(error))
    return found[1] if found else str(error).partition("\n")[0]


def _left_sentence(rank: int) -> str:
    return f"left/{rank}"


def _rank_list(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
