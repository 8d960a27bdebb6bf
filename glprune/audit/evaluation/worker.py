"""The process that runs a model for ``running``: an ONNX file and batches in, outputs or one error out.

Messages are frames: a line of JSON, with the size of what follows, then so many bytes. Arrays are written as
safetensors, so that whatever a model makes of this process, the other one reads numbers alone.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors.numpy import load, save

from glprune.audit.limits import limit_memory, limit_time
from glprune.errors import error_text, is_out_of_memory

Array = NDArray[Any]
Frame = tuple[dict[str, Any], bytes]
_LENGTH = 200  # characters of the runtime's message
_MOST_TRIED = 256  # numbers of a row that are tried one by one
_NO_MEMORY = ("Failed to allocate memory", "bad alloc")


class RowsError(Exception):
    """A model cannot run some rows.

    Args:
        what: Why.
        row: The first such row of the batch; None: all of them.
        wrong: Input, position and value of whole numbers in it that the model does not take.
        memory: Whether it needs more memory than it may use.
    """

    def __init__(
        self, what: str, row: int | None = None, wrong: Sequence[object] = (), *, memory: bool = False
    ) -> None:
        super().__init__(what)
        self.record = {"what": what, "row": row, "wrong": list(wrong), "memory": memory}


def send(stream: IO[bytes], header: Mapping[str, Any], content: bytes = b"") -> None:
    """Write a frame."""
    stream.write(json.dumps({**header, "size": len(content)}).encode() + b"\n")
    stream.write(content)
    stream.flush()


def receive(stream: IO[bytes]) -> Frame | None:
    """Read a frame; None where the stream ends, within a frame too."""
    line = stream.readline()
    try:
        header: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    content = stream.read(header.get("size", 0))
    return (header, content) if len(content) == header.get("size", 0) else None


def outputs_of(
    session: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Array], start: int = 0
) -> list[Array]:
    """Run rows; if the model fails on them, run them in halves, which need less memory and find a bad row.

    Args:
        session: The model.
        names: Its outputs.
        feed: The inputs.
        start: Number of the first row.

    Raises:
        RowsError: A row fails alone, or an output has no entry for each row.
    """
    rows = len(next(iter(feed.values())))
    try:
        found = [np.asarray(y, order="C") for y in session.run(list(names), dict(feed))]
    except Exception as error:  # noqa: BLE001 - the runtime raises several kinds of its own
        if rows > 1:
            return _in_halves(session, names, feed, start)
        wrong = [*_wrong_numbers(session, names, feed)]
        raise RowsError(_message(error), start, wrong, memory=_lacks_memory(error)) from None
    for name, y in zip(names, found, strict=True):
        if y.ndim == 0 or len(y) != rows:
            raise RowsError(f"output {name!r} has shape {y.shape} for {rows:,} rows")
        if y.dtype.kind not in "fiub":
            raise RowsError(f"output {name!r} holds no numbers")
    return found


def _in_halves(
    session: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Array], start: int
) -> list[Array]:
    half = len(next(iter(feed.values()))) // 2
    first = outputs_of(session, names, {k: x[:half] for k, x in feed.items()}, start)
    second = outputs_of(session, names, {k: x[half:] for k, x in feed.items()}, start + half)
    if any(x.shape[1:] != y.shape[1:] for x, y in zip(first, second, strict=True)):
        raise RowsError("the outputs change their shape from row to row")
    return [np.concatenate(pair) for pair in zip(first, second, strict=True)]


def _wrong_numbers(
    session: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Array]
) -> Iterator[tuple[str, list[int], int]]:
    """Yield the whole numbers of a row that make the model fail where all others are 0."""
    zero = {name: np.zeros_like(x) if x.dtype.kind == "i" else x for name, x in feed.items()}
    if not _runs(session, names, zero):
        return
    places = (
        (name, index) for name, x in feed.items() if x.dtype.kind == "i" for index in np.ndindex(x.shape)
    )
    for _, (name, index) in zip(range(_MOST_TRIED), places, strict=False):
        changed = zero[name].copy()
        changed[index] = feed[name][index]
        if changed[index] and not _runs(session, names, {**zero, name: changed}):
            yield name, list(index[1:]), int(changed[index])


def _runs(session: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Array]) -> bool:
    try:
        session.run(list(names), dict(feed))
    except Exception:  # noqa: BLE001 - the runtime raises several kinds of its own
        return False
    return True


def _message(error: Exception) -> str:
    """Return the runtime's message from its last part on, cut between words."""
    text = " ".join(error_text(error).rpartition("Status Message: ")[2].split()) or type(error).__name__
    return textwrap.shorten(text, _LENGTH, placeholder=" ...")


def _lacks_memory(error: Exception) -> bool:
    return is_out_of_memory(error) or any(words in error_text(error) for words in _NO_MEMORY)


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, so they need no log
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _serve(given: IO[bytes], answers: IO[bytes]) -> None:
    """Load the model of the first frame, then run the rows of each."""
    first = receive(given)
    if first is None:
        return
    request, model = first
    limit_memory(request["memory"])
    limit_time(request["seconds"] * request["threads"])
    try:
        session = _session(model, request["threads"])
    except Exception as error:  # noqa: BLE001 - the runtime raises several kinds of its own
        send(answers, {"what": _message(error), "memory": _lacks_memory(error)})
        return
    inputs = [i.name for i in session.get_inputs()]
    send(answers, {"inputs": inputs, "outputs": [o.name for o in session.get_outputs()]})
    while (frame := receive(given)) is not None:
        feed = {name: x for name, x in load(frame[1]).items() if name in inputs}
        try:
            found = outputs_of(session, request["outputs"], feed)
        except RowsError as error:
            send(answers, error.record)
            return
        send(answers, {}, save({str(n): y for n, y in enumerate(found)}))


def main() -> None:
    """Serve requests of standard input; what the runtime prints goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
