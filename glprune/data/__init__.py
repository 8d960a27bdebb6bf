"""The data of a run as tensors; ``glprune.tables`` reads files into arrays.

- ``loading``: load the data of a recipe; ``dataloader``: from a user's DataLoader or plugin.
- ``splits``: rows in batches from memory; ``streaming``: from Parquet files; ``sharding``: for each process.
- ``synthetic``: random rows around real ones.
- ``records``: the data as the rest of the package sees it.
"""

from __future__ import annotations

from glprune.data.dataloader import LoaderSplit
from glprune.data.loading import load_data
from glprune.data.records import Data, Standardization
from glprune.data.splits import ColumnSelection, IndexableSplit, Inputs, Split, TensorSplit, view_columns
from glprune.data.streaming import StreamedSplit
from glprune.tables.features import Feature, InputColumns

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
