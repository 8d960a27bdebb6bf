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

from glprune.export.exporters import (
    _EXPORTERS,
    _Job,
    chosen_exporters,
    first_line,
)

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import ExporterChoice


@dataclass(frozen=True)
class FailedLayer:
    """The layer that cannot be exported.

    Attributes:
        name: The layer and its class, in words.
        reasons: First line of the error of each exporter.
    """

    name: str
    reasons: tuple[str, ...]


def failing_layer(
    network: nn.Module, example: Inputs, opset: int, exporter: ExporterChoice = "auto"
) -> FailedLayer | None:
    """Find the deepest layer that cannot be exported by itself; None where every layer can.

    Layers are exported alone, on the inputs they get in one forward pass, from the outermost
    inwards, descending into the first that fails.

    Args:
        network: The network whose export failed.
        example: Example inputs.
        opset: Version of the default operator set.
        exporter: The exporter to try; ``auto`` tries both.
    """
    calls = _captured_calls(network, example)
    culprit, children = None, _called_children(network, "", calls)
    while children:
        found = None
        for name, child in children:
            reasons = _failures_alone(child, *calls[child], opset, exporter)
            if reasons:
                shown = name.removeprefix("network.")
                found = FailedLayer(f'layer "{shown}" ({type(child).__name__})', reasons), name, child
                break
        if found is None:
            break
        culprit = found[0]
        children = _called_children(found[2], f"{found[1]}.", calls)
    return culprit


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _captured_calls(network: nn.Module, example: Inputs) -> dict[nn.Module, _Call]:
    """The arguments of every submodule's first call in a forward pass."""
    calls: dict[nn.Module, _Call] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, (args, kwargs))

    handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in network.modules()]
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
    """Children that were called; lists and dicts of modules are looked through."""
    found = []
    for name, child in module.named_children():
        if child in calls:
            found.append((prefix + name, child))
        else:
            found += _called_children(child, f"{prefix}{name}.", calls)
    return found


class _Alone(nn.Module):
    """A layer as a function of the tensors among its arguments, returning tensors alone."""

    def __init__(self, layer: nn.Module, spec: pytree.TreeSpec, leaves_: Sequence[Any]) -> None:
        super().__init__()
        self.layer, self.spec = layer, spec
        self.constants = [None if isinstance(x, Tensor) else x for x in leaves_]
        self.places = [n for n, x in enumerate(leaves_) if isinstance(x, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(self.constants)
        for place, tensor in zip(self.places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, self.spec)
        return tuple(y for y in pytree.tree_leaves(self.layer(*args, **kwargs)) if isinstance(y, Tensor))


def _failures_alone(
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opset: int,
    exporter: ExporterChoice,
) -> tuple[str, ...]:
    """First line of each exporter's error on one layer; empty where one of them can export it."""
    found, spec = pytree.tree_flatten((args, kwargs))
    tensors = tuple(x for x in found if isinstance(x, Tensor))
    alone = _Alone(layer, spec, found)
    try:
        with torch.no_grad():
            outputs = alone(*tensors)
    except Exception:  # a layer that does not run again on what it was given tells nothing
        return ()
    if not tensors or not outputs:
        return ()
    job = _Job(
        alone,
        tensors,
        tuple(f"in_{n}" for n in range(len(tensors))),
        tuple(f"out_{n}" for n in range(len(outputs))),
        tuple({} for _ in tensors),
        opset,
    )
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        for name, export in reversed(chosen_exporters(exporter, _EXPORTERS)):  # the quicker one first
            try:
                export(job, Path(folder) / "layer.onnx")
                return ()
            except Exception as error:  # exporters raise whatever they meet
                reasons.append(f"{name}: {first_line(error)}")
    return tuple(reasons)
