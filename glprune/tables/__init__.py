"""Read data files into arrays: columns matched by name, every defect reported by name. No PyTorch.

- ``files``: open a file, read CSV; ``table``: columns by name, Parquet.
- ``features``: inputs, columns and features; ``columns``: which column feeds which input and feature.
- ``targets``, ``splitting``: the target and the split of every row.
- ``validation``: columns as numbers, checked and measured; ``reading``: all of a recipe's files.
- ``protected``: protected attributes.
"""

from __future__ import annotations
