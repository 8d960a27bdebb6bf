"""Errors a user can cause. Each is one line: what is wrong, where, and the mend.

Only the command line catches them; a bug keeps its traceback. ``exit_code`` is the
documented status of the ``glprune`` command.
"""

import difflib
from collections.abc import Sequence

_SEARCHED = 5000  # names; comparing with more takes seconds
_LONGEST = 200  # characters of a name; the time grows as their square


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one; empty where none is near."""
    near = [k for k in known[:_SEARCHED] if len(k) <= _LONGEST]
    close = difflib.get_close_matches(name, near, n=1) if len(name) <= _LONGEST else []
    return f" Did you mean {close[0]!r}?" if close else ""


def name_list(names: Sequence[str]) -> str:
    """The first names of a list and how many more there are, with their verb: ``'a', 'b' are``."""
    shown = ", ".join(repr(n) for n in names[:3])
    if len(names) == 1:
        return f"{shown} is"
    return f"{shown}{f' and {len(names) - 3} more' if len(names) > 3 else ''} are"


class GlpruneError(Exception):
    """Base of every error glprune raises on purpose."""

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
    """A loss, a gradient, a weight or a metric is not finite any more."""


class DataError(GlpruneError):
    """The data cannot be used; the message names file and column."""

    exit_code = 4


class TargetError(GlpruneError):
    """No point of the regularisation path meets the target."""

    exit_code = 5


class PeerFailedError(GlpruneError):
    """Another process of the run ended, by no fault of the recipe, model or data; what was done is kept.

    Args:
        message: Why.
        code: Its exit code.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = code


class SigtermInterrupt(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def user_message(error: BaseException) -> str | None:
    """What the command says of an error that has causes outside the program; None of a bug."""
    if isinstance(error, GlpruneError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "terminated" if isinstance(error, SigtermInterrupt) else "interrupted"
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}"
    return None


def exit_code(error: BaseException) -> int:
    """The exit code of an error."""
    if isinstance(error, GlpruneError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 143 if isinstance(error, SigtermInterrupt) else 130
    return 2 if isinstance(error, OSError) else 1
