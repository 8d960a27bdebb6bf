"""The data of a run as the rest of the package sees it: inputs, features, splits, and notes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from glprune.data.splits import ColumnSelection, view_columns
from glprune.tables.features import ColumnId, InputPosition, spans

if TYPE_CHECKING:
    from glprune.data.splits import Split
    from glprune.tables.features import Feature, InputColumns
    from glprune.tables.protected import Attribute


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
        standardization: What ``standardize`` puts before each input; None for inputs that are not
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
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def spans(self) -> tuple[range, ...]:
        """The indices of each input's feature columns; empty for inputs without features."""
        return spans(self.inputs)

    def input_of(self, feature: Feature) -> int:
        """The number of the input that a feature belongs to."""
        return next(n for n, span in enumerate(self.spans) if feature.columns[0] in span)

    def positions(self, feature: Feature) -> tuple[InputPosition, ...]:
        """The positions of a feature's columns within its input."""
        start = self.spans[self.input_of(feature)].start
        return tuple(InputPosition(c - start) for c in feature.columns)

    def kept_positions(self, selection: ColumnSelection) -> list[tuple[InputPosition, ...]]:
        """For each feature, the positions within its input of the columns that a selection keeps."""
        kept = [set(positions) for positions in selection.positions()]
        starts = [span.start for span in self.spans]
        owner = [number for number, span in enumerate(self.spans) for _ in span]
        return [
            tuple(
                InputPosition(c - starts[owner[c]])
                for c in feature.columns
                if InputPosition(c - starts[owner[c]]) in kept[owner[c]]
            )
            for feature in self.features
        ]

    def select_columns(self, selection: ColumnSelection) -> Data:
        """The same rows with the selected columns of every input; features without a column are left out."""
        kept = [
            ColumnId(span[p])
            for span, positions in zip(self.spans, selection.positions(), strict=True)
            for p in positions
        ]
        place = {old: ColumnId(new) for new, old in enumerate(kept)}
        features = [(f, tuple(place[c] for c in f.columns if c in place)) for f in self.features]
        return replace(
            self,
            inputs=tuple(
                part
                if part.axis is None
                else replace(part, columns=tuple(part.columns[p] for p in positions))
                for part, positions in zip(self.inputs, selection.positions(), strict=True)
            ),
            features=tuple(replace(f, columns=left) for f, left in features if left),
            train=view_columns(self.train, selection),
            valid=view_columns(self.valid, selection),
            test=view_columns(self.test, selection),
        )
