"""The records of a plan: which positions of which tensors belong to which unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["input", "hidden"]
Role = Literal["reader", "carrier"]
Removal = Literal["cut", "constant"]


@dataclass(frozen=True)
class TensorAxis:
    """Where units lie along one dimension of one tensor of the state dict.

    Attributes:
        tensor: Name in the state dict.
        dim: The dimension the units lie along.
        unit: The unit of each position, shape (size of ``dim``,), int64; -1 is nobody's.
        role: ``reader`` holds weights leaving a unit, ``carrier`` everything cut with it.
    """

    tensor: str
    dim: int
    unit: Tensor
    role: Role


@dataclass(frozen=True)
class Attribute:
    """A size that a module's forward takes from an attribute, such as its number of heads.

    Attributes:
        module: Path of the module; empty for the network itself.
        name: Name of the attribute, an int or a tuple holding one.
        per_unit: Its value for each unit of the set.
    """

    module: str
    name: str
    per_unit: int


@dataclass(frozen=True)
class UnitSet:
    """Input columns of one input, or the output units of one layer and all tied to it.

    Attributes:
        name: Name of the input or of the layer.
        kind: ``input`` or ``hidden``.
        count: Number of units.
        slots: Every place the units lie; empty where the set is refused.
        refused: Why the units cannot be cut, or None.
        source: Number of the input the units are columns of, or None.
        inexact: The operation that mixes the units, where the user allows an inexact cut.
        removal: ``cut`` slices tensors; ``constant`` feeds removed input columns a constant
            inside the network, where its forward is written for the full width.
        family: Sets of one family are cut to equal widths, since one module holds them all
            under one size (layers and directions of a recurrent module).
        attributes: Module attributes that follow the number of units.
        planner: Who found the plan: the trace alone, or torch-pruning and the trace alike.
    """

    name: str
    kind: Kind
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
        """The slots holding the weights that leave the units."""
        return tuple(slot for slot in self.slots if slot.role == "reader")
