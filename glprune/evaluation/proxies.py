"""Proxies: how well protected attributes can be predicted from kept inputs, removed inputs and the score.

A dropped feature may still be predictable from other inputs. The analysis needs protected data, so it runs
only when the recipe asks for it, and its results are written to a separate file.

References:
    Logistic regression with an L2 penalty as in Fan et al. (2008), "LIBLINEAR: a library for large linear
    classification", J. Mach. Learn. Res. 9; the area under the ROC curve from ranks: Hanley and McNeil
    (1982), "The meaning and use of the area under a receiver operating characteristic (ROC) curve".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from glprune.data.splits import identity
from glprune.evaluation.segments import attribute_status
from glprune.export.onnx_runtime import OnnxFile
from glprune.model.prediction import predict
from glprune.runtime.events import Listener, Stage
from glprune.schema import bundle as bundles
from glprune.schema.report import VALUES, Prediction, Proxies, ProxyAnalysis, ProxyAttribute, ProxySource
from glprune.tables.protected import Attribute, segmented

if TYPE_CHECKING:
    from glprune.export.shipped_model import ShippedModel
    from glprune.search.job import Job

FOLDS, SHUFFLES = 5, 5
_MIN_ROWS = 2 * FOLDS  # rows of a class, so that every fold holds two
_PENALTY = 1.0
_MAX_ITERATIONS = 500
Floats = NDArray[np.float64]
Fit = Callable[[Floats, Floats, Floats], Floats]
_ESTIMATOR = (
    "standardised columns; ridge regression for numbers, logistic regression for classes, both with an L2 "
    f"penalty of {_PENALTY:g} on the weights, stratified {FOLDS}-fold cross-validation"
)
_LIMITS = [
    "The predictions are linear: a nonlinear relation may be missed.",
    "Inputs were taken from all rows, the score from the test split, which is not used for training.",
    "The attribute's own columns are never among the inputs it is predicted from; codes are used as numbers.",
]


def measure_proxies(shipped: ShippedModel, listener: Listener) -> Proxies | None:
    """Predict every protected attribute and write the results to ``proxy.json``, if the recipe asks for it.

    Args:
        shipped: The shipped model.
        listener: Receives the start of the analysis.

    Returns:
        The record for the report; None where the recipe has no policy.
    """
    job, folder = shipped.job, shipped.folder
    spec = job.recipe.policy
    if spec is None:
        return None
    if not spec.proxies:
        return Proxies(performed=False, reason="policy.proxies is not set", file=None, digest=None)
    listener(Stage("proxies", "predicting protected attributes from inputs and score"))
    inputs, score = _inputs(job), _score(shipped)
    analysis = ProxyAnalysis(
        model=bundles.digest(shipped.file),
        estimator=_ESTIMATOR,
        folds=FOLDS,
        shuffles=SHUFFLES,
        seed=job.recipe.seed,
        attributes=[_attribute(shipped, a, inputs, score) for a in job.data.protected],
        limits=_LIMITS,
        schema="glprune.proxy/1",
    )
    bundles.write_json(folder / bundles.PROXIES, analysis.model_dump(mode="json", by_alias=True))
    return Proxies(
        performed=True, reason=None, file=bundles.PROXIES, digest=bundles.digest(folder / bundles.PROXIES)
    )


def _inputs(job: Job) -> Floats:
    """Return every column of every row of train, valid and test, shape (rows, n_columns)."""
    parts = []
    for split in (job.data.train, job.data.valid, job.data.test):
        inputs, _ = predict(lambda inputs: inputs, split, identity)
        with_axis = [x for x, part in zip(inputs, job.data.inputs, strict=True) if part.axis is not None]
        parts.append(torch.cat([x.double() for x in with_axis], dim=1))
    return torch.cat(parts).numpy()


def _score(shipped: ShippedModel) -> Floats:
    """Return the shipped file's outputs on the test rows; log-odds or log-probabilities of classes."""
    job = shipped.job
    outputs, _ = predict(OnnxFile(shipped.file, job.recipe.threads), job.data.test, shipped.select_columns)
    view = job.task.view(outputs).double()
    if job.task.kind in ("binary", "multiclass"):
        logs = job.task.log_probabilities(view)
        view = logs[:, 1:] - logs[:, :1] if job.task.kind == "binary" else logs
    return view.reshape(len(view), -1).numpy()


