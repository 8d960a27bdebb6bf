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

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.search.budget import LatencyMeter
    from glprune.search.job import Job
    from glprune.search.outcome import FeatureOutcome
    from glprune.search.search import SearchResult
    from glprune.search.stage import StageResult

__all__ = [
    "FeatureOutcome",
    "Job",
    "LatencyMeter",
    "SearchResult",
    "StageResult",
]

__getattr__ = lazy_names(
    __name__,
    {
        "FeatureOutcome": "outcome",
        "Job": "job",
        "LatencyMeter": "budget",
        "SearchResult": "search",
        "StageResult": "stage",
    },
)
