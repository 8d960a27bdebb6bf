"""Checkpoints: the results of a run's long steps, so that a stopped run can be resumed.

A run is a function of its recipe, model and data, so its long steps always come in the same order. The log
keeps their results in that order. A resumed run makes the same calls and gets the stored results, up to where
the log ends: its bundle equals that of an uninterrupted run, bit for bit.

A checkpoint is a JSON file with its own digest, and one safetensors file of tensors for each step, named by
its digest. Files are written under a temporary name, synced and renamed. The last two checkpoints are kept;
the older one is used if the newer one is damaged. A step that is not what the run expects is done again.
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
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel
from torch import Tensor

from glprune.errors import ModelError, UsageError, first_line, is_out_of_memory

if TYPE_CHECKING:
    from glprune.runtime.process_group import ProcessGroup

_Format = Literal["glprune.checkpoint/2"]
_FORMAT: _Format = "glprune.checkpoint/2"
_PATTERN = "checkpoint-*.json"
_KEPT = 2
_SECONDS, _SHARE = 1.0, 0.05  # shortest interval, and largest share of a run's time spent on writing
_SUFFIX = ".safetensors"
_DROPPED = "dropped"


class _StepRecord(BaseModel, strict=True):
    name: str
    key: dict[str, Any]
    values: dict[str, Any]
    file: str | None


class _Content(BaseModel, strict=True):
    format: _Format
    identity: dict[str, Any]
    seconds: dict[str, float]
    records: list[_StepRecord]


@dataclass(eq=False)
class Step:
    """The result of one step.

    Attributes:
        name: Kind of the step.
        key: Its arguments, JSON values; a resumed run must call it with the same.
        values: Its result, JSON values.
        tensors: Its tensors, until a file holds them.
        file: The digest of that file; None if there is none.
    """

    name: str
    key: Mapping[str, Any]
    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    file: str | None = None

    @property
    def dropped(self) -> bool:
        """Whether tensors were dropped, which no later step starts from."""
        return _DROPPED in self.values


class UnusableStepError(UsageError):
    """The stored result of a step is not what this run expects; the search forgets it and all later ones.

    Args:
        step: The step.
        reason: What is wrong with it.
    """

    def __init__(self, step: Step, reason: str) -> None:
        super().__init__(f"the stored result of the step {step.name!r} cannot be used ({reason})")
        self.step = step


@contextlib.contextmanager
def reading(step: Step) -> Iterator[None]:
    """Turn any error about the stored result of a step into one that names it.

    Raises:
        UnusableStepError: A value or tensor is missing or has another type or shape.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UnusableStepError(step, f"{type(error).__name__}: {first_line(error)}") from error


