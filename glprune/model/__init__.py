"""The trained network: loading it, its task and outputs, its predictions and its size.

- ``loading``: build the network and read its weights without running code.
- ``outputs``: flatten and name what the network returns.
- ``task``: loss, predictions and metrics.
- ``standardize``: standardisation layers in front of the network.
- ``precision``, ``prediction``: forward passes in bfloat16, outputs over a whole split.
- ``diagnostics``: find where values stop being finite.
- ``counting``: multiply-accumulates and parameters.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glprune.model.counting import macs, parameters
    from glprune.model.loading import LoadedNetwork, load_network
    from glprune.model.prediction import predict
    from glprune.model.standardize import StandardizedNetwork
    from glprune.model.task import Task

# imported on first use: a module of this package does not load all others
_MODULE_OF = {
    "LoadedNetwork": "glprune.model.loading",
    "StandardizedNetwork": "glprune.model.standardize",
    "Task": "glprune.model.task",
    "load_network": "glprune.model.loading",
    "macs": "glprune.model.counting",
    "parameters": "glprune.model.counting",
    "predict": "glprune.model.prediction",
}
__all__ = [
    "LoadedNetwork",
    "StandardizedNetwork",
    "Task",
    "load_network",
    "macs",
    "parameters",
    "predict",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
