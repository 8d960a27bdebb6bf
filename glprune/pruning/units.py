"""Records of a plan: which positions of which tensors belong to which unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glprune.pruning.ids import UnitIds

GroupKind = Literal["input", "hidden"]
Role = Literal["reader", "carrier"]
Removal = Literal["cut", "constant"]


@dataclass(frozen=True)
class TensorAxis:
    """Where units lie along one dimension of one tensor of the state dict.

    Attributes:
        tensor: Name in the state dict.
        dim: The dimension the units lie along.
        unit: The unit of each position, shape (size of ``dim``,), int64; -1 where it belongs to none.
        role: A ``reader`` holds weights that read a unit's output, which are the unit's group; a
            ``carrier`` holds what is only cut with it.
    """

    tensor: str
    dim: int
    unit: UnitIds
    role: Role


@dataclass(frozen=True)
class Attribute:
    """A size that a module's forward takes from an attribute, such as its number of heads.

    Attributes:
        module: Path of the module; empty for the network itself.
        name: Name of the attribute, an int or a tuple that holds one.
        per_unit: Its value for each unit of the set.
    """

    module: str
    name: str
    per_unit: int


@dataclass(frozen=True)
class UnitSet:
    """The columns of one input, or the output units of one layer and everything tied to them.

    Attributes:
        name: Name of the input or of the layer.
        kind: ``input`` or ``hidden``.
        count: Number of units.
        slots: Every tensor axis the units lie along; empty where the set is refused.
        refused: Why the units cannot be cut, or None.
        source: Number of the input the units are columns of, or None.
        inexact: The operation that mixes the units, where the user allows an inexact cut.
        removal: ``cut`` slices tensors; ``constant`` feeds a constant for removed input columns inside
            the network, where its forward is written for the full width.
        family: Sets of one family are cut to equal widths, since one module holds them all
            under one size (layers and directions of a recurrent module).
        attributes: Module attributes that follow the number of units.
        planner: ``both`` where torch-pruning gives the plan of the trace, else ``trace``.
    """

    name: str
    kind: GroupKind
    count: int
    slots: tuple[TensorAxis, ...]
    refused: str | None = None
    source: int | None = None
    inexact: str | None = None
    removal: Removal = "cut"
    family: str | None = None
    attributes: tuple[Attribute, ...] = ()
    planner: Literal["trace", "both"] = "trace"

    @property
    def readers(self) -> tuple[TensorAxis, ...]:
        """The tensor axes that hold the weights of the units' groups."""
        return tuple(slot for slot in self.slots if slot.role == "reader")


UnitChoice = tuple[UnitSet, UnitIds]  # a unit set and the units of it to keep
