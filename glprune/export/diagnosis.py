"""Find the layer that an exporter cannot write."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from glprune.export.exporters import EXPORTERS, ExportRequest, chosen_exporters, root_cause

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import ExporterChoice


@dataclass(frozen=True)
class FailedLayer:
    """The layer that cannot be exported.

    Attributes:
        name: Name and class of the layer, as an error message gives them.
        reasons: First line of the error of each exporter.
    """

    name: str
    reasons: tuple[str, ...]


def failing_layer(
    network: nn.Module, example: Inputs, opset: int, exporter: ExporterChoice = "auto"
) -> FailedLayer | None:
    """Find the deepest layer that cannot be exported by itself; None where every layer can.

    Each layer is exported alone, on the inputs that it gets in one forward pass. The search starts at the
    outermost layers and descends into the first that fails.

    Args:
        network: The network whose export failed.
        example: Example inputs.
        opset: Version of the default operator set.
        exporter: The exporter to try; ``auto`` tries both.
    """
    calls = _captured_calls(network, example)
    deepest, children = None, _called_children(network, "", calls)
    while children:
        failure = _first_failure(children, calls, opset, exporter)
        if failure is None:
            break
        name, layer, deepest = failure
        children = _called_children(layer, f"{name}.", calls)
    return deepest


_Call = tuple[tuple[Any, ...], dict[str, Any]]
_NamedLayers = Sequence[tuple[str, nn.Module]]


def _first_failure(
    layers: _NamedLayers, calls: Mapping[nn.Module, _Call], opset: int, exporter: ExporterChoice
) -> tuple[str, nn.Module, FailedLayer] | None:
    """Return the first of some layers that cannot be exported alone."""
    for name, layer in layers:
        reasons = _errors_alone(layer, calls[layer], opset, exporter)
        if reasons:
            shown = name.removeprefix("network.")
            return name, layer, FailedLayer(f'layer "{shown}" ({type(layer).__name__})', reasons)
    return None


def _captured_calls(network: nn.Module, example: Inputs) -> dict[nn.Module, _Call]:
    """Record the arguments of every submodule's first call in a forward pass."""
    calls: dict[nn.Module, _Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, (args, kwargs))

    handles = [m.register_forward_pre_hook(record, with_kwargs=True) for m in network.modules()]
    try:
        with torch.no_grad():
            network(*example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _called_children(
    module: nn.Module, prefix: str, calls: Mapping[nn.Module, _Call]
) -> list[tuple[str, nn.Module]]:
    """List the children that were called; containers that were not called are searched for theirs."""
    found = []
    for name, child in module.named_children():
        if child in calls:
            found.append((prefix + name, child))
        else:
            found += _called_children(child, f"{prefix}{name}.", calls)
    return found


class _LayerAlone(nn.Module):
    """A layer as a function from the tensors among its arguments to the tensors that it returns."""

    def __init__(self, layer: nn.Module, spec: pytree.TreeSpec, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.layer, self.spec = layer, spec
        self.constants = [None if isinstance(x, Tensor) else x for x in arguments]
        self.positions = [n for n, x in enumerate(arguments) if isinstance(x, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(self.constants)
        for position, tensor in zip(self.positions, tensors, strict=True):
            filled[position] = tensor
        args, kwargs = pytree.tree_unflatten(filled, self.spec)
        return tuple(y for y in pytree.tree_leaves(self.layer(*args, **kwargs)) if isinstance(y, Tensor))


def _errors_alone(layer: nn.Module, call: _Call, opset: int, exporter: ExporterChoice) -> tuple[str, ...]:
    """Return the first line of each exporter's error on one layer; empty where one of them can export it."""
    arguments, spec = pytree.tree_flatten(call)
    tensors = tuple(x for x in arguments if isinstance(x, Tensor))
    alone = _LayerAlone(layer, spec, arguments)
    try:
        with torch.no_grad():
            outputs = alone(*tensors)
    except Exception:  # noqa: BLE001 - the user's layer may raise anything; it then says nothing about the export
        return ()
    if not tensors or not outputs:
        return ()
    request = ExportRequest(
        alone,
        tensors,
        tuple(f"in_{n}" for n in range(len(tensors))),
        tuple(f"out_{n}" for n in range(len(outputs))),
        tuple({} for _ in tensors),
        opset,
    )
    return _exporter_errors(request, exporter)


def _exporter_errors(request: ExportRequest, exporter: ExporterChoice) -> tuple[str, ...]:
    """Try the exporters, the faster one first; empty where one of them succeeds."""
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        for name, export in reversed(chosen_exporters(exporter, EXPORTERS)):
            try:
                export(request, Path(folder) / "layer.onnx")
                return ()
            except Exception as error:  # noqa: BLE001 - exporters raise errors of any class
                errors.append(f"{name}: {root_cause(error)}")
    return tuple(errors)
