"""The data of a run as the rest of the package sees it: inputs, features, splits, and notes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from glprune.data.protected import Attribute
    from glprune.data.splits import Split


@dataclass(frozen=True)
class InputColumns:
    """One input of the network and the columns that feed it.

    Attributes:
        name: Name of the input.
        axis: Axis of a batch that holds the features; None if none can be pruned.
        columns: Names along that axis, in order; without an axis the columns of the file, if any.
    """

    name: str
    axis: int | None
    columns: tuple[str, ...]

    @property
    def prunable_columns(self) -> tuple[str, ...]:
        """The columns that can be pruned."""
        return self.columns if self.axis is not None else ()


@dataclass(frozen=True)
class Feature:
    """An input feature: a column, or several columns of one input that are kept or removed together.

    Attributes:
        name: The feature.
        columns: Indices of its columns, counted over the feature columns of all inputs.
    """

    name: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation of columns on the training rows, each of shape (n_columns,), float64."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Data:
    """Data ready for a network.

    Columns are indexed over the feature columns of all inputs; ``spans`` gives each input's range.

    Attributes:
        source: The files, or the loader, for the report.
        inputs: The inputs in the network's order.
        features: Features in the order of their first column; every column is in one, and every feature
            in one input.
        train: Training rows, raw.
        valid: Validation rows, raw.
        test: Test rows, raw.
        classes: Labels in the order of the network's outputs; None without classes.
        standardization: What ``standardize: train`` puts before each input; None for inputs that are not
            standardised.
        digests: File or split -> ``sha256:...``.
        notes: What the user should know.
        outside: Columns of the file that no input takes.
        protected: The protected attributes of the recipe's policy.
    """

    source: str
    inputs: tuple[InputColumns, ...]
    features: tuple[Feature, ...]
    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...] | None
    standardization: tuple[Standardization | None, ...]
    digests: Mapping[str, str]
    notes: tuple[str, ...]
    outside: tuple[str, ...] = ()
    protected: tuple[Attribute, ...] = ()

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns that can be pruned, over all inputs in order."""
        return tuple(name for part in self.inputs for name in part.prunable_columns)

    @property
    def spans(self) -> tuple[range, ...]:
        """The indices of each input's feature columns; empty for inputs without features."""
        return spans(self.inputs)


def spans(inputs: Sequence[InputColumns]) -> tuple[range, ...]:
    """Return the indices of each input's feature columns."""
    ends = [0]
    for part in inputs:
        ends.append(ends[-1] + len(part.prunable_columns))
    return tuple(range(start, end) for start, end in itertools.pairwise(ends))
