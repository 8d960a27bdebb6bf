"""Errors that a user can cause. Each message is one line: what is wrong, where, and a suggested fix.

Only the command line catches them; a bug keeps its traceback. ``exit_code`` is the documented exit status of
the ``glprune`` command.
"""

import difflib
import signal
from collections.abc import Sequence
from pathlib import Path

SIMILAR = " Did you mean "
_MAX_NAMES = 5000  # comparing with more takes seconds
_MAX_LENGTH = 200  # of a name; the time grows with its square


def error_text(error: BaseException) -> str:
    """Return an error's message; empty where its class, which may be the user's, fails to make one."""
    try:
        return str(error).strip()
    except Exception:  # noqa: BLE001 - see above
        return ""


def first_line(error: BaseException, max_length: int | None = None) -> str:
    """Return the first line of an error's message; its class if the message is empty."""
    return (error_text(error) or type(error).__name__).splitlines()[0][:max_length]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the end of a message on an unknown name: the most similar known one, whatever its case."""
    near = [k for k in known[:_MAX_NAMES] if len(k) <= _MAX_LENGTH]
    if len(name) > _MAX_LENGTH:
        return ""
    folded = {k.casefold(): k for k in reversed(near)}  # of several that differ in case alone, the first
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"{SIMILAR}{folded[close[0]]!r}?" if close else ""


def name_list(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, the number of the others, and the verb: ``'a', 'b' are``."""
    shown = ", ".join(repr(n) for n in names[:most])
    if len(names) == 1:
        return f"{shown} is"
    return f"{shown}{f' and {len(names) - most} more' if len(names) > most else ''} are"


class GlpruneError(Exception):
    """Base class of every error that glprune raises on purpose."""

    exit_code = 1


class UsageError(GlpruneError):
    """The command line, the recipe or the output folder is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong; the message starts with ``file:line:``."""


class ModelError(GlpruneError):
    """The model file or its factory cannot be used."""

    exit_code = 3


class NonFiniteError(ModelError):
    """A loss, a gradient, a weight or a metric is no longer finite."""


class DataError(GlpruneError):
    """The data cannot be used; the message names file and column."""

    exit_code = 4


class TargetError(GlpruneError):
    """No point of the regularisation path meets the target."""

    exit_code = 5


class PeerFailedError(GlpruneError):
    """Another process of the run ended, not because of recipe, model or data; finished work is kept.

    Args:
        message: The cause.
        code: The exit code of this process.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = code


class SignalInterrupt(KeyboardInterrupt):
    """The process received SIGTERM or SIGHUP; they end a run as Ctrl-C does.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def note_written(error: BaseException, out: Path) -> None:
    """Note at an error, once, that it came after the bundle was complete."""
    note = f"{_WRITTEN}: {out}."
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def is_written(error: BaseException) -> bool:
    """Whether an error came after the bundle was complete."""
    return any(note.startswith(_WRITTEN) for note in getattr(error, "__notes__", ()))


_WRITTEN = "The bundle is written"
_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc")  # PyTorch's and ONNX Runtime's words


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system gave no more memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in error_text(error) for words in _OUT_OF_MEMORY)


def user_message(error: BaseException) -> str | None:
    """Return the message of an error whose cause lies outside the program; None for a bug."""
    if isinstance(error, GlpruneError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        hung_up = isinstance(error, SignalInterrupt) and error.number == signal.SIGHUP
        return "hung up" if hung_up else "terminated" if isinstance(error, SignalInterrupt) else "interrupted"
    if is_out_of_memory(error):
        return "not enough memory"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}"
    return None


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error."""
    if isinstance(error, GlpruneError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.number if isinstance(error, SignalInterrupt) else signal.SIGINT)
    return 2 if isinstance(error, OSError) else 1
