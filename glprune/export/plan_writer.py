"""Write how the slim network follows from the original one: plan, weights and the resolved recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import save_model
from torch import Tensor, nn

from glprune.audit.checks.weights import shared
from glprune.audit.onnx_reader import parse
from glprune.audit.safetensors_reader import read_tensors
from glprune.export.signature import dtype_name
from glprune.model.standardize import StandardizedNetwork
from glprune.pruning.surgery import named_tensors
from glprune.schema import bundle as bundles
from glprune.schema.plan import AttributePlan, Axis, InputPlan, Place, Plan, Reader, UnitsPlan

if TYPE_CHECKING:
    from pathlib import Path

    from glprune.export.shipped_model import ShippedModel
    from glprune.pruning.groups import GroupSet
    from glprune.pruning.surgery import PruningPlan
    from glprune.pruning.units import TensorAxis
    from glprune.tables.features import InputColumns


def write_plan(shipped: ShippedModel) -> Plan:
    """Write the weights, ``plan.json`` and the resolved recipe; the ONNX file must exist."""
    job, removed, folder = shipped.job, shipped.removed, shipped.folder
    _save_weights(shipped.network, folder / bundles.WEIGHTS)
    plan = Plan(
        factory=job.recipe.model.factory,
        arguments=dict(job.recipe.model.arguments),
        standardize=isinstance(job.network, StandardizedNetwork),
        inputs=_inputs(shipped),
        axes=plan_axes(job.network, removed.plan),
        attributes=_attributes(removed.plan),
        in_model=_tensors_in_model(folder),
        units=[plan_units_of(groups, removed.plan) for groups in job.groups if groups.units.slots],
    )
    bundles.write_json(folder / bundles.PLAN, plan.model_dump(mode="json"))
    (folder / bundles.RECIPE).write_text(job.recipe.to_yaml(), encoding="utf-8")
    return plan


def _inputs(shipped: ShippedModel) -> list[InputPlan]:
    """Describe what each input of the original network keeps."""
    job, removed = shipped.job, shipped.removed
    groups = {g.name: g for g in job.input_groups}
    return [
        InputPlan(
            name=part.name,
            axis=part.axis,
            dtype=dtype_name(x),
            size=len(part.columns),
            kept=kept.tolist(),
            columns=_column_names(part, kept),
            constants=_constants(removed.plan, index),
            readers=_readers(groups.get(part.name), removed.plan),
        )
        for index, (part, kept, x) in enumerate(zip(job.data.inputs, removed.columns, job.probe, strict=True))
    ]


def _column_names(part: InputColumns, kept: Tensor) -> list[str]:
    """Name the kept columns; an input without a feature axis keeps all."""
    return list(part.columns) if part.axis is None else [part.columns[n] for n in kept.tolist()]


def _constants(plan: PruningPlan, index: int) -> list[float] | None:
    """Return the constants in place of an input's removed columns; None where the columns are cut."""
    padding = plan.padding.get(index)
    return None if padding is None else padding.values.double().tolist()


def _readers(groups: GroupSet | None, plan: PruningPlan) -> list[Reader]:
    """Describe which positions of the sliced tensors read which columns; None for an input without groups."""
    return [
        Reader(tensor=slot.tensor, dim=slot.dim, columns=_left(slot, plan).tolist())
        for slot in (groups.units.readers if groups is not None else ())
    ]


def _left(slot: TensorAxis, plan: PruningPlan) -> Tensor:
    """Return the unit of each position that is left of a slot."""
    positions = plan.kept.get((slot.tensor, slot.dim))
    return slot.unit if positions is None else slot.unit[positions]


def plan_units_of(groups: GroupSet, plan: PruningPlan) -> UnitsPlan:
    """Describe the units of an input or a layer, where they lay, and which are left."""
    slots = groups.units.slots
    left = {unit for slot in slots for unit in _left(slot, plan).tolist()} - {-1}
    return UnitsPlan(
        name=groups.name,
        kind=groups.kind,
        before=groups.units.count,
        kept=sorted(left),
        places=[Place(tensor=s.tensor, dim=s.dim, units=s.unit.tolist()) for s in slots],
    )


def plan_axes(network: nn.Module, plan: PruningPlan) -> list[Axis]:
    """Describe the kept positions, in the numbering of the original network."""
    state = named_tensors(network)
    return [
        Axis(tensor=name, dim=dim, size=state[name].shape[dim], kept=positions.tolist())
        for (name, dim), positions in sorted(plan.kept.items())
    ]


def _attributes(plan: PruningPlan) -> list[AttributePlan]:
    """Describe the module attributes that change with the number of units."""
    return [
        AttributePlan(module=path, name=name, value=list(value) if isinstance(value, tuple | list) else value)
        for (path, name), value in sorted(plan.attributes.items())
    ]


def _save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's tensors as safetensors; tied tensors are written once."""
    save_model(network, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # the same mode as the other files of the bundle


def _tensors_in_model(folder: Path) -> list[str]:
    """Name the saved tensors whose values are in the shipped file bit for bit."""
    weights, model = ((folder / name).read_bytes() for name in (bundles.WEIGHTS, bundles.ONNX))
    return shared(read_tensors(weights), parse(model))
