"""The trained network: loading it, its task and outputs, its predictions and its size.

- ``loading``: build the network and read its weights without running code.
- ``weights_file``: refuse a file of another kind, without PyTorch.
- ``original``, ``original_check``: is it the network that was trained?
- ``outputs``: flatten and name what the network returns.
- ``task``: loss, predictions and metrics.
- ``standardize``: standardisation layers in front of the network.
- ``precision``, ``prediction``: forward passes in bfloat16, outputs over a whole split.
- ``diagnostics``: find where values stop being finite.
- ``counting``: multiply-accumulates and parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.model.counting import macs, parameters
    from glprune.model.loading import LoadedNetwork, load_network
    from glprune.model.prediction import predict
    from glprune.model.standardize import StandardizedNetwork
    from glprune.model.task import Task

__all__ = [
    "LoadedNetwork",
    "StandardizedNetwork",
    "Task",
    "load_network",
    "macs",
    "parameters",
    "predict",
]

__getattr__ = lazy_names(
    __name__,
    {
        "LoadedNetwork": "loading",
        "StandardizedNetwork": "standardize",
        "Task": "task",
        "load_network": "loading",
        "macs": "counting",
        "parameters": "counting",
        "predict": "prediction",
    },
)
