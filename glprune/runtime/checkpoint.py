"""What a run has done so far, kept so that one that was stopped can go on.

A run is one function of its recipe, model and data, so its long steps come in the same order every time.
The journal keeps their results in that order. A run that goes on makes the same calls and is handed the
results instead of working for them, up to where the journal ends: it arrives where an undisturbed run does,
to the bit.

A checkpoint is a JSON file that states its own digest, beside the tensors it names, one safetensors file for
each step, called by its digest. Files are written aside, synced and renamed; the last two checkpoints are
kept, and the older one serves where the newer one does not hold what it says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from glprune.errors import ModelError, UsageError

if TYPE_CHECKING:
    from glprune.runtime.process_group import ProcessGroup

_FORMAT = "glprune.checkpoint/1"
_PATTERN = "checkpoint-*.json"
_KEPT = 2
_SECONDS, _SHARE = 1.0, 0.05  # at most so often, and of a run's time at most so much
_SUFFIX = ".safetensors"


@dataclass(eq=False)
class Step:
    """The result of one step.

    Attributes:
        name: What kind of step it was.
        asked: What it was asked for, JSON values: a run that goes on must ask for the same.
        facts: Its result, JSON values.
        tensors: Its tensors, as long as no file holds them.
        file: The digest of the file that does; None where there is none.
    """

    name: str
    key: Mapping[str, Any]
    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    file: str | None = None


class CheckpointLog:
    """The results of a run's long steps, in order.

    Args:
        folder: Where checkpoints are kept; without one nothing is.
        identity: What the run is a function of, name -> value, JSON values; see :meth:`resume`.
    """

    def __init__(self, folder: Path | None = None, identity: Mapping[str, Any] | None = None) -> None:
        self.folder, self.identity = folder, dict(identity or {})
        self.seconds: dict[str, float] = {}
        self._records: list[Step] = []
        self._next = self._number = 0
        self._due = time.monotonic() + _SECONDS

    def resume(self) -> int:
        """Take over the newest checkpoint that holds what it says; returns the number of its steps.

        Raises:
            UsageError: It is of a run of another recipe, model, data or software.
        """
        assert self.folder is not None  # a journal without one is not resumed
        for path in reversed(checkpoints(self.folder)):
            content = _is_intact(path)
            if content is None:
                continue
            self._check_identity(content["identity"])
            self._records = [Step(**record) for record in content["records"]]
            self.seconds = content["seconds"]
            break
        self._number = max((_checkpoint_number(p) for p in checkpoints(self.folder)), default=0)
        return len(self._records)

    def load_step(self, name: str, asked: Mapping[str, Any]) -> Step | None:
        """The record of the next step if it was this one, asked for the same; else None: it is to be done."""
        if self._next < len(self._records):
            record = self._records[self._next]
            if (record.name, record.key) == (name, dict(asked)):
                self._next += 1
                return record
        return None

    def save_step(
        self,
        name: str,
        asked: Mapping[str, Any],
        facts: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        since: int | None = None,
    ) -> Step:
        """Keep the result of a step that was done, and write a checkpoint where one is due.

        Args:
            name: What kind of step it was.
            asked: What it was asked for.
            facts: Its result, JSON values.
            tensors: Its tensors; they must not change any more.
            since: A place (:attr:`place`): the steps done since were parts of this one and are dropped.
        """
        record = Step(name, dict(asked), facts, dict(tensors or {}))
        if self.folder is not None:
            # what lies behind was asked for by a run that went another way
            self._records[self._next if since is None else since :] = [record]
            self._next = len(self._records)
            self.save_if_due()
        return record

    @property
    def step_folder(self) -> int:
        """How many steps lie behind."""
        return self._next

    def weights(self, record: Step) -> dict[str, Tensor]:
        """The tensors of a record; empty once they were let go."""
        if record.file is None or self.folder is None:
            return record.tensors
        return safetensors.torch.load_file(_read_tensors(self.folder) / f"{record.file}{_SUFFIX}")

    def drop_tensors(self, record: Step, prefix: str) -> None:
        """Keep a record without the tensors of a prefix: nothing will start from them again."""
        if self.folder is not None:
            left = {n: t for n, t in self.weights(record).items() if not n.startswith(prefix)}
            record.tensors, record.file = left, None

    def open_step(self, name: str, asked: Mapping[str, Any]) -> Step:
        """The record of a step of many parts, whose facts the caller adds to as they are done."""
        return self.load_step(name, asked) or self.save_step(name, asked, {})

    def save_if_due(self) -> None:
        """Write a checkpoint if the last one is old enough."""
        if self.folder is not None and time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write a checkpoint and drop all but the last two.

        Raises:
            OSError: There is no room, or the folder cannot be written to.
        """
        if self.folder is None or not self._records:
            return
        start = time.monotonic()
        for record in self._records:
            if record.tensors:
                record.file, record.tensors = _write_tensors(record.tensors, self.folder), {}
        self._number += 1
        write_durably(
            self.folder / _PATTERN.replace("*", f"{self._number:06d}"), _with_digest(self._content())
        )
        _remove_old(self.folder)
        now = time.monotonic()
        self._due = now + max(_SECONDS, (now - start) / _SHARE)

    def _content(self) -> dict[str, Any]:
        records = [{"name": r.name, "key": r.key, "values": r.values, "file": r.file} for r in self._records]
        return {
            "format": _FORMAT,
            "identity": self.identity,
            "seconds": self.seconds,
            "records": records,
        }

    def _check_identity(self, found: Mapping[str, Any]) -> None:
        unlike = [key for key, value in self.identity.items() if found.get(key) != value]
        if unlike:
            assert self.folder is not None  # it was read from there
            raise UsageError(
                f"{self.folder}: the stopped run had another {' and another '.join(unlike)}; go on with the "
                "same, or start anew with --overwrite."
            )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a safetensors file holds them."""
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob(_PATTERN), key=_checkpoint_number)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: aside, synced, renamed, the folder synced."""
    aside = path.with_name(f".{path.name}.new")
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_tensors(folder: Path) -> Path:
    return folder / "tensors"


