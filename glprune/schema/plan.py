"""``plan.json``: how the slim network is made from the original one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glprune.schema.report import DType, GroupKind

_RANK = 32  # the most dimensions of a tensor
_MAX_COLUMNS = 2**24
Size = Annotated[int, Field(ge=0, lt=2**31)]
"""A size or position along a dimension."""
Dimension = Annotated[int, Field(ge=0, lt=_RANK)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Axis(_Record):
    """The positions that are kept along one dimension of one tensor of the original network."""

    tensor: str
    dim: Dimension
    size: Size
    kept: list[Size]


class Reader(_Record):
    """Where one tensor of the slim network reads an input's columns.

    ``columns`` gives for each position along ``dim`` the column of the original input, or -1 if the position
    reads no column of it.
    """

    tensor: str
    dim: Dimension
    columns: list[int]


class InputPlan(_Record):
    """The kept columns of one input; an input without an axis is kept whole."""

    name: str
    axis: Annotated[int, Field(ge=-_RANK, lt=_RANK)] | None
    dtype: DType
    size: Annotated[int, Field(ge=0, le=_MAX_COLUMNS)]
    kept: list[Size]
    columns: list[str]
    constants: list[float] | None = None
    readers: list[Reader] = []


class Place(_Record):
    """Where units lie along one dimension of one tensor of the original network.

    ``units`` gives the unit of each position; -1 if the position belongs to none.
    """

    tensor: str
    dim: Dimension
    units: list[int]


class UnitsPlan(_Record):
    """The units of an input or a hidden layer: how many there were, which are left, and where they lay.

    All are left of an input whose removed columns the network is fed as constants.
    """

    name: str
    kind: GroupKind
    before: Size
    kept: list[Size]
    places: list[Place]


class AttributePlan(_Record):
    """The value, in the slim network, of a module's attribute that holds a size."""

    module: str
    name: Annotated[str, Field(pattern=r"^_?[^\W\d_]\w*$")]
    value: Size | list[Size]


_STATISTIC = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_STANDARDIZATION = re.compile(r"^standardize(_\d+)?\.(mean|std)$")


def counts_as_parameter(name: str, rank: int, is_float: bool, standardize: bool) -> bool:
    """Whether a saved tensor is counted: weights and constants are, statistics and integers are not.

    Args:
        name: Its name in the state dict.
        rank: Its number of dimensions.
        is_float: Whether it holds floating-point numbers.
        standardize: Whether the network begins with the standardisation of the recipe.
    """
    is_statistic = rank <= 1 and _STATISTIC.search(name) is not None
    return is_float and not is_statistic and not (standardize and _STANDARDIZATION.match(name))


class Plan(_Record):
    """The contents of ``plan.json``.

    ``in_model`` are the tensors whose values ``model.onnx`` holds bit for bit (exporters fold or reorder
    others); ``units`` are those of all inputs and layers that can be cut.
    """

    schema_version: Literal["glprune.plan/1"] = "glprune.plan/1"
    factory: str
    arguments: dict[str, Any]
    standardize: bool
    inputs: list[InputPlan]
    axes: list[Axis]
    attributes: list[AttributePlan]
    in_model: list[str] = []
    units: list[UnitsPlan] = []

    def sizes_before(self, name_of: Callable[[str], str] = str) -> dict[str, dict[int, int]]:
        """Map every tensor that was cut to its sizes in the original network, by the dimensions that were.

        Args:
            name_of: Returns the name under which a tensor is saved.
        """
        sizes: dict[str, dict[int, int]] = {}
        for axis in self.axes:
            sizes.setdefault(name_of(axis.tensor), {})[axis.dim] = axis.size
        return sizes
