"""Write a network to one self-contained ONNX file and check the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from glprune.errors import ModelError
from glprune.export.diagnosis import failing_layer
from glprune.export.exporters import (
    EXPORTERS,
    DynamicAxes,
    ExportRequest,
    chosen_exporters,
    label_axes,
    root_cause,
)
from glprune.export.onnx_runtime import EXPORT_TOLERANCE, OnnxFile
from glprune.export.shrink import shrink, strip_exporter_metadata
from glprune.model.consistency import BATCHES, repeat_rows
from glprune.model.outputs import leaves
from glprune.pruning.verification import difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from glprune.data.splits import Inputs
    from glprune.schema.recipe import ExporterChoice


class ColumnSelector(nn.Module):
    """A slim network behind the original signature: it selects the kept columns first.

    ``index_select`` exports to a plain Gather with a constant index, which an auditor can read;
    indexing with a list would become GatherND.

    Args:
        network: The slim network.
        columns: Kept positions along each input's feature axis, int64.
        axes: The feature axis of each input; None passes an input unchanged.
    """

    def __init__(self, network: nn.Module, columns: Sequence[Tensor], axes: Sequence[int | None]) -> None:
        super().__init__()
        self.network = network
        self.axes = tuple(axes)
        for index, kept in enumerate(columns):
            self.register_buffer(f"columns_{index}", kept.clone())

    def forward(self, *inputs: Tensor) -> Any:
        """Run the slim network on the kept columns of full inputs."""
        selected = [
            x if axis is None else x.index_select(axis, self.get_buffer(f"columns_{index}"))
            for index, (x, axis) in enumerate(zip(inputs, self.axes, strict=True))
        ]
        return self.network(*selected)


@dataclass(frozen=True)
class OnnxSignature:
    """Inputs, outputs and operator set of an ONNX file, and the exporter that writes it.

    Attributes:
        inputs: Name of each input.
        outputs: Name of each output.
        opset: Version of the default operator set.
        dynamic: Input -> axis -> label of further axes of any length; the batch axis is always dynamic.
        exporter: The only exporter to try; ``auto`` tries both.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    opset: int
    dynamic: DynamicAxes = field(default_factory=dict)
    exporter: ExporterChoice = "auto"

    def request(self, network: nn.Module, example: Inputs) -> ExportRequest:
        """Return the request to export a network with this signature."""
        axes = [
            label_axes(x, self.dynamic.get(name, {})) for x, name in zip(example, self.inputs, strict=True)
        ]
        return ExportRequest(
            network, example, tuple(self.inputs), tuple(self.outputs), tuple(axes), self.opset
        )


@dataclass(frozen=True)
class FileVariants:
    """What may change so that a file fits a size limit.

    Attributes:
        metadata: What may be written to the model's ``metadata_props``, the fullest first.
        limit: Bytes the file should not exceed; None accepts any size.
    """

    metadata: Sequence[Mapping[str, str]] = ({},)
    limit: int | None = None

    def accepts(self, raw: bytes) -> bool:
        """Whether a file is within the limit."""
        return self.limit is None or len(raw) <= self.limit


@dataclass(frozen=True)
class ExportResult:
    """How a file was written.

    Attributes:
        exporter: ``dynamo`` or ``torchscript``.
        choice: Index of the metadata that the file carries.
    """

    exporter: str
    choice: int


_ANY_SIZE = FileVariants()


