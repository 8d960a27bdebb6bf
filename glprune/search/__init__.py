"""The search for the groups to remove, in stages of a regularisation path, a removal and a refit.

- ``prepare`` makes the ``job``, the record of recipe, data, network and groups.
- ``search`` runs stages towards the target of the recipe; ``stage`` is one of them.
- ``path`` solves growing lambdas, ``path_point`` is one of its points.
- ``targets`` finds the point of a path that meets a target; ``budget`` counts sizes.
- ``refit`` trains the slim network.
- ``outcome`` records what became of each feature.
- ``policy`` resolves rules on features, ``policy_removal`` removes the forbidden ones.
- ``parallel`` runs stages in other processes, ``worker_setup`` prepares them.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "FeatureOutcome": "outcome",
    "Job": "job",
    "LatencyMeter": "budget",
    "SearchResult": "search",
    "StageResult": "stage",
}

__all__ = ["FeatureOutcome", "Job", "LatencyMeter", "SearchResult", "StageResult"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
