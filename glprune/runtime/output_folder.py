"""The folder of an unfinished run, next to its output: bundle, checkpoints and a lock.

The output appears completely, by one rename, or not at all. The checkpoints of a stopped run stay in
``<output>.unfinished``, whatever stopped it; only a run that any repetition would end alike leaves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from glprune._files import is_utf8
from glprune.errors import RecipeError, TargetError, UsageError, note_written
from glprune.runtime.checkpoint import CheckpointLog, checkpoints, sync_folder
from glprune.schema.bundle import REPORT

_SUFFIX = ".unfinished"
_LOCK, _STAGE, _OLD = "lock", "bundle", "old"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_UNWRITABLE = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_FINAL = (RecipeError, TargetError)  # the same recipe would end so again
_KEPT = "Finished work is kept in"


class OutputFolder:
    """The folder of an unfinished run.

    Attributes:
        out: The output.
        folder: ``<output>.unfinished``.
        stage: Folder of the bundle's files written so far.
    """

    def __init__(self, out: Path, resume: bool) -> None:
        self.out, self.folder, self.resume = out, unfinished_path(out), resume
        self.stage = self.folder / _STAGE
        self._log = CheckpointLog()

    def checkpoint_log(self, identity: Mapping[str, Any]) -> CheckpointLog:
        """Open the log of the run; a resumed run starts with the steps of the stopped one.

        Raises:
            UsageError: The stopped run had another recipe, model or data.
        """
        log = CheckpointLog(self.folder, identity)
        if self.resume:
            log.resume()
        self._log = log
        return log

    def stop(self, error: BaseException) -> bool:
        """Write a last checkpoint and add a note to the error that ended the run: what is left of it.

        Returns:
            Whether checkpoints are kept: those of this run, or those of a stopped one that it did not reach.
        """
        if not self.stage.exists():
            note_written(error, self.out)
            return False
        if self._log.folder is not None and isinstance(error, _FINAL):
            return False
        with contextlib.suppress(OSError, MemoryError):
            self._log.save()
        if self._log.folder is not None and checkpoints(self.folder):
            error.add_note(f"{_KEPT} {self.folder}; continue with --resume.")
        return True


def unfinished_path(out: Path) -> Path:
    """Return the folder in which a run works before its output is complete."""
    return out.with_name(out.name + _SUFFIX)


def is_resumable(out: Path) -> bool:
    """Whether a stopped run left checkpoints."""
    return bool(checkpoints(unfinished_path(out)))


def keeps_work(error: BaseException) -> bool:
    """Whether the run that an error ended keeps what it had done."""
    return any(note.startswith(_KEPT) for note in getattr(error, "__notes__", ()))


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that exists, before any work is done.

    Raises:
        UsageError: The folder exists and ``overwrite`` is not set, it is not a bundle, or its path cannot be
            passed to libraries that take UTF-8.
    """
    if not is_utf8(out.absolute()):
        raise UsageError(f"{out.absolute()}: the path is not UTF-8; choose another --out.")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out} exists; choose another --out or pass --overwrite.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / REPORT).exists()):
        raise UsageError(f"{out} is not a bundle (it holds no {REPORT}); it is not overwritten.")


@contextlib.contextmanager
def open_output_folder(out: Path, overwrite: bool, resume: bool) -> Iterator[OutputFolder]:
    """Lock the output, yield a folder to work in, and move the bundle to ``out`` if the block succeeds.

    Args:
        out: The output folder.
        overwrite: Replace an older bundle, and delete the checkpoints of a stopped run.
        resume: Continue from the checkpoints of a stopped run, if there are any.

    Raises:
        UsageError: The output exists, is locked by another run, or cannot be written (the disk may be full).
    """
    check_free(out, overwrite)
    output = OutputFolder(out, resume)
    with _locked(output.folder, out):
        _restore(output.folder, out)
        _check_unfinished(out, overwrite, resume)
        keep = True
        try:
            with _write_errors(out):
                _empty(output.stage)
                yield output
                check_free(out, overwrite)
                _sync(output.stage)
                _replace(output.stage, out, output.folder)
            keep = False
        except BaseException as error:
            keep = output.stop(error)
            raise
        finally:
            _restore(output.folder, out)
            gone = output.stage if keep and is_resumable(out) else output.folder
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Create a folder and hold its lock.

    Raises:
        UsageError: Another run holds the lock, or the folder cannot be created.
    """
    if folder.is_symlink():  # its target must not be emptied
        raise UsageError(f"{folder} is a symbolic link; remove it, or choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise UsageError(f"{out}: another run is writing it; wait, or choose another --out.") from None
    except OSError as error:
        raise UsageError(
            f"{out.parent}: cannot write here ({error.strerror}); choose another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_unfinished(out: Path, overwrite: bool, resume: bool) -> None:
    """Refuse to use or to delete the checkpoints of a stopped run without an option that says so."""
    if resume or not is_resumable(out):
        return
    if not overwrite:
        raise UsageError(
            f"{unfinished_path(out)} holds a run that was stopped; continue with --resume, or start again "
            "with --overwrite."
        )
    for path in checkpoints(unfinished_path(out)):
        path.unlink()


@contextlib.contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Turn errors of writing, of any library, into a one-line message."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = _not_writable(error)
        if reason is None:
            raise
        hint = "; free some space" if reason[0] in _FULL else ""
        raise UsageError(f"{out}: cannot be written ({os.strerror(reason[0])}){hint}.") from error


def _not_writable(error: Exception) -> tuple[int] | None:
    """Return the error number if the error says that a file could not be written, else None."""
    if isinstance(error, OSError):
        number = error.errno
    else:  # safetensors gives the number in its text only
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    return (number,) if number in _UNWRITABLE else None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sync(folder: Path) -> None:
    """Sync every file of a folder to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def _replace(stage: Path, out: Path, scratch: Path) -> None:
    """Move ``stage`` to ``out``; keep an older bundle in ``scratch`` until the new one is in place."""
    if out.exists():
        out.rename(scratch / _OLD)
    try:
        stage.rename(out)
    except OSError:
        _restore(scratch, out)
        raise
    sync_folder(out.parent)


def _restore(scratch: Path, out: Path) -> None:
    """Move the older bundle back if a run ended before the new one was in place."""
    if (scratch / _OLD).exists() and not out.exists():
        (scratch / _OLD).rename(out)
