"""Proxies: how well protected attributes are predicted from what a model reads, no longer reads, and returns.

A feature that was dropped is not unknowable: other inputs may carry it. The analysis needs protected data and
says unwelcome things, so it is made only when asked for, and its figures go into a file of their own.

References:
    Logistic regression with an L2 penalty as in Fan et al. (2008), "LIBLINEAR: a library for large linear
    classification", J. Mach. Learn. Res. 9; the area under the ROC curve from ranks: Hanley and McNeil
    (1982), "The meaning and use of the area under a receiver operating characteristic (ROC) curve".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from glprune.data.protected import Attribute, segmented
from glprune.data.splits import identity
from glprune.evaluation.segments import attribute_status
from glprune.export.onnx_runtime import OnnxFile
from glprune.export.shipped_model import file_columns
from glprune.model.prediction import predict
from glprune.runtime.events import Listener, Stage
from glprune.schema import bundle as bundles
from glprune.schema.report import Prediction, Proxies, ProxyAnalysis, ProxyAttribute, ProxySource

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.search.job import Job
    from glprune.search.outcome import FeatureOutcome
    from glprune.search.search import SearchResult

FOLDS, SHUFFLES = 5, 5
_FEWEST = 2 * FOLDS  # rows of a class, so that every fold holds two
_PENALTY = 1.0
_STEPS = 500
Floats = NDArray[np.float64]
Fit = Callable[[Floats, Floats, Floats], Floats]
_ESTIMATOR = (
    "standardised columns; ridge regression for numbers, logistic regression for classes, both with an L2 "
    f"penalty of {_PENALTY:g} on the weights, stratified {FOLDS}-fold cross-validation"
)
_LIMITS = [
    "The predictions are linear: a relation that is not may be missed.",
    "Inputs were taken from all rows, the score from the test split, which trained nothing.",
    "The attribute's own columns are never among the inputs it is predicted from; codes count as numbers.",
]


def measure_proxies(job: Job, chosen: SearchResult, folder: Path, listener: Listener) -> Proxies | None:
    """Predict every protected attribute and write the figures to ``proxy.json``, if the recipe asks for it.

    Args:
        job: The job.
        chosen: The shipped network.
        folder: The bundle's files so far.
        listener: Told that it begins.

    Returns:
        What the report says of it; None where the recipe has no policy.
    """
    spec = job.recipe.policy
    if spec is None:
        return None
    if not spec.proxies:
        return Proxies(performed=False, reason="policy.proxies is not set", file=None, digest=None)
    listener(Stage("proxies", "predicting protected attributes from inputs and score"))
    inputs, score = _inputs(job), _score(job, chosen.removed, folder / bundles.ONNX)
    analysis = ProxyAnalysis(
        model=bundles.digest(folder / bundles.ONNX),
        estimator=_ESTIMATOR,
        folds=FOLDS,
        shuffles=SHUFFLES,
        seed=job.recipe.seed,
        attributes=[_attribute(job, a, chosen.outcomes, inputs, score) for a in job.data.protected],
        limits=_LIMITS,
        schema="glprune.proxy/1",
    )
    bundles.write_json(folder / bundles.PROXIES, analysis.model_dump(mode="json", by_alias=True))
    return Proxies(
        performed=True, reason=None, file=bundles.PROXIES, digest=bundles.digest(folder / bundles.PROXIES)
    )


def _inputs(job: Job) -> Floats:
    """Every feature of every row, train, valid and test, shape (rows, n_columns)."""
    parts = []
    for split in (job.data.train, job.data.valid, job.data.test):
        found, _ = predict(lambda inputs: inputs, split, identity)
        taken = [x for x, part in zip(found, job.data.inputs, strict=True) if part.axis is not None]
        parts.append(torch.cat([x.double() for x in taken], dim=1))
    return torch.cat(parts).numpy()


def _score(job: Job, removed: RemovalResult, file: Path) -> Floats:
    """What the shipped file returns for the test rows; log-odds or log-probabilities of classes."""
    outputs, _ = predict(OnnxFile(file, job.recipe.threads), job.data.test, file_columns(job, removed))
    view = job.task.view(outputs).double()
    if job.task.kind in ("binary", "multiclass"):
        logs = job.task.log_probabilities(view)
        view = logs[:, 1:] - logs[:, :1] if job.task.kind == "binary" else logs
    return view.reshape(len(view), -1).numpy()


def _attribute(
    job: Job, attribute: Attribute, outcomes: Sequence[FeatureOutcome], inputs: Floats, score: Floats
) -> ProxyAttribute:
    own, names = set(attribute.columns), job.data.columns
    kept = {
        column
        for feature, outcome in zip(job.data.features, outcomes, strict=True)
        if outcome.is_kept
        for column in feature.columns
    }
    others = [c for c in range(len(names)) if names[c] not in own]
    sources: list[tuple[ProxySource, Floats, bool]] = [
        ("kept inputs", inputs[:, [c for c in others if c in kept]], True),
        ("removed inputs", inputs[:, [c for c in others if c not in kept]], True),
        ("score", score, False),
    ]
    parts = segmented(attribute, None)
    classes = parts.by == "values"
    values = parts.number if classes else attribute.values
    whole = np.concatenate([values[s] for s in ("train", "valid", "test")]).astype(np.float64)
    test = values["test"].astype(np.float64)
    labels, seed = parts.labels if classes else (), job.recipe.seed
    return ProxyAttribute(
        name=attribute.name,
        status=attribute_status(job, attribute, outcomes),
        measure="auc" if classes else "r2",
        classes=list(labels),
        predictions=[
            _prediction(source, x, whole if every else test, labels, seed) for source, x, every in sources
        ],
    )


def _prediction(source: ProxySource, x: Floats, y: Floats, labels: Sequence[str], seed: int) -> Prediction:
    """Predict an attribute from some columns; ``labels`` are its classes, none where it is a number."""
    classes = bool(labels)
    rare = [n for n in range(len(labels)) if (y == n).sum() < _FEWEST]
    known = ~np.isin(y, rare) if classes else np.isfinite(y)
    x, y = x[known], y[known]
    reason = None
    if x.shape[1] == 0:
        reason = "there are none"
    elif classes and len(labels) - len(rare) < 2:
        reason = f"fewer than two of its values have {_FEWEST} rows"
    elif not classes and (len(y) < _FEWEST or np.ptp(y) == 0):
        reason = f"it does not vary, or fewer than {_FEWEST} rows have a value"
    value = std = shuffled = None
    if reason is None:
        folds = cross_validated(x, y, classes, seed)
        random = np.random.default_rng([seed, 1])
        chance = [cross_validated(x, random.permutation(y), classes, seed).mean() for _ in range(SHUFFLES)]
        value, std, shuffled = float(folds.mean()), float(folds.std(ddof=1)), float(np.mean(chance))
    return Prediction(
        source=source,
        columns=x.shape[1],
        rows=len(y),
        left_out=[labels[n] for n in rare],
        value=value,
        std=std,
        shuffled=shuffled,
        reason=reason,
    )


def cross_validated(x: Floats, y: Floats, classes: bool, seed: int) -> Floats:
    """The measure on each held-out fold, shape (folds,).

    Args:
        x: Columns to predict from, shape (rows, n_columns).
        y: Class numbers, or values, shape (rows,).
        classes: Whether ``y`` holds classes: then the mean AUC of each against the rest.
        seed: Seed of the folds.
    """
    fold = _folds(y if classes else np.zeros(len(y)), seed)
    return np.array([_on_fold(x, y, fold == n, classes) for n in range(FOLDS)])


def _folds(strata: Floats, seed: int) -> NDArray[np.int64]:
    """The fold of each row, every stratum divided evenly."""
    order = np.random.default_rng([seed, 0]).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    fold = np.empty(len(strata), dtype=np.int64)
    fold[order] = np.arange(len(strata)) % FOLDS
    return fold


def _on_fold(x: Floats, y: Floats, held: NDArray[np.bool_], classes: bool) -> float:
    mean, spread = x[~held].mean(axis=0), x[~held].std(axis=0)
    z = (x - mean) / np.where(spread > 0, spread, 1.0)
    if not classes:
        guess = ridge(z[~held], y[~held], z[held])
        return float(1 - np.square(y[held] - guess).sum() / np.square(y[held] - y[held].mean()).sum())
    labels = np.unique(y)
    positives = labels[1:] if len(labels) == 2 else labels
    return float(
        np.mean([auc(logistic(z[~held], (y[~held] == c) * 1.0, z[held]), y[held] == c) for c in positives])
    )


def ridge(x: Floats, y: Floats, new: Floats) -> Floats:
    """Predict by least squares with a penalty ``_PENALTY * ||w||^2``, the intercept free.

    Args:
        x: Centred columns, shape (rows, n_columns).
        y: Values, shape (rows,).
        new: Rows to predict, shape (n_new, n_columns).
    """
    gram = x.T @ x + _PENALTY * np.eye(x.shape[1])
    return y.mean() + new @ np.linalg.solve(gram, x.T @ (y - y.mean()))


def logistic(x: Floats, y: Floats, new: Floats) -> Floats:
    """Log-odds by logistic regression with a penalty ``_PENALTY / 2 * ||w||^2``, the intercept free.

    Args:
        x: Columns, shape (rows, n_columns).
        y: 0 or 1, shape (rows,).
        new: Rows to predict, shape (n_new, n_columns).
    """
    from scipy.optimize import minimize  # noqa: PLC0415 - slow to import, and few runs need it
    from scipy.special import expit  # noqa: PLC0415 - the same

    def loss(w: Floats) -> tuple[float, Floats]:
        z = x @ w[:-1] + w[-1]
        gap = expit(z) - y
        value = np.logaddexp(0, z).sum() - y @ z + _PENALTY / 2 * w[:-1] @ w[:-1]
        return float(value), np.append(x.T @ gap + _PENALTY * w[:-1], gap.sum())

    found: Any = minimize(
        loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}
    )
    return new @ found.x[:-1] + found.x[-1]


def auc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties counted half; both shape (rows,)."""
    from scipy.stats import rankdata  # noqa: PLC0415 - a second to import, and few runs need it

    hits = int(positive.sum())
    ranks = rankdata(score)[positive].sum()
    return float((ranks - hits * (hits + 1) / 2) / (hits * (len(positive) - hits)))
