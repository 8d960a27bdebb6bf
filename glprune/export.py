"""Write a network to one self-contained ONNX file and check the file."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from glprune.errors import ModelError
from glprune.units import Inputs

OUTPUT = "prediction"


class Select(nn.Module):
    """A slim network behind the original signature: kept columns are gathered first.

    ``index_select`` exports to a plain Gather with a constant index, which an auditor can read;
    indexing with a list would become GatherND.

    Args:
        network: The slim network.
        columns: Kept positions along each input's feature axis, int64.
        axes: The feature axis of each input.
    """

    def __init__(self, network: nn.Module, columns: Sequence[Tensor], axes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.axes = tuple(axes)
        for place, kept in enumerate(columns):
            self.register_buffer(f"columns_{place}", kept.clone())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the slim network on the kept columns of full inputs."""
        chosen = [
            x.index_select(axis, self.get_buffer(f"columns_{place}"))
            for place, (x, axis) in enumerate(zip(inputs, self.axes, strict=True))
        ]
        return self.network(*chosen)


def export_onnx(
    network: nn.Module,
    example: Inputs,
    names: Sequence[str],
    path: Path,
    *,
    opset: int,
    metadata: Mapping[str, str],
) -> str:
    """Export a network with a dynamic batch axis to one file without external data.

    The TorchDynamo exporter is tried first, then the TorchScript one. What exporters add about
    the machine (source paths, stack traces) is stripped.

    Args:
        network: The network, in evaluation mode.
        example: Example inputs, each (batch, ...), batch at least 2.
        names: Name of each input.
        path: The file to write.
        opset: Version of the default operator set.
        metadata: Written to the model's ``metadata_props``.

    Returns:
        The exporter used: ``dynamo`` or ``torchscript``.

    Raises:
        ModelError: Neither exporter can export the network, or the file fails
            ``onnx.checker``; the message carries the first error of each.
    """
    failures = []
    for exporter, export in (("dynamo", _dynamo), ("torchscript", _torchscript)):
        try:
            with _quiet():
                export(copy.deepcopy(network).eval(), example, names, path, opset)
            model = onnx.load(path)
            _clean(model, metadata, opset)
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # exporters raise whatever they meet
            path.unlink(missing_ok=True)
            failures.append(f"{exporter}: {_first_line(error)}")
            continue
        # deterministic bytes: protobuf's default map order is not used by ONNX messages
        path.write_bytes(model.SerializeToString(deterministic=True))
        return exporter
    raise ModelError(f"The network cannot be exported to ONNX ({'; '.join(failures)}).")


def _dynamo(network: nn.Module, example: Inputs, names: Sequence[str], path: Path, opset: int) -> None:
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        network,
        example,
        path,
        dynamo=True,
        external_data=False,
        opset_version=opset,
        input_names=list(names),
        output_names=[OUTPUT],
        dynamic_shapes=_dynamic_shapes(network, example, batch),
        verbose=False,
    )


def _dynamic_shapes(network: nn.Module, example: Inputs, batch: object) -> tuple[object, ...]:
    shapes = tuple({0: batch} for _ in example)
    return (shapes,) if isinstance(network, Select) else shapes


def _torchscript(network: nn.Module, example: Inputs, names: Sequence[str], path: Path, opset: int) -> None:
    torch.onnx.export(
        network,
        example,
        path,
        dynamo=False,
        opset_version=opset,
        input_names=list(names),
        output_names=[OUTPUT],
        dynamic_axes={name: {0: "batch"} for name in [*names, OUTPUT]},
    )


def _clean(model: onnx.ModelProto, metadata: Mapping[str, str], opset: int) -> None:
    """Strip what the exporter says of the machine and write our metadata."""
    found = {o.domain: o.version for o in model.opset_import}
    if found.get("") != opset or set(found) - {""}:
        raise ValueError(f"operator sets {found} instead of {opset}")
    graph = model.graph
    for message in [
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ]:
        message.doc_string = ""
        del message.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' prints, logs and warnings out of the user's terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: Exception) -> str:
    lines: Callable[[str], list[str]] = str.splitlines
    return (lines(str(error).strip()) or [type(error).__name__])[0][:300]