class CheckpointLog:
    """The results of a run's long steps, in order.

    Args:
        folder: Where checkpoints are written; None keeps nothing.
        identity: What the run is a function of, name -> value, JSON values; see ``resume``.

    Attributes:
        seconds: Wall seconds of each stage.
        unusable: Checkpoints that ``resume`` passed over: damaged, or not of this format.
    """

    def __init__(self, folder: Path | None = None, identity: Mapping[str, Any] | None = None) -> None:
        self.folder, self.identity = folder, dict(identity or {})
        self.seconds: dict[str, float] = {}
        self.unusable: list[Path] = []
        self._records: list[Step] = []
        self._next = self._number = 0
        self._stored = 0  # records of a stopped run
        self._written = b""  # the last checkpoint
        self._due = time.monotonic() + _SECONDS

    def resume(self) -> int:
        """Load the newest undamaged checkpoint; return the number of its steps.

        Raises:
            UsageError: It belongs to a run of another recipe, model, data or software.
        """
        assert self.folder is not None  # a log without one is not resumed
        for path in reversed(checkpoints(self.folder)):
            content = _intact_content(path)
            if content is None:
                self.unusable.append(path)
                continue
            self._check_identity(content.identity)
            self._records = [Step(r.name, r.key, r.values, file=r.file) for r in content.records]
            self._stored = len(self._records)
            self.seconds = content.seconds
            break
        self._number = max((_checkpoint_number(p) for p in checkpoints(self.folder)), default=0)
        return len(self._records)

    def load_step(self, name: str, key: Mapping[str, Any]) -> Step | None:
        """Return the stored result of the next step; None if it was another step or had another key."""
        if self._next < len(self._records):
            record = self._records[self._next]
            if (record.name, record.key) == (name, dict(key)):
                self._next += 1
                return record
        return None

    def save_step(
        self,
        name: str,
        key: Mapping[str, Any],
        values: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        since: int | None = None,
    ) -> Step:
        """Store the result of a step, and write a checkpoint if one is due.

        Args:
            name: Kind of the step.
            key: Its arguments.
            values: Its result, JSON values.
            tensors: Its tensors; they must not change later.
            since: A ``position``; the steps stored since then were parts of this one and are dropped.
        """
        record = Step(name, dict(key), values, dict(tensors or {}))
        if self.folder is not None:
            # later steps belong to a run that took another way
            place = self._next if since is None else since
            self._records[place:] = [record]
            self._stored = min(self._stored, place)
            self._next = len(self._records)
            self.save_if_due()
        return record

    @property
    def position(self) -> int:
        """Number of steps stored or loaded so far."""
        return self._next

    def steps(self, start: int, stop: int) -> list[Step]:
        """Return the steps between two positions."""
        return self._records[start:stop]

    def weights(self, record: Step) -> dict[str, Tensor]:
        """Return the tensors of a step; empty if they were dropped."""
        if record.file is None or self.folder is None:
            return record.tensors
        # not mapped: tensors that outlive the run would hold the output folder's file system
        return safetensors.torch.load((_tensor_folder(self.folder) / f"{record.file}{_SUFFIX}").read_bytes())

    def drop_tensors(self, record: Step, prefix: str) -> None:
        """Drop the tensors of a step whose names start with a prefix."""
        if self.folder is not None:
            left = {n: t for n, t in self.weights(record).items() if not n.startswith(prefix)}
            record.tensors, record.file = left, None
            record.values[_DROPPED] = True

    def forget(self, error: UnusableStepError) -> None:
        """Drop an unusable step and all later ones; the search begins again and loads those before it.

        Raises:
            UnusableStepError: No stopped run stored the step, so that it would be the same again.
        """
        place = next((n for n in range(self._stored) if self._records[n] is error.step), None)
        if place is None:
            raise error
        del self._records[place:]
        self._stored, self._next = place, 0

    def open_step(self, name: str, key: Mapping[str, Any]) -> Step:
        """Return the record of a step of many parts; the caller adds values as parts are done."""
        return self.load_step(name, key) or self.save_step(name, key, {})

    def save_if_due(self) -> None:
        """Write a checkpoint if the last one is old enough."""
        if self.folder is not None and time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, unless it would equal the last one, and delete all but the last two.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        if self.folder is None or not self._records:
            return
        start = time.monotonic()
        for record in self._records:
            if record.tensors:
                record.file, record.tensors = _write_tensors(record.tensors, self.folder), {}
        content = _with_digest(self._content())
        if content == self._written:
            return
        self._number += 1
        write_durably(self.folder / _PATTERN.replace("*", f"{self._number:06d}"), content)
        self._written = content
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
        different = [key for key, value in self.identity.items() if found.get(key) != value]
        if different:
            assert self.folder is not None  # it was read from there
            raise UsageError(
                f"{self.folder}: the stopped run had another {' and another '.join(different)}; use the "
                "same, or start again with --overwrite."
            )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file."""
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob(_PATTERN), key=_checkpoint_number)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file completely or not at all: under a temporary name, synced, renamed."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, if the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _tensor_folder(folder: Path) -> Path:
    return folder / "tensors"


def _checkpoint_number(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def _write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> str:
    """Write tensors to a file named by its digest, unless it exists."""
    content = pack_tensors(tensors)
    name = hashlib.sha256(content).hexdigest()
    path = _tensor_folder(folder) / f"{name}{_SUFFIX}"
    if not _is_complete(folder, name):
        path.parent.mkdir(exist_ok=True)
        write_durably(path, content)
    return name


def _with_digest(content: Mapping[str, Any]) -> bytes:
    return json.dumps({"sha256": _digest_line(content), "content": content}).encode()


def _digest_line(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _checked_content(path: Path) -> _Content | None:
    """Return the content of a checkpoint file; None if it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        content = found["content"]
        intact = found["sha256"] == _digest_line(content)
        checked = _Content.model_validate(content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return checked if intact else None


def _intact_content(path: Path) -> _Content | None:
    """Return the content of a checkpoint; None if it or a file of its tensors is damaged."""
    content = _checked_content(path)
    if content is None or not all(_has_tensors(path.parent, name) for name in _tensor_files(content)):
        return None
    return content


def _has_tensors(folder: Path, name: str) -> bool:
    """Whether a file is complete and safetensors can read it."""
    if not _is_complete(folder, name):
        return False
    try:
        with safetensors.safe_open(_tensor_folder(folder) / f"{name}{_SUFFIX}", "pt"):
            return True
    except (OSError, safetensors.SafetensorError):
        return False


def _tensor_files(content: _Content) -> Iterator[str]:
    return (record.file for record in content.records if record.file is not None)


def _is_complete(folder: Path, name: str) -> bool:
    try:
        with (_tensor_folder(folder) / f"{name}{_SUFFIX}").open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == name
    except OSError:
        return False


def _remove_old(folder: Path) -> None:
    """Delete all but the last two checkpoints, and tensors that neither of them uses."""
    found = checkpoints(folder)
    for old in found[:-_KEPT]:
        old.unlink()
    contents = filter(None, map(_checked_content, found[-_KEPT:]))
    named = {name for content in contents for name in _tensor_files(content)}
    for path in _tensor_folder(folder).glob(f"*{_SUFFIX}"):
        if path.stem not in named:
            path.unlink()


class DistributedCheckpoint(CheckpointLog):
    """The log of process 0, shared by all processes; results must be the same in every process."""

    def __init__(self, log: CheckpointLog, process_group: ProcessGroup) -> None:
        super().__init__()
        self._log, self._process_group = log, process_group

    @property
    def position(self) -> int:
        """Number of steps stored or loaded so far."""
        return self._log.position

    def load_step(self, name: str, key: Mapping[str, Any]) -> Step | None:
        """Return the stored result of process 0."""
        record = self._log.load_step(name, key)
        sent = self._process_group.broadcast_object(
            None if record is None else (record.values, self._log.weights(record))
        )
        if sent is None or self._process_group.is_main:
            return record
        return Step(name, dict(key), sent[0], sent[1])

    def save_step(
        self,
        name: str,
        key: Mapping[str, Any],
        values: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        since: int | None = None,
    ) -> Step:
        """Store a result on which all processes agree.

        Raises:
            ModelError: This process has another result than process 0.
        """
        local = repr(sorted(values.items())), tensors_digest(tensors or {})
        if self._process_group.broadcast_object(local) != local:
            raise ModelError(
                f"weights are not those of process 0 after the same step ({name}); run all processes on one "
                "kind of machine with the same versions."
            )
        return self._log.save_step(name, key, values, tensors, since)

    def weights(self, record: Step) -> dict[str, Tensor]:
        """Return the tensors of a step."""
        return self._log.weights(record)

    def drop_tensors(self, record: Step, prefix: str) -> None:
        """See ``CheckpointLog``."""
        self._log.drop_tensors(record, prefix)

    def forget(self, error: UnusableStepError) -> None:
        """See ``CheckpointLog``; all processes found the same."""
        if self._process_group.is_main:
            self._log.forget(error)

    def save_if_due(self) -> None:
        """See ``CheckpointLog``."""
        self._log.save_if_due()
