"""Prune trained PyTorch networks with penalties on groups of weights and ship a slim, checkable ONNX model.

A map of the package, in the order data flows:

``recipe`` reads the YAML; :mod:`glprune.data`, with a map of its own, and ``model`` read files (``exact``
finds numbers that floating point would merge),
``outputs`` and ``teaching`` say what a network returns and what it is to learn. ``trace`` follows units
through a network (``labels``, ``watcher`` and ``rules`` are its parts), ``drafts`` makes unit sets of
what it saw, ``graph`` asks torch-pruning for a second plan, ``proof`` tests plans on numbers and
``planning`` brings the three together. ``groups`` does arithmetic on units; ``penalty`` and ``optim``
hold the proximal operator and the proximal optimisers; ``objective``, ``train`` and ``path`` (of a
``point`` each) solve the regularisation path, while ``finite`` finds what is not finite and
``determinism`` fixes seed and threads. Several processes (``launcher``) sum over rows in ``crew``, take the
parts that ``sharing`` gives them and end together (``parting``).
``surgery`` cuts, ``removal`` certifies; ``export`` and
``measure`` write the ONNX file and run it; ``policy`` resolves the rules on features and ``forbidden``
cuts what must go before any path; ``protected`` reads attributes the network need not, ``segments`` and
``proxies`` measure by them. ``goals`` says what a target counts, a ``stage`` is a path, its cut and a
refit, and ``search`` goes from one to the next, or runs several ``abreast``. ``refitting`` trains what was
cut and ``shipping`` writes it, with what the file says of itself by ``metadata``, for the shipped network
and, in ``baselines``, for simpler selections beside it (``importance`` ranks features by
permutation); ``resampling`` and ``dropping`` say how firm the choice is (``stability`` has the
formulas), in the processes of ``workers`` or ``ray_workers`` (``fan`` chooses), which make the run's
networks again with ``rebuilt``;
``summary``, ``policy_summary``, ``report``, ``render`` and ``markdown`` say what was measured (``plots``
draws it, ``traces`` chooses the lines),
``sections`` and ``regulations`` which part of it serves which rule; ``plan`` and ``contract`` say how
the slim network was cut and what it takes, ``evidence`` leaves what others can check, ``bundle`` names
the files and ``reload`` rebuilds the network from them; ``result`` shows a bundle in notebooks,
``serving`` lays it out for model servers and ``sklearn`` selects columns in memory; ``plugins`` finds
code of other packages, and ``certify`` holds their penalties to numbers; ``workspace`` is the folder a
run works in and ``journal`` what it has done so far, for one that is stopped (``recall`` brings points
and refits there and back); ``pipeline`` is the whole run, ``inspection`` the dry run, ``cli`` the
command.
:mod:`glprune.audit` is the other side: it verifies a bundle without PyTorch. :mod:`glprune.integrations` takes
runs and bundles into other people's pipelines.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glprune._version import __version__
from glprune.errors import DataError, GlpruneError, ModelError, RecipeError, TargetError, UsageError

if TYPE_CHECKING:
    from glprune.export.slim_network import load
    from glprune.inspection import Inspection, inspect
    from glprune.pipeline import run
    from glprune.result import Result
    from glprune.schema.recipe import Recipe
    from glprune.schema.recipe_loading import load_recipe
    from glprune.schema.report import Report

# imported on first use, so that reading a report does not load PyTorch
_LAZY = {
    "Inspection": "glprune.inspection",
    "Recipe": "glprune.schema.recipe",
    "Report": "glprune.schema.report",
    "Result": "glprune.result",
    "inspect": "glprune.inspection",
    "load": "glprune.export.slim_network",
    "load_recipe": "glprune.schema.recipe_loading",
    "run": "glprune.pipeline",
}
__all__ = [
    "DataError",
    "GlpruneError",
    "Inspection",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Report",
    "Result",
    "TargetError",
    "UsageError",
    "__version__",
    "inspect",
    "load",
    "load_recipe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'glprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
