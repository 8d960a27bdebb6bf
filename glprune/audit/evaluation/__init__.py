"""Measure the models of a bundle on an auditor's rows, with ONNX Runtime and without PyTorch.

- ``evaluate``: the whole evaluation and its result.
- ``subject``: what of a bundle is evaluated, and how its outputs are read.
- ``rows``, ``file_rows``, ``array_rows``: the rows, from a file, arrays or a loader.
- ``running``: the outputs of a model; ``measurement``: every figure; ``metric_values``: with tolerances.
- ``figures``: whether they agree with the report.
"""

from __future__ import annotations
