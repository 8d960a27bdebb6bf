"""Write a network to one self-contained ONNX file and check the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from glprune.errors import ModelError
from glprune.export.diagnosis import (
    failing_layer,
)
from glprune.export.exporters import (
    _EXPORTERS,
    DynamicAxes,
    _Job,
    _labelled,
    chosen_exporters,
    first_line,
)
from glprune.export.onnx_runtime import EXPORT_TOLERANCE, OnnxFile
from glprune.export.shrink import shrink, strip_exporter_metadata
from glprune.model.outputs import leaves
from glprune.pruning.verification import difference

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import ExporterChoice


class ColumnSelector(nn.Module):
    """A slim network behind the original signature: kept columns are gathered first.

    ``index_select`` exports to a plain Gather with a constant index, which an auditor can read;
    indexing with a list would become GatherND.

    Args:
        network: The slim network.
        columns: Kept positions along each input's feature axis, int64.
        axes: The feature axis of each input; None passes an input whole.
    """

    def __init__(self, network: nn.Module, columns: Sequence[Tensor], axes: Sequence[int | None]) -> None:
        super().__init__()
        self.network = network
        self.axes = tuple(axes)
        for place, kept in enumerate(columns):
            self.register_buffer(f"columns_{place}", kept.clone())

    def forward(self, *inputs: Tensor) -> Any:
        """Run the slim network on the kept columns of full inputs."""
        chosen = [
            x if axis is None else x.index_select(axis, self.get_buffer(f"columns_{place}"))
            for place, (x, axis) in enumerate(zip(inputs, self.axes, strict=True))
        ]
        return self.network(*chosen)


def export_onnx(
    network: nn.Module,
    example: Inputs,
    names: Sequence[str],
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int,
    metadata: Sequence[Mapping[str, str]] = ({},),
    limit: int | None = None,
    dynamic: DynamicAxes | None = None,
    exporter: ExporterChoice = "auto",
) -> ExportResult:
    """Export a network with a dynamic batch axis to one file without external data.

    The TorchDynamo exporter is tried first, then the TorchScript one. What exporters add about
    the machine (source paths, stack traces) is stripped. Where a file is larger than ``limit``, its graph is
    written tersely, then with leaner metadata, then by the other exporter; the first that fits is taken, and
    the smallest where none does.

    Args:
        network: The network, in evaluation mode.
        example: Example inputs, each (batch, ...), batch at least 2.
        names: Name of each input.
        outputs: Name of each output.
        path: The file to write.
        opset: Version of the default operator set.
        metadata: What may be written to the model's ``metadata_props``, the fullest first.
        limit: Bytes the file should not exceed; None takes what the first exporter gives.
        dynamic: Input -> axis -> label of further axes of any length.
        exporter: The only exporter to try; ``auto`` tries both.

    Raises:
        ModelError: Neither exporter can export the network, or the file fails
            ``onnx.checker``; the message names the layer and carries the first error of each.
    """
    axes = [_labelled(x, (dynamic or {}).get(name, {})) for x, name in zip(example, names, strict=True)]
    job = _Job(network, example, tuple(names), tuple(outputs), tuple(axes), opset)
    failures: list[str] = []
    found: list[tuple[bytes, ExportResult]] = []
    for name, export in chosen_exporters(exporter, _EXPORTERS):
        try:
            export(job, path)
            model = onnx.load(path)
            _check_signature(model, job)
            raw, choice = _written(model, metadata, opset, limit)
            gap = _difference(raw, job, path)
            if found and not gap <= EXPORT_TOLERANCE:  # a file nobody needs is not to be a wrong one
                raise ValueError(f"its outputs differ from the network's by {gap:.1e}")
        except Exception as error:  # exporters raise whatever they meet
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the network's
            failures.append(f"{name}: {first_line(error)}")
            continue
        found.append((raw, ExportResult(name, choice)))
        if limit is None or len(raw) <= limit:
            break
    if found:
        raw, exported = min(found, key=lambda one: len(one[0]))
        path.write_bytes(raw)
        return exported
    culprit = failing_layer(network, example, opset, exporter)
    reasons = "; ".join(failures if culprit is None else culprit.reasons)
    where = f": {culprit.name}" if culprit is not None else ""
    raise ModelError(f"The network cannot be exported to ONNX{where} ({reasons}).")


@dataclass(frozen=True)
class ExportResult:
    """How a file was written.

    Attributes:
        exporter: ``dynamo`` or ``torchscript``.
        choice: Which of the metadata offered it carries.
    """

    exporter: str
    choice: int


def _check_signature(model: onnx.ModelProto, job: _Job) -> None:
    """Refuse a file whose inputs or outputs are not those of the network."""
    found = tuple(i.name for i in model.graph.input)
    missing = [name for name in job.names if name not in found]
    if missing:
        raise ValueError(f"input {missing[0]!r} is not used by the network; take it out of model.inputs")
    if found != job.names or tuple(o.name for o in model.graph.output) != job.outputs:
        raise ValueError("the file's inputs and outputs are not those of the network")


def _written(
    model: onnx.ModelProto, metadata: Sequence[Mapping[str, str]], opset: int, limit: int | None
) -> tuple[bytes, int]:
    """A checked file as bytes, and the metadata chosen for it; see :func:`export_onnx`."""
    tried = []
    for shape, choice in _shapes(model, len(metadata)):
        strip_exporter_metadata(shape, metadata[choice], opset)
        # deterministic bytes: protobuf's default map order is not used by ONNX messages
        raw = shape.SerializeToString(deterministic=True)
        tried.append((raw, choice))
        if limit is None or len(raw) <= limit:
            break
    raw, choice = min(tried, key=lambda one: len(one[0]))
    onnx.checker.check_model(raw, full_check=True)
    return raw, choice


def _shapes(model: onnx.ModelProto, choices: int) -> Iterator[tuple[onnx.ModelProto, int]]:
    """The graph as it is and in fewer bytes with each of the metadata, made when it is asked for."""
    yield model, 0
    lean = shrink(model)
    yield lean, 0
    for choice in range(1, choices):
        yield model, choice
        yield lean, choice


def _difference(raw: bytes, job: _Job, path: Path) -> float:
    """How far outputs of a file are from the network's on the example, at two batch sizes."""
    path.write_bytes(raw)
    file, gap = OnnxFile(path), 0.0
    for rows in (len(job.example[0]), 2):
        given = tuple(x[:rows] for x in job.example)
        with torch.no_grad():
            gap = max(gap, difference(leaves(job.network(*given)), file(given)))
    return gap
