"""Rebuild the slim network from a bundle, without pickle, and describe it for the plan."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from glprune._imports import describe, load_callable
from glprune.errors import ModelError
from glprune.model.standardize import Standardize, StandardizedNetwork
from glprune.pruning.ids import Positions
from glprune.pruning.surgery import ConstantFill, PruningPlan
from glprune.schema.bundle import PLAN, WEIGHTS
from glprune.schema.plan import AttributePlan, Axis, InputPlan, Plan, Reader

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet


def make_axes(network: nn.Module, surgery: PruningPlan) -> list[Axis]:
    """Describe kept positions for the plan, in the numbering of the original network."""
    state = network.state_dict()
    return [
        Axis(tensor=name, dim=dim, size=state[name].shape[dim], kept=positions.tolist())
        for (name, dim), positions in sorted(surgery.kept.items())
    ]


def make_readers(groups: GroupSet | None, surgery: PruningPlan) -> list[Reader]:
    """Where the weights leaving an input's columns lie once the tensors were sliced; None has no columns."""
    readers = []
    for slot in groups.units.readers if groups is not None else ():
        positions = surgery.kept.get((slot.tensor, slot.dim))
        columns = slot.unit if positions is None else slot.unit[positions]
        readers.append(Reader(tensor=slot.tensor, dim=slot.dim, columns=columns.tolist()))
    return readers


def make_buffers(network: nn.Module) -> list[str]:
    """Names of the saved tensors that are not parameters."""
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return sorted(set(network.state_dict()) - parameters)


def make_attributes(surgery: PruningPlan) -> list[AttributePlan]:
    """Describe the module attributes that follow the widths."""
    return [
        AttributePlan(module=path, name=name, value=list(value) if isinstance(value, tuple | list) else value)
        for (path, name), value in sorted(surgery.attributes.items())
    ]


def make_constants(surgery: PruningPlan, place: int) -> list[float] | None:
    """What the removed columns of an input are fed inside the network; None where they are cut."""
    padding = surgery.padding.get(place)
    return None if padding is None else padding.values.double().tolist()


def _surgery(plan: Plan) -> PruningPlan:
    return PruningPlan(
        kept={(a.tensor, a.dim): Positions(torch.tensor(a.kept, dtype=torch.int64)) for a in plan.axes},
        attributes={
            (a.module, a.name): tuple(a.value) if isinstance(a.value, list) else a.value
            for a in plan.attributes
        },
        padding={
            place: ConstantFill(place, part.axis, torch.tensor(part.kept, dtype=torch.int64), _values(part))
            for place, part in enumerate(plan.inputs)
            if part.constants is not None and part.axis is not None
        },
    )


def _values(part: InputPlan) -> Tensor:
    return torch.tensor(part.constants, dtype=torch.float64)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's tensors as safetensors; tied tensors once."""
    save_model(network, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # as every other file of the bundle


def load(
    bundle: str | Path,
    factory: str | Callable[..., nn.Module] | None = None,
    *,
    allow_factory: Sequence[str] | None = None,
) -> nn.Module:
    """Rebuild the slim network from a bundle, without pickle.

    Args:
        bundle: Folder a run wrote.
        factory: What builds the original network: a callable, or ``package.module:function``,
            called with the arguments in the plan; None takes the plan's own factory, which must
            then be importable: the bundle then says what is run, so trust it or pin it.
        allow_factory: Packages and modules that the plan's own factory may be imported from; None: any.

    Returns:
        The slim network in evaluation mode. It takes the kept columns, in the order of the
        report, as the slim ONNX file does.

    Raises:
        ModelError: The plan, the weights or the factory do not fit each other.
    """
    folder = Path(bundle)
    plan = _read_plan(folder / PLAN)
    build = _own_factory(plan, folder, allow_factory) if factory is None else _factory(factory)
    try:
        network = build(**plan.arguments)
    except (Exception, SystemExit) as error:  # somebody else's code may raise anything
        raise ModelError(f"{folder / PLAN}: its factory failed ({describe(error)}).") from error
    if plan.standardize:
        network = StandardizedNetwork([_without_standardization(part) for part in plan.inputs], network)
    _check_axes(network, plan.axes)
    try:
        _surgery(plan).apply_(network)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / PLAN}: does not fit the factory's network ({error}).") from error
    try:
        load_model(network, str(folder / WEIGHTS), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS}: does not fit the network of the plan ({error})") from error
    return network.eval()


def _without_standardization(part: InputPlan) -> Standardize | None:
    """The standardisation layer of an input, its figures to be loaded; None for inputs that have none."""
    return Standardize(torch.zeros(part.size), torch.ones(part.size)) if part.dtype == "float32" else None


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); a bundle holds {PLAN}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: {where}: {first['msg']}; this is not a plan glprune wrote.") from error


def _own_factory(plan: Plan, folder: Path, allowed: Sequence[str] | None) -> Callable[..., nn.Module]:
    """The factory that the plan names."""
    if allowed is None:
        return _factory(plan.factory)
    return load_callable(plan.factory, folder, f"{folder / PLAN}: factory", allowed)


def _factory(factory: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if callable(factory):
        return factory
    module, _, name = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ModelError(
            f"factory {factory!r} cannot be imported ({error}); pass the function that builds the network."
        ) from error


def _check_axes(network: nn.Module, axes: Sequence[Axis]) -> None:
    state = network.state_dict()
    for axis in axes:
        shape = state[axis.tensor].shape if axis.tensor in state else None
        if shape is None or axis.dim >= len(shape) or shape[axis.dim] != axis.size:
            found = "no such tensor" if shape is None else f"shape {tuple(shape)}"
            raise ModelError(
                f"{PLAN}: {axis.tensor!r} should have {axis.size} positions along dimension {axis.dim}, "
                f"the factory's network has {found}; pass the factory the original was built with."
            )