def export_onnx(
    network: nn.Module,
    example: Inputs,
    path: Path,
    signature: OnnxSignature,
    variants: FileVariants = _ANY_SIZE,
) -> ExportResult:
    """Export a network with a dynamic batch axis to one file without external data.

    The TorchDynamo exporter is tried first, then the TorchScript one. What exporters write about
    the machine (source paths, stack traces) is removed. While a file is larger than the limit, further
    variants are tried in this order: a shrunk graph, shorter metadata, the other exporter. The first
    variant within the limit is written, or the smallest where none is.

    Args:
        network: The network, in evaluation mode.
        example: Example inputs, each (batch, ...), batch at least 2.
        path: The file to write.
        signature: Inputs, outputs and operator set of the file.
        variants: Metadata of the file and its size limit.

    Raises:
        ModelError: Neither exporter can export the network, or the file fails
            ``onnx.checker``; the message names the layer and carries the first error of each.
    """
    request = signature.request(network, example)
    candidates: list[_Candidate] = []
    failures: list[str] = []
    for exporter, export in chosen_exporters(signature.exporter, EXPORTERS):
        try:
            candidate = _export_candidate(exporter, export, request, path, variants)
            _check_outputs(candidate.raw, request, path)
        except Exception as error:  # exporters raise errors of any class
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file system failed, not the exporter
            failures.append(f"{exporter}: {root_cause(error)}")
            continue
        candidates.append(candidate)
        if variants.accepts(candidate.raw):
            break
    if not candidates:
        raise _export_error(request, failures, signature.exporter)
    smallest = min(candidates, key=lambda candidate: len(candidate.raw))
    path.write_bytes(smallest.raw)
    return smallest.result


@dataclass(frozen=True)
class _Candidate:
    """A checked file that could be written, and how it was made."""

    raw: bytes
    result: ExportResult


def _export_candidate(
    exporter: str,
    export: Callable[[ExportRequest, Path], None],
    request: ExportRequest,
    path: Path,
    variants: FileVariants,
) -> _Candidate:
    """Export with one exporter, choose the variant that fits and check it."""
    export(request, path)
    model = onnx.load(path)
    _check_signature(model, request)
    raw, choice = _choose_variant(model, request.opset, variants)
    onnx.checker.check_model(raw, full_check=True)
    return _Candidate(raw, ExportResult(exporter, choice))


def _check_signature(model: onnx.ModelProto, request: ExportRequest) -> None:
    """Refuse a file whose inputs or outputs are not those of the network."""
    inputs = tuple(i.name for i in model.graph.input)
    missing = [name for name in request.inputs if name not in inputs]
    if missing:
        raise ValueError(f"input {missing[0]!r} is not used by the network; take it out of model.inputs")
    if inputs != request.inputs or tuple(o.name for o in model.graph.output) != request.outputs:
        raise ValueError("the file's inputs and outputs are not those of the network")


def _choose_variant(model: onnx.ModelProto, opset: int, variants: FileVariants) -> tuple[bytes, int]:
    """Return the first variant within the limit, else the smallest, and the index of its metadata."""
    tried = []
    for graph, choice in _graph_variants(model, len(variants.metadata)):
        strip_exporter_metadata(graph, variants.metadata[choice], opset)
        # deterministic bytes: protobuf's default map order is not used by ONNX messages
        raw = graph.SerializeToString(deterministic=True)
        tried.append((raw, choice))
        if variants.accepts(raw):
            break
    return min(tried, key=lambda variant: len(variant[0]))


def _graph_variants(model: onnx.ModelProto, n_metadata: int) -> Iterator[tuple[onnx.ModelProto, int]]:
    """Yield the graph and its shrunk form with each of the metadata; the graph is shrunk only when needed."""
    yield model, 0
    small = shrink(model)
    yield small, 0
    for choice in range(1, n_metadata):
        yield model, choice
        yield small, choice


def _check_outputs(raw: bytes, request: ExportRequest, path: Path) -> None:
    """Refuse a file whose outputs are not the network's, for a row alone or in a small batch."""
    path.write_bytes(raw)
    file = OnnxFile(path)
    for rows in BATCHES:
        inputs = repeat_rows(request.example, rows)
        with torch.no_grad():
            gap = difference(leaves(request.network(*inputs)), file(inputs))
        if not gap <= EXPORT_TOLERANCE:
            raise ValueError(f"its outputs in a batch of {rows} differ from the network's by {gap:.1e}")


def _export_error(request: ExportRequest, failures: Sequence[str], exporter: ExporterChoice) -> ModelError:
    """Name the layer that cannot be exported, where one can be found."""
    layer = failing_layer(request.network, request.example, request.opset, exporter)
    reasons = "; ".join(failures if layer is None else layer.reasons)
    where = f": {layer.name}" if layer is not None else ""
    return ModelError(f"The network cannot be exported to ONNX{where} ({reasons}).")