def _attribute(shipped: ShippedModel, attribute: Attribute, inputs: Floats, score: Floats) -> ProxyAttribute:
    """Predict one attribute from each of the three sources."""
    job, outcomes = shipped.job, shipped.outcomes
    names = job.data.columns
    kept_features = [f for f, outcome in zip(job.data.features, outcomes, strict=True) if outcome.is_kept]
    kept_columns = {c for f in kept_features for c in f.columns}
    others = [c for c in range(len(names)) if names[c] not in set(attribute.columns)]
    sources: list[tuple[ProxySource, Floats, bool]] = [
        ("kept inputs", inputs[:, [c for c in others if c in kept_columns]], True),
        ("removed inputs", inputs[:, [c for c in others if c not in kept_columns]], True),
        ("score", score, False),
    ]
    parts = segmented(attribute, None)
    classes = parts.by == VALUES
    values = parts.number if classes else attribute.values
    all_rows = np.concatenate([values[s] for s in ("train", "valid", "test")]).astype(np.float64)
    test = values["test"].astype(np.float64)
    labels, seed = parts.labels if classes else (), job.recipe.seed
    return ProxyAttribute(
        name=attribute.name,
        status=attribute_status(job, attribute, outcomes),
        measure="auc" if classes else "r2",
        classes=list(labels),
        predictions=[
            _prediction(source, x, all_rows if is_input else test, labels, seed)
            for source, x, is_input in sources
        ],
    )


def _prediction(source: ProxySource, x: Floats, y: Floats, labels: Sequence[str], seed: int) -> Prediction:
    """Predict an attribute from some columns; ``labels`` are its classes, empty where it is a number."""
    classes = bool(labels)
    rare = [n for n in range(len(labels)) if (y == n).sum() < _MIN_ROWS]
    known = ~np.isin(y, rare) if classes else np.isfinite(y)
    x, y = x[known], y[known]
    reason = _obstacle(x, y, len(labels) - len(rare) if classes else None)
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


def _obstacle(x: Floats, y: Floats, n_classes: int | None) -> str | None:
    """Return why the attribute cannot be predicted; ``n_classes`` is None where it is a number."""
    if x.shape[1] == 0:
        return "there are none"
    if n_classes is not None and n_classes < 2:
        return f"fewer than two of its values have {_MIN_ROWS} rows"
    if n_classes is None and (len(y) < _MIN_ROWS or np.ptp(y) == 0):
        return f"it does not vary, or fewer than {_MIN_ROWS} rows have a value"
    return None


def cross_validated(x: Floats, y: Floats, classes: bool, seed: int) -> Floats:
    """Return the AUC or r2 on each held-out fold, shape (folds,).

    Args:
        x: Columns to predict from, shape (rows, n_columns).
        y: Class numbers, or values, shape (rows,).
        classes: Whether ``y`` holds classes; the measure is then the mean AUC of each class against the rest.
        seed: Seed of the folds.
    """
    fold = _folds(y if classes else np.zeros(len(y)), seed)
    return np.array([_on_fold(x, y, fold == n, classes) for n in range(FOLDS)])


def _folds(strata: Floats, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row; every stratum is divided evenly."""
    order = np.random.default_rng([seed, 0]).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    fold = np.empty(len(strata), dtype=np.int64)
    fold[order] = np.arange(len(strata)) % FOLDS
    return fold


def _on_fold(x: Floats, y: Floats, held: NDArray[np.bool_], classes: bool) -> float:
    """Fit on the other rows and return the measure on the held-out ones."""
    mean, spread = x[~held].mean(axis=0), x[~held].std(axis=0)
    z = (x - mean) / np.where(spread > 0, spread, 1.0)
    if not classes:
        predicted = ridge(z[~held], y[~held], z[held])
        return float(1 - np.square(y[held] - predicted).sum() / np.square(y[held] - y[held].mean()).sum())
    labels = np.unique(y)
    positives = labels[1:] if len(labels) == 2 else labels
    return float(
        np.mean([auc(logistic(z[~held], (y[~held] == c) * 1.0, z[held]), y[held] == c) for c in positives])
    )


def ridge(x: Floats, y: Floats, new: Floats) -> Floats:
    """Predict by least squares with a penalty ``_PENALTY * ||w||^2``; the intercept is not penalised.

    Args:
        x: Centred columns, shape (rows, n_columns).
        y: Values, shape (rows,).
        new: Rows to predict, shape (n_new, n_columns).
    """
    gram = x.T @ x + _PENALTY * np.eye(x.shape[1])
    predicted: Floats = y.mean() + new @ np.linalg.solve(gram, x.T @ (y - y.mean()))
    return predicted


def logistic(x: Floats, y: Floats, new: Floats) -> Floats:
    """Predict log-odds by logistic regression with a penalty ``_PENALTY / 2 * ||w||^2`` on the weights only.

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
        loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS}
    )
    log_odds: Floats = new @ found.x[:-1] + found.x[-1]
    return log_odds


def auc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve; ties count half. Both arguments have shape (rows,)."""
    from scipy.stats import rankdata  # noqa: PLC0415 - a second to import, and few runs need it

    n_positive = int(positive.sum())
    ranks = rankdata(score)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (len(positive) - n_positive)))
