"""Group LASSO on a network's inputs as a feature selector of scikit-learn (extra ``glprune[sklearn]``)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from glprune._user_code import network_errors
from glprune.data.records import Data, Standardization
from glprune.data.splits import TensorSplit, identity
from glprune.errors import GlpruneError, ModelError
from glprune.model.diagnostics import copied
from glprune.model.loading import LoadedNetwork
from glprune.runtime.determinism import reproducible
from glprune.runtime.events import silent
from glprune.schema.recipe import Recipe, RefitSpec
from glprune.search.path_point import path_record
from glprune.search.prepare import build_job
from glprune.search.search import SearchResult, search
from glprune.tables.features import ColumnId, Feature, InputColumns
from glprune.training.refit import Refit

if TYPE_CHECKING:
    from glprune.model.original_check import OriginalCheck
    from glprune.search.job import Job

try:
    from sklearn.base import BaseEstimator, clone
    from sklearn.feature_selection import SelectorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "glprune.integrations.sklearn needs scikit-learn: pip install 'glprune[sklearn]'.", name=error.name
    ) from error
_TASKS = {"binary": "binary", "multiclass": "multiclass", "continuous": "regression"}
_MIN_ROWS = 5  # fewer cannot be split into training and validation rows


class GroupLassoPruner(SelectorMixin, BaseEstimator):  # type: ignore[misc]  # the package has no types
    """Selects the columns a network needs and removes the others from it.

    It follows the regularisation path of the group LASSO with the same code as ``glprune run``: groups are
    verified, zeros are exact, every cut is measured. No file is written; the slim network is an attribute.

    Args:
        network: One of: a trained ``torch.nn.Module``; an estimator with a ``module_`` after fitting, as in
            skorch (fitted on ``X`` and ``y`` if it is not yet); a function ``(n_features, n_outputs)``
            that returns an untrained network, which is then trained.
        max_features: Largest number of features to keep, or their share. If none of the three targets
            is given, half of the features.
        max_drop: Alternative target: how much the metric on the validation rows may worsen (AUROC for two
            classes, accuracy for several, R squared for regression).
        lam: Alternative target: exactly this strength of the penalty.
        groups: Feature -> its columns, by name or number, which are kept or removed together; every other
            column is a feature of its own.
        task: ``auto`` (by ``y``), ``binary``, ``multiclass`` or ``regression``.
        output: What a classification network returns, ``logits`` or ``probabilities``.
        standardize: Apply ``(x - mean) / std`` of the training rows before the network.
        validation_fraction: Share of the rows used to choose the point of the path.
        penalty: Keys of the recipe section ``penalty``, such as ``{"hidden": {"strength": 0.3}}``.
        train: Keys of the recipe section ``train``, such as ``{"epochs": 3}``.
        refit: Keys of the recipe section ``refit``.
        pretrain: Like ``refit``, for the training of a network returned by a function.
        accept_original: Go on with a trained network whose predictions of ``y`` are near chance, as where it
            was trained on scaled columns and ``X`` holds raw ones; else that is a ValueError.
        random_state: Seed of the split of the rows and of all training.

    Attributes:
        support_: Mask of the kept columns, bool, shape (n_features_in_,).
        network_: The slim network, in evaluation mode; it takes ``transform(X)`` as float32.
        path_: The points of the path, ``glprune.schema.report.PathPoint``.
        kkt_zero_: Largest relative violation of the optimality conditions over zero groups, where selected.
        kkt_active_: The same over the kept groups; above 0.05 longer training might have kept other columns.
        difference_: Largest relative change of the outputs by a cut.
        classes_: The classes, where there are any.

    Example:
        >>> from torch import nn
        >>> def network(n_features, n_outputs):
        ...     return nn.Sequential(nn.Linear(n_features, 8), nn.ReLU(), nn.Linear(8, n_outputs))
        >>> selector = GroupLassoPruner(network, max_features=2)
    """

    def __init__(  # noqa: PLR0913 - scikit-learn requires every parameter in the constructor
        self,
        network: Any,
        *,
        max_features: int | float | None = None,
        max_drop: float | None = None,
        lam: float | None = None,
        groups: Mapping[str, Sequence[int | str]] | None = None,
        task: str = "auto",
        output: str = "logits",
        standardize: bool = False,
        validation_fraction: float = 0.2,
        penalty: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        refit: Mapping[str, Any] | None = None,
        pretrain: Mapping[str, Any] | None = None,
        accept_original: bool = False,
        random_state: Any = None,
    ) -> None:
        self.network = network
        self.max_features = max_features
        self.max_drop = max_drop
        self.lam = lam
        self.groups = groups
        self.task = task
        self.output = output
        self.standardize = standardize
        self.validation_fraction = validation_fraction
        self.penalty = penalty
        self.train = train
        self.refit = refit
        self.pretrain = pretrain
        self.accept_original = accept_original
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:  # noqa: N803 - scikit-learn's name
        """Select columns.

        Args:
            X: Numbers, shape (n_rows, n_features): an array, or a frame of pandas or polars.
            y: Labels or values, shape (n_rows,).

        Raises:
            ValueError: Data, network and parameters do not match, or no network meets the target.
        """
        rows, target = validate_data(
            self, X, y, dtype=np.float32, ensure_min_features=2, ensure_min_samples=_MIN_ROWS
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        task, goal = self._target(target)
        try:
            with reproducible(seed, 1), network_errors():
                job = self._job(rows, goal, task, seed)
                chosen = search(job, silent)
        except GlpruneError as error:
            raise ValueError(str(error)) from error
        self._store_result(job, chosen)
        return self

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        return self.support_

    def _target(self, y: NDArray[Any]) -> tuple[str, Tensor]:
        """Return the task and the target in the form its loss takes."""
        found = type_of_target(y, input_name="y")
        task = _TASKS.get(found, found) if self.task == "auto" else self.task
        if task == "regression":
            return task, torch.from_numpy(np.asarray(y, dtype=np.float32))
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y holds one class only; nothing can be selected for it.")
        return task, torch.from_numpy(numbers.astype(np.int64))

    def _job(self, rows: NDArray[np.float32], goal: Tensor, task: str, seed: int) -> Job:
        """Build the job of a run from data in memory."""
        data = self._data(rows, goal, task, seed)
        recipe = self._recipe(task, seed, len(data.features))
        module, trained = self._module(rows, goal, task)
        digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in module.state_dict().values()))
        loaded = LoadedNetwork(module, f"sha256:{digest.hexdigest()}", "state_dict")
        job = build_job(recipe, data, loaded, judge=self._judge if trained else None)
        if trained:
            return job
        spec = RefitSpec.model_validate(dict(self.pretrain or {}))
        pretrain = Refit(
            job.task, data.train, data.valid, identity, spec, seed, teacher=job.network, metric=job.metric
        )
        return replace(job, network=pretrain.run(job.network).network)

    def _judge(self, check: OriginalCheck) -> None:
        """Refuse a network that does not look trained; the test split is the validation split."""
        predictions = {name: check.predictions[name] for name in ("train", "valid")}
        replace(check, predictions=predictions).report(silent, self.accept_original)

    def _module(self, rows: NDArray[np.float32], goal: Tensor, task: str) -> tuple[nn.Module, bool]:
        """Return a copy of the network, and whether it is trained."""
        given, trained = self.network, True
        if not isinstance(given, nn.Module) and hasattr(given, "fit"):
            if not hasattr(given, "module_"):
                labels = goal[:, None] if task == "regression" else goal
                given = clone(given).fit(rows, labels.numpy())
            given = given.module_
        elif not isinstance(given, nn.Module) and callable(given):
            given, trained = given(rows.shape[1], len(self.classes_) if task == "multiclass" else 1), False
        if not isinstance(given, nn.Module):
            raise ModelError(
                f"network returned {type(given).__name__}; pass a torch.nn.Module, an estimator with "
                "module_, or a function (n_features, n_outputs) that returns a module."
            )
        return copied(given).float().cpu().eval(), trained

    def _recipe(self, task: str, seed: int, features: int) -> Recipe:
        """Build the equivalent recipe; its factory and loader are never called."""
        targets: dict[str, Any] = {}
        if self.max_features is not None:
            share = isinstance(self.max_features, float)
            targets["max_features"] = math.ceil(self.max_features * features) if share else self.max_features
        if self.lam is not None:
            targets["lambda"] = float(self.lam)
        if self.max_drop is not None:
            metric = {"binary": "auroc", "multiclass": "accuracy"}.get(task, "r2")
            targets["max_drop"] = {"metric": metric, "amount": float(self.max_drop)}
        in_memory = "glprune.integrations.sklearn:GroupLassoPruner"
        sections = {name: dict(getattr(self, name) or {}) for name in ("penalty", "train", "refit")}
        return Recipe.model_validate(
            {
                "task": task,
                "model": {"factory": in_memory, "output": self.output},
                "data": {"loader": in_memory},
                "target": targets or {"max_features": math.ceil(features / 2)},
                "seed": seed,
                **sections,
            }
        )

    def _data(self, rows: NDArray[np.float32], goal: Tensor, task: str, seed: int) -> Data:
        """Split the rows and assign the columns to features."""
        train, valid = _split_rows(goal.numpy(), task, self.validation_fraction, seed)
        names = [str(n) for n in getattr(self, "feature_names_in_", [f"x{i}" for i in range(rows.shape[1])])]
        train_rows, valid_rows = (
            TensorSplit((torch.from_numpy(rows[index]),), goal[torch.from_numpy(index)])
            for index in (train, valid)
        )
        return Data(
            source="memory",
            inputs=(InputColumns("features", -1, tuple(names)),),
            features=_features(names, self.groups or {}),
            classes=None if task == "regression" else tuple(map(str, self.classes_)),
            standardization=(_standardization(rows[train]) if self.standardize else None,),
            digests={"rows": f"sha256:{hashlib.sha256(rows.tobytes()).hexdigest()}"},
            notes=(),
            train=train_rows,
            valid=valid_rows,
            test=valid_rows,  # never used: no test metric is computed
        )

    def _store_result(self, job: Job, chosen: SearchResult) -> None:
        """Set the fitted attributes."""
        self.support_ = np.zeros(len(job.data.columns), dtype=bool)
        for feature, outcome in zip(job.data.features, chosen.outcomes, strict=True):
            self.support_[list(feature.columns)] = outcome.is_kept
        self.network_ = chosen.refit.network.eval()
        self.path_ = [
            path_record(point, number, run.job, job, point is run.selected)
            for number, run in enumerate(chosen.stages, 1)
            for point in run.points
        ]
        self.kkt_zero_ = max(point.kkt_zero for point in self.path_ if point.selected)
        self.kkt_active_ = max(point.kkt_active for point in self.path_ if point.selected)
        self.difference_ = chosen.removed.difference


def _split_rows(
    goal: NDArray[Any], task: str, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of training and validation rows, ascending, stratified by class where possible."""
    numbers = np.arange(len(goal))
    counts = np.unique(goal, return_counts=True)[1] if task != "regression" else np.array([])
    n_valid = max(1, math.ceil(share * len(goal)))
    stratify = len(counts) > 0 and counts.min() > 1 and n_valid >= len(counts)
    parts = train_test_split(numbers, test_size=share, random_state=seed, stratify=goal if stratify else None)
    return np.sort(parts[0]), np.sort(parts[1])


def _standardization(rows: NDArray[np.float32]) -> Standardization:
    """Compute mean and standard deviation; a constant column is only shifted."""
    values = torch.from_numpy(rows).double()
    std = values.std(dim=0, correction=0)
    return Standardization(values.mean(dim=0), torch.where(std > 0, std, 1.0))


def _features(names: Sequence[str], groups: Mapping[str, Sequence[int | str]]) -> tuple[Feature, ...]:
    """Return the features: the groups and the remaining columns, ordered by first column.

    Raises:
        ValueError: A group names an unknown column, or one of another group.
    """
    index = {name: number for number, name in enumerate(names)}
    owner: dict[int, str] = {}
    for group, listed in groups.items():
        for column in listed:
            number = index.get(column, -1) if isinstance(column, str) else int(column)
            if not 0 <= number < len(names):
                raise ValueError(f"groups: {group!r} names {column!r}, which is not a column.")
            if number in owner:
                raise ValueError(f"groups: {column!r} is in {owner[number]!r} and in {group!r}.")
            owner[number] = group
    columns: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        columns.setdefault(owner.get(number, name), []).append(number)
    return tuple(Feature(name, tuple(map(ColumnId, numbers))) for name, numbers in columns.items())
