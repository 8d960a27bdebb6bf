"""Read the data of a run: columns matched by name, every defect reported by name, reproducible splits.

- ``loading``: load the data of a recipe; ``dataloader``: from a user's DataLoader or plugin.
- ``files``: open a file, read CSV; ``tables``: columns by name, Parquet.
- ``columns``: which column feeds which input and feature.
- ``targets``, ``splitting``: the target and the split of every row.
- ``validation``: columns as numbers, checked and measured.
- ``splits``: rows in batches from memory; ``streaming``: from Parquet files; ``sharding``: for each process.
- ``protected``: protected attributes; ``synthetic``: random rows around real ones.
- ``records``: the data as the rest of the package sees it.
"""

from __future__ import annotations

from glprune.data.dataloader import LoaderSplit
from glprune.data.loading import load_data
from glprune.data.records import Data, Feature, InputColumns, Standardization
from glprune.data.splits import ColumnSelection, IndexableSplit, Inputs, Split, TensorSplit, view_columns
from glprune.data.streaming import StreamedSplit

__all__ = [
    "ColumnSelection",
    "Data",
    "Feature",
    "IndexableSplit",
    "InputColumns",
    "Inputs",
    "LoaderSplit",
    "Split",
    "Standardization",
    "StreamedSplit",
    "TensorSplit",
    "load_data",
    "view_columns",
]
