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
    StoppedError,
    TargetError,
    UsageError,
    exit_code,
    sentence,
)

_TEXT_OF_GLOO = re.compile(r"\.cc:\d+\] (.*?)(?:\. |\n|$)")
_FOR_THE_FIRST, _FOR_OTHERS = 60.0, 5.0  # seconds of waiting for them
_POLL = 0.02
_KINDS = {kind.exit_code: kind for kind in (UsageError, ModelError, DataError, TargetError)}


@dataclass(frozen=True)
class Word:
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


class Board:
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

    def post(self, error: BaseException) -> None:
        """Leave word of an error; the first word counts."""
        own = isinstance(error, GlpruneError) and not isinstance(error, StoppedError)
        word = Word(self.rank, sentence(error) or _named(error), exit_code(error), not own)
        with contextlib.suppress(RuntimeError):  # the store went with the process that held it
            self._store.compare_set("word", "", json.dumps(asdict(word)))

    def heard(self, broken: RuntimeError) -> GlpruneError:
        """What to raise where a connection broke: the error of the process that closed it.

        Args:
            broken: What gloo says of it.
        """
        word = self._word()
        if word is None:
            return StoppedError(
                f"another process was lost: {reason(broken)} (killed, out of memory, or its machine)"
            )
        text = f"process {word.rank}: {word.text}"
        return StoppedError(text, word.code) if word.stopped else _KINDS.get(word.code, GlpruneError)(text)

    def part(self, failed: bool) -> None:
        """Leave: after an error together, the first process a moment before the others."""
        others = [_left(rank) for rank in range(1, self.size)]
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            if failed and self.rank:
                self.told = self._wait([_left(0)], _FOR_THE_FIRST)
            self._store.set(_left(self.rank), "")
            if failed and not self.rank:
                self._wait(others, _FOR_OTHERS)

    def _word(self) -> Word | None:
        try:
            if self._store.check(["word"]):
                return Word(**json.loads(self._store.get("word")))
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


def reason(error: Exception) -> str:
    """What gloo or a store says, without the place in its source and its advice."""
    found = _TEXT_OF_GLOO.search(str(error))
    return found[1] if found else str(error).partition("\n")[0]


def _left(rank: int) -> str:
    return f"left/{rank}"


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
