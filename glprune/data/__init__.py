"""Data of a run: columns matched by name, every defect reported by name, splits reproducible.

``tables`` opens files, ``columns`` says which column feeds what, ``targets`` and ``division`` read what
every row is and which split it is in; ``values`` turns columns into numbers and checks them, ``files``
brings that together. ``splits`` are rows in batches from memory, ``streaming`` from Parquet files and
``loaders`` from a user's loader. ``records`` is what the rest of the package sees.
"""

from __future__ import annotations

from glprune.data.dataloader import LoaderSplit
from glprune.data.loading import load_data
from glprune.data.records import Data, Feature, InputColumns, Standardization
from glprune.data.splits import ColumnSelection, IndexableSplit, Inputs, Split, TensorSplit, view_columns
from glprune.data.streaming import StreamedSplit

__all__ = [
    "Data",
    "Feature",
    "InputColumns",
    "Inputs",
    "LoaderSplit",
    "ColumnSelection",
    "IndexableSplit",
    "Split",
    "Standardization",
    "StreamedSplit",
    "TensorSplit",
    "load_data",
    "view_columns",
]