def _checkpoint_number(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> str:
    """Write tensors to a file called by its digest, unless it is there."""
    content = pack_tensors(tensors)
    name = hashlib.sha256(content).hexdigest()
    path = _read_tensors(folder) / f"{name}{_SUFFIX}"
    if not _is_complete(folder, name):
        path.parent.mkdir(exist_ok=True)
        write_durably(path, content)
    return name


def _with_digest(content: Mapping[str, Any]) -> bytes:
    return json.dumps({"sha256": _digest_line(content), "content": content}).encode()


def _digest_line(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _checked_content(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint file; None where it is not what was written."""
    try:
        found = json.loads(path.read_bytes())
        content = found["content"]
        whole = found["sha256"] == _digest_line(content) and content["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if whole else None


def _is_intact(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint whose tensors are all as they were written, or None."""
    content = _checked_content(path)
    if content is None or not all(_is_complete(path.parent, name) for name in _tensor_files(content)):
        return None
    return content


def _tensor_files(content: Mapping[str, Any]) -> Iterator[str]:
    return (record["file"] for record in content["records"] if record["file"] is not None)


def _is_complete(folder: Path, name: str) -> bool:
    try:
        with (_read_tensors(folder) / f"{name}{_SUFFIX}").open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == name
    except OSError:
        return False


def _remove_old(folder: Path) -> None:
    """Drop all but the last two checkpoints and the tensors neither of them names."""
    found = checkpoints(folder)
    for old in found[:-_KEPT]:
        old.unlink()
    contents = filter(None, map(_checked_content, found[-_KEPT:]))
    named = {name for content in contents for name in _tensor_files(content)}
    for path in _read_tensors(folder).glob(f"*{_SUFFIX}"):
        if path.stem not in named:
            path.unlink()


class DistributedCheckpoint(CheckpointLog):
    """The first process's journal, heard by all; what is kept must be the same in every process."""

    def __init__(self, own: CheckpointLog, members: ProcessGroup) -> None:
        super().__init__()
        self._own, self._crew = own, members

    @property
    def step_folder(self) -> int:
        """How many steps lie behind."""
        return self._own.step_folder

    def load_step(self, name: str, asked: Mapping[str, Any]) -> Step | None:
        """What the first process recalls."""
        record = self._own.load_step(name, asked)
        sent = self._crew.broadcast_object(
            None if record is None else (record.values, self._own.weights(record))
        )
        if sent is None or self._crew.is_main:
            return record
        return Step(name, dict(asked), sent[0], sent[1])

    def save_step(
        self,
        name: str,
        asked: Mapping[str, Any],
        facts: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        since: int | None = None,
    ) -> Step:
        """Keep a result that all processes came to.

        Raises:
            ModelError: This process came to another one.
        """
        own = repr(sorted(facts.items())), tensors_digest(tensors or {})
        if self._crew.broadcast_object(own) != own:
            raise ModelError(
                f"weights are not those of process 0 after the same step ({name}); run all processes on one "
                "kind of machine with the same versions."
            )
        return self._own.save_step(name, asked, facts, tensors, since)

    def weights(self, record: Step) -> dict[str, Tensor]:
        """The tensors of a record."""
        return self._own.weights(record)

    def drop_tensors(self, record: Step, prefix: str) -> None:
        """As the first process's journal does."""
        self._own.drop_tensors(record, prefix)

    def save_if_due(self) -> None:
        """As the first process's journal does."""
        self._own.save_if_due()
