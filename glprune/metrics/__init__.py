"""Compute the figures that a report states of predictions, with NumPy alone: runs and auditors share it.

- ``scorer``: the metrics of a task; ``calibration``: Brier score and calibration error.
- ``influence``: the influence of every row, and standard errors; ``confidence_intervals``: intervals.
- ``segments``: metrics and decisions of two networks on some rows.
"""

from __future__ import annotations
