"""The outputs of a bundle's models on rows, by ONNX Runtime in a process with limits of time and memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from glprune.audit.evaluation.subject import ORIGINAL
from glprune.audit.evaluation.worker import Frame, receive, send
from glprune.audit.isolation import ENDING, Worker
from glprune.audit.limits import SECONDS, running_memory
from glprune.errors import UsageError

if TYPE_CHECKING:
    from glprune.audit.evaluation.rows import Array, Rows
    from glprune.audit.evaluation.subject import Subject

_WORKER = "glprune.audit.evaluation.worker"
_MOST_NAMED = 3  # columns of a row


class StoppedError(UsageError):
    """A model needs more time or memory than it may use, so that nothing can be said of its figures."""

    exit_code = 3


def run_model(subject: Subject, model: str, rows: Rows, seconds: float = SECONDS) -> list[Array]:
    """Return every output of a model on all rows, in the order of the report.

    Args:
        subject: The bundle.
        model: ``final``, ``int8`` or ``original``.
        rows: The rows.
        seconds: Limit of the time for all rows.

    Raises:
        StoppedError: The model needs more time or memory.
        UsageError: The file has another interface, or cannot run the rows.
    """
    run = _Run(subject, model, rows)
    worker = Worker(_WORKER, seconds)
    with worker as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            found = run.outputs(process.stdin, process.stdout, seconds)
        except (BrokenPipeError, ConnectionResetError):  # it ended before it read all
            found = None
        if found is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
    if found is None:
        hint = "; allow more with --timeout, or give fewer rows" if worker.expired else ""
        raise StoppedError(f"{run.where}: {worker.ending(seconds)}{hint}.")
    return found


class _Run:
    """One model on some rows."""

    def __init__(self, subject: Subject, model: str, rows: Rows) -> None:
        self._subject, self._model, self._rows = subject, model, rows
        self._names = [output.name for output in subject.report.export.outputs]
        self.where = f"{model} model"

    def outputs(self, given: IO[bytes], answers: IO[bytes], seconds: float) -> list[Array] | None:
        """Send model and rows to a worker; returns the outputs, None if it ended before it gave them."""
        raw, parts = self._subject.models[self._model], self._subject.plan.inputs
        request = {
            "threads": max(1, min(self._subject.recipe.threads, os.cpu_count() or 1)),
            "seconds": seconds,
            "memory": running_memory(len(raw), max(sum(x.nbytes for x in b) for b in self._rows.batches)),
            "outputs": self._names,
        }
        send(given, request, raw)
        loaded = receive(answers)
        if loaded is None:
            return None
        self._check_interface(loaded[0])
        collected: list[list[Array]] = [[] for _ in self._names]
        start = 0
        for batch in self._rows.select(parts, self._subject.wanted(self._model)):
            send(given, {}, save({name: np.asarray(x, order="C") for name, x in batch.items()}))
            answer = receive(answers)
            if answer is None:
                return None
            for values, found in zip(collected, self._arrays(answer, start), strict=True):
                values.append(found)
            start += len(next(iter(batch.values())))
        return [_joined(values) for values in collected]

    def _check_interface(self, loaded: Mapping[str, Any]) -> None:
        if "what" in loaded:
            self._refuse_memory(loaded)
            raise UsageError(f"{self.where}: ONNX Runtime rejects it ({loaded['what']}).")
        inputs, outputs = loaded["inputs"], loaded["outputs"]
        parts = [part.name for part in self._subject.plan.inputs]
        if set(inputs) - set(parts) or set(self._names) - set(outputs):
            raise UsageError(
                f"{self.where}: it has inputs {', '.join(inputs)} and outputs {', '.join(outputs)}, the "
                f"report {', '.join(parts)} and {', '.join(self._names)}; give the ONNX file of the same "
                "network."
            )

    def _arrays(self, answer: Frame, start: int) -> list[Array]:
        """Return the outputs of a batch that begins at a row."""
        header, content = answer
        if "what" not in header:
            found = load(content)
            return [found[str(n)] for n in range(len(self._names))]
        self._refuse_memory(header)
        row, what = header["row"], header["what"]
        if row is None:
            raise UsageError(f"{self.where}: it cannot run these rows ({what}).")
        place = self._rows.place(start + row)
        wrong = [self._number(*place) for place in header["wrong"][:_MOST_NAMED]]
        if wrong:
            raise UsageError(
                f"{self.where}: {self._rows.source}: {' and '.join(wrong)} in {place}, which the network "
                f"has no entry for ({what}); correct or drop the row."
            )
        hint = "is it the file of the same original?" if self._model == ORIGINAL else "drop the row."
        raise UsageError(f"{self.where}: {self._rows.source}: it cannot run {place} ({what}); {hint}")

    def _refuse_memory(self, header: Mapping[str, Any]) -> None:
        if header.get("memory"):
            raise StoppedError(
                f"{self.where}: stopped: it needs more memory than a file of its size may use."
            )

    def _number(self, name: str, index: Sequence[int], value: int) -> str:
        """Name a number of a row by its column."""
        number = [part.name for part in self._subject.plan.inputs].index(name)
        axis, wanted = self._subject.plan.inputs[number].axis, self._subject.wanted(self._model)[number]
        if len(index) == 1 or (axis is not None and len(index) > 1):
            position = index[0 if axis is None else axis % (len(index) + 1) - 1]
            column = position if wanted is None else int(wanted[position])
            if column in self._rows.names[number]:
                return f"column {self._rows.names[number][column]!r} holds {value}"
        return f"input {name!r} holds {value} at position {', '.join(str(n + 1) for n in index)}"


def _joined(values: Sequence[Array]) -> Array:
    if any(x.shape[1:] != values[0].shape[1:] for x in values):
        raise UsageError("the outputs change their shape from batch to batch; pad the rows to one length.")
    return np.concatenate(values)
