"""The folder a run works in, beside its output: the bundle so far, the journal, and the lock on both.

The output appears whole, by one rename, or not at all. What a run that was stopped had done stays in
``<output>.unfinished``; a run that failed leaves nothing.
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

from glprune.errors import GlpruneError, PeerFailedError, UsageError
from glprune.runtime.checkpoint import CheckpointLog, checkpoints, sync_folder
from glprune.schema.bundle import REPORT

_SUFFIX = ".unfinished"
_LOCK, _STAGE, _OLD = "lock", "bundle", "old"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_UNWRITABLE = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class OutputFolder:
    """What a run works with.

    Attributes:
        folder: ``<output>.unfinished``.
        stage: The bundle's files so far.
    """

    def __init__(self, out: Path, resume: bool) -> None:
        self.folder, self.resume = unfinished_path(out), resume
        self.stage = self.folder / _STAGE
        self._journal = CheckpointLog()

    def checkpoint_log(self, identity: Mapping[str, Any]) -> CheckpointLog:
        """The run's journal, which begins with what a stopped run has done where this one goes on from it.

        Raises:
            UsageError: The stopped run was another one.
        """
        found = CheckpointLog(self.folder, identity)
        if self.resume:
            try:
                found.resume()
            except UsageError as error:
                raise ResumableUsageError(str(error)) from None
        self._journal = found
        return found

    def save(self) -> None:
        """Write a last checkpoint."""
        self._journal.save()


def unfinished_path(out: Path) -> Path:
    """Where a run works whose output is to be ``out``."""
    return out.with_name(out.name + _SUFFIX)


def is_resumable(out: Path) -> bool:
    """Whether a stopped run left anything to go on from."""
    return bool(checkpoints(unfinished_path(out)))


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that exists, before any work is done.

    Raises:
        UsageError: The folder exists and ``overwrite`` is not set, or it is not a bundle.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out} exists; choose another --out or pass --overwrite.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / REPORT).exists()):
        raise UsageError(f"{out} is not a bundle (it holds no {REPORT}); it is not overwritten.")


@contextlib.contextmanager
def open_output_folder(out: Path, overwrite: bool, resume: bool) -> Iterator[OutputFolder]:
    """Lock the output's place, give a workspace, and move the bundle into place when the block ends well.

    Args:
        out: The output folder.
        overwrite: Replace an older bundle there, and drop what a stopped run has done.
        resume: Go on from what a stopped run has done, if there is any.

    Raises:
        UsageError: The place is taken, locked by another run, full, or cannot be written to.
    """
    check_free(out, overwrite)
    space = OutputFolder(out, resume)
    with _locked(space.folder, out):
        _restore(space.folder, out)
        _check_unfinished(out, overwrite, resume)
        keep = True
        try:
            with _error_in_words(out):
                _empty(space.stage)
                yield space
                check_free(out, overwrite)
                _sync(space.stage)
                _replace(space.stage, out, space.folder)
            keep = False
        except (KeyboardInterrupt, PeerFailedError):
            with contextlib.suppress(OSError):
                space.save()
            raise
        except GlpruneError as error:
            keep = isinstance(error, ResumableUsageError)
            raise
        finally:
            gone = space.stage if keep and is_resumable(out) else space.folder
            shutil.rmtree(gone, ignore_errors=True)


class ResumableUsageError(UsageError):
    """The run could not go on for reasons that lie outside of it; what it has done is kept."""


@contextlib.contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Make a folder and hold its lock; the folder goes with the lock if nothing else is in it.

    Raises:
        UsageError: Another run holds it, or the place cannot be written to.
    """
    if folder.is_symlink():  # what lies elsewhere is not emptied
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
    """Neither lose nor use what a stopped run has done without being told to."""
    if resume or not is_resumable(out):
        return
    if not overwrite:
        raise ResumableUsageError(
            f"{unfinished_path(out)} holds a run that was stopped; go on with --resume, or start anew with "
            "--overwrite."
        )
    for path in checkpoints(unfinished_path(out)):
        path.unlink()


@contextlib.contextmanager
def _error_in_words(out: Path) -> Iterator[None]:
    """Say in one line that a file could not be written, whoever tried."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = _not_writable(error)
        if reason is None:
            raise
        mend = "; make room" if reason[0] in _FULL else ""
        on = " and go on with --resume" if is_resumable(out) else ""
        raise ResumableUsageError(
            f"{out}: cannot be written ({os.strerror(reason[0])}){mend}{on}."
        ) from error


def _not_writable(error: Exception) -> tuple[int] | None:
    """The system's reason why a file could not be written; None where that was not it."""
    if isinstance(error, OSError):
        number = error.errno
    else:  # safetensors has it in words alone
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    return (number,) if number in _UNWRITABLE else None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _sync(folder: Path) -> None:
    """Make every file of a folder durable."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def _replace(stage: Path, out: Path, scratch: Path) -> None:
    """Move ``stage`` to ``out``; an older bundle is kept in ``scratch`` until the new one stands."""
    if out.exists():
        out.rename(scratch / _OLD)
    try:
        stage.rename(out)
    except OSError:
        _restore(scratch, out)
        raise
    sync_folder(out.parent)


def _restore(scratch: Path, out: Path) -> None:
    """Put the older bundle back where a run was stopped, or failed, before the new one stood."""
    if (scratch / _OLD).exists() and not out.exists():
        (scratch / _OLD).rename(out)
