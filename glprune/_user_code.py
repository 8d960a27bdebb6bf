"""Errors of the user's code: of factories, networks, loaders and plugins.

Such code may raise anything, also ``SystemExit`` and other classes that ``except Exception`` lets pass. It is
turned into one error of glprune's, so that no run ends without a message or with a success that is none. A
``KeyboardInterrupt`` stays what it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from glprune.errors import GlpruneError, ModelError, error_text

_OWN = str(Path(__file__).parent)
_STANDARD = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")})
_LIBRARIES = (*_STANDARD, *{sysconfig.get_paths()[name] for name in ("purelib", "platlib")})
_OF_NETWORKS = (
    ("_call_impl", "torch/nn/modules/module.py"),
    ("apply", "torch/autograd/function.py"),
    ("backward", "torch/_tensor.py"),  # the outputs have no gradient any more
    ("loss", "glprune/model/task.py"),  # they have another shape than when they were checked
    ("metric", "glprune/model/task.py"),
)
_LENGTH = 200  # characters of a message


def describe(error: BaseException) -> str:
    """Return type, message and place of an error in user code, on one line."""
    place, text = _place(error), (error_text(error) or "no message").splitlines()[0][:_LENGTH]
    return f"{type(error).__name__}: {text}{f' at {place}' if place else ''}"


@contextlib.contextmanager
def user_code(
    kind: type[GlpruneError], what: str, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever user code raises into one error; an error of glprune's passes.

    Args:
        kind: The class of the error.
        what: The beginning of its message: which code failed.
        passing: Classes of errors that the caller handles.

    Raises:
        GlpruneError: Of ``kind``: the code raised something, or tried to end the program.
    """
    allowed: tuple[type[BaseException], ...] = (GlpruneError, KeyboardInterrupt, *passing)
    try:
        with _surroundings():
            yield
    except allowed:
        raise
    except BaseException as error:
        raise _noted(kind(f"{what} failed ({describe(error)})."), error) from error


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
    """Turn what the code of a network or a penalty raises, wherever it is called, into a ModelError.

    Both are called in many places. Their code is told from glprune's, whose bugs keep their traceback, by the
    frames of the error.

    Raises:
        ModelError: Such code raised something, or tried to end the program.
    """
    try:
        yield
    except (GlpruneError, KeyboardInterrupt):
        raise
    except BaseException as error:
        kind = _kind_of_code(error)
        if kind is None:
            raise
        text = (
            f"The {kind}'s code failed ({describe(error)}); it ran when it was checked first, so that it "
            "depends on more than its inputs, or on training."
        )
        raise _noted(ModelError(text), error) from error


def _noted(error: GlpruneError, cause: BaseException) -> GlpruneError:
    """Return an error with the notes of its cause: what is left of a run."""
    for note in getattr(cause, "__notes__", ()):
        error.add_note(note)
    return error


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Return to the working directory, which paths are relative to, and give back lost places of modules."""
    folder, places = os.getcwd(), list(sys.path)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path += [place for place in places if place not in sys.path]


def _place(error: BaseException) -> str:
    """Return file and line of the innermost call outside of libraries, else of the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.startswith(_OWN):  # the call itself failed
        return ""
    own = [f for f in frames if not f.filename.startswith((_OWN, *_LIBRARIES, "<"))]
    shown = own[-1:] or frames[-1:]
    return f"{Path(shown[0].filename).name}:{shown[0].lineno}" if shown else ""


def _kind_of_code(error: BaseException | None) -> str | None:
    """Return whose method, a network's or a penalty's, raised an error or the one that caused it."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            kind = _owner(trace.tb_frame)
            if kind is not None:
                return kind
            trace = trace.tb_next
        error = error.__cause__
    return None


def _owner(frame: FrameType) -> str | None:
    """Return whose code a frame runs: a call of a module, a backward pass, or a method of a user's class."""
    code = frame.f_code
    if any(code.co_name == name and code.co_filename.endswith(file) for name, file in _OF_NETWORKS):
        return "network"
    if code.co_filename.startswith((_OWN, *_STANDARD)):
        return None
    bases = {base.__module__ for base in type(frame.f_locals.get("self")).__mro__}
    if "torch.nn.modules.module" in bases and "torch" not in Path(code.co_filename).parts:
        return "network"
    return "penalty" if "glprune.training.penalties" in bases else None
