"""Measure the shipped model, compare it with baselines and build the report.

- ``measurements``: metrics, latency and size of the ONNX files on the test split.
- ``baselines``, ``permutation_importance``: simpler selections of the same size.
- ``cost``: what a run will cost, in passes over the training rows.
- ``stability``, ``drop_cost``: the search on resamples, and the cost of dropping each kept feature.
- ``segments``, ``proxies``, ``policy_report``: protected attributes and the recipe's policy.
- ``report_builder``: the records of the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.evaluation.baselines import measure_baselines
    from glprune.evaluation.drop_cost import measure_drop_costs
    from glprune.evaluation.measurements import measure_test_split
    from glprune.evaluation.proxies import measure_proxies
    from glprune.evaluation.report_builder import RunResults, make_report
    from glprune.evaluation.stability import measure_stability

__all__ = [
    "RunResults",
    "make_report",
    "measure_baselines",
    "measure_drop_costs",
    "measure_proxies",
    "measure_stability",
    "measure_test_split",
]

__getattr__ = lazy_names(
    __name__,
    {
        "RunResults": "report_builder",
        "make_report": "report_builder",
        "measure_baselines": "baselines",
        "measure_drop_costs": "drop_cost",
        "measure_proxies": "proxies",
        "measure_stability": "stability",
        "measure_test_split": "measurements",
    },
)
