"""The outputs of a bundle's models on rows, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from glprune.audit.evaluation.subject import ORIGINAL
from glprune.errors import UsageError, first_line

if TYPE_CHECKING:
    from glprune.audit.evaluation.rows import Array, Rows
    from glprune.audit.evaluation.subject import Subject


def run_model(subject: Subject, model: str, rows: Rows) -> list[Array]:
    """Return every output of a model on all rows, in the order of the report.

    Args:
        subject: The bundle.
        model: ``final``, ``int8`` or ``original``.
        rows: The rows.

    Raises:
        UsageError: The file has another interface, or cannot run the rows.
    """
    names = [output.name for output in subject.report.export.outputs]
    where = f"{model} model"
    try:
        session = _session(subject.models[model], subject.recipe.threads)
    except Exception as error:  # noqa: BLE001 - the runtime raises several kinds of its own
        raise UsageError(f"{where}: ONNX Runtime rejects it ({first_line(error, 160)}).") from None
    found = [[i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]]
    parts = [part.name for part in subject.plan.inputs]
    if set(found[0]) - set(parts) or set(names) - set(found[1]):
        raise UsageError(
            f"{where}: it has inputs {', '.join(found[0])} and outputs {', '.join(found[1])}, the report "
            f"{', '.join(parts)} and {', '.join(names)}; give the ONNX file of the same network."
        )
    outputs: list[list[Any]] = [[] for _ in names]
    for batch in rows.select(subject.plan.inputs, subject.wanted(model)):
        try:
            answer = session.run(names, {name: batch[name] for name in found[0]})
        except Exception as error:  # noqa: BLE001 - see above
            hint = "; is it the file of the same original?" if model == ORIGINAL else ""
            raise UsageError(f"{where}: it cannot run these rows ({first_line(error, 160)}){hint}") from None
        for collected, values in zip(outputs, answer, strict=True):
            collected.append(values)
    return [_joined(values) for values in outputs]


def _session(raw: bytes, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, so they need no log
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def _joined(values: Sequence[Array]) -> Array:
    if any(x.shape[1:] != values[0].shape[1:] for x in values):
        raise UsageError("the outputs change their shape from batch to batch; pad the rows to one length.")
    return np.concatenate(values)
