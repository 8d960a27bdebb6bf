"""What signals do to a command: they end a run as Ctrl-C does, at any moment, with a message and a code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from glprune.errors import SignalInterrupt, note_written
from glprune.runtime.launcher import process_info

if TYPE_CHECKING:
    from types import FrameType

_ALL = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_AGAIN = 0.05  # seconds until a lost signal is sent again


@contextlib.contextmanager
def interrupting_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does; one of several processes reacts to the first only."""
    several = process_info().size > 1
    handled = _ALL if several else (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in handled}

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if several:
            _handle(handled, signal.SIG_IGN)
        raise _interrupt(number)

    def react() -> None:
        _handle([n for n, handler in before.items() if handler is not signal.SIG_IGN], stop)

    react()
    try:
        with _resent(react):
            yield
    except BaseException:
        if several:  # the first process that exits makes the launcher signal the others
            _handle(handled, signal.SIG_IGN)
            before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def complete(bundle: Path) -> Iterator[None]:
    """Let signals stop what follows a complete bundle; the error says that it is written."""
    try:
        with interrupting_signals():
            yield
    except KeyboardInterrupt as error:
        note_written(error, bundle)
        raise


def ignore_signals() -> None:
    """Ignore signals while the interpreter ends: all is done and said, and the exit code is known."""
    _handle(_ALL, signal.SIG_IGN)


def _handle(numbers: Any, handler: Any) -> None:
    for number in numbers:
        signal.signal(number, handler)


def _interrupt(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else SignalInterrupt(number)


@contextlib.contextmanager
def _resent(react: Any) -> Iterator[None]:
    """Send a signal again whose error was raised where Python drops errors, such as in a destructor."""
    before, lost = sys.unraisablehook, list[int]()

    def resend() -> None:
        time.sleep(_AGAIN)
        with contextlib.suppress(IndexError):
            os.kill(os.getpid(), lost.pop())

    def notice(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            before(dropped)
            return
        react()
        lost.append(getattr(dropped.exc_value, "number", signal.SIGINT))
        threading.Thread(target=resend, daemon=True).start()

    sys.unraisablehook = notice
    try:
        yield
        if lost:
            raise _interrupt(lost.pop())
    finally:
        sys.unraisablehook = before
        lost.clear()
