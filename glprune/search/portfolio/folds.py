"""Folds: the jobs on which candidates are compared.

With many validation rows there is one job, with the splits of the recipe. With few, training and validation
rows are pooled and divided into folds; every fold is the validation split of one job, and the other folds are
its training split. The test rows are in none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glprune.data.splits import TensorSplit
from glprune.errors import RecipeError

if TYPE_CHECKING:
    from glprune.search.job import Job

AUTO_FOLDS = 5
_MIN_FOLD_ROWS = 4
FEW_ROWS = 200
"""Validation rows, or rows of the rarer of two classes times two, below which ``folds: auto`` makes folds."""


def fold_jobs(job: Job) -> tuple[Job, ...]:
    """Return the jobs on which candidates are compared: the job itself, or one for each fold.

    Args:
        job: A job.

    Raises:
        RecipeError: The recipe asks for folds that cannot be made.
    """
    folds = fold_rows(job)
    if not folds:
        return (job,)
    rows = _pooled(job)
    return tuple(
        replace(job, data=replace(job.data, train=rows.take(train), valid=rows.take(valid)))
        for train, valid in folds
    )


def fold_rows(job: Job) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the training and validation rows of every fold, of the pooled rows; none without folds.

    Raises:
        RecipeError: The recipe asks for folds that cannot be made.
    """
    spec = job.recipe.data.validation
    count = fold_count(job)
    if count == 1:
        return []
    classes = strata(job, _targets(job))
    found = []
    for repeat in range(spec.repeats):
        numbers = _fold_numbers(classes, count, np.random.default_rng([job.recipe.seed, repeat]))
        found += [(np.flatnonzero(numbers != f), np.flatnonzero(numbers == f)) for f in range(count)]
    return found


def fold_count(job: Job) -> int:
    """Return the number of folds; 1 where the validation split alone decides.

    Raises:
        RecipeError: The recipe asks for folds that cannot be made.
    """
    folds, largest = job.recipe.data.validation.folds, _largest_count(job)
    if folds == "auto":
        return min(AUTO_FOLDS, largest) if largest > 1 and _effective_rows(job) < FEW_ROWS else 1
    if folds > max(1, largest):
        few = "no row of one class" if job.task.kind == "binary" else f"fewer than {_MIN_FOLD_ROWS} rows"
        reason = (
            f"a fold would have {few}; use at most {max(1, largest)}"
            if _in_memory(job)
            else "folds need all rows in memory and one process; set 1"
        )
        raise RecipeError(f"{job.recipe.where('data', 'validation', 'folds')}: {folds}: {reason}.")
    return folds


def _largest_count(job: Job) -> int:
    """Return the largest number of folds; 0 where the rows are not in memory."""
    if not _in_memory(job):
        return 0
    if job.task.kind == "binary":
        return int(torch.bincount(_targets(job), minlength=2).min())
    return len(_targets(job)) // _MIN_FOLD_ROWS


def _in_memory(job: Job) -> bool:
    return isinstance(job.data.train, TensorSplit) and isinstance(job.data.valid, TensorSplit)


def _effective_rows(job: Job) -> int:
    """Return the number of validation rows, or twice that of the rarer of two classes if it is smaller."""
    valid = job.data.valid
    if job.task.kind != "binary" or not isinstance(valid, TensorSplit):
        return valid.rows
    return min(valid.rows, 2 * int(torch.bincount(valid.target, minlength=2).min()))


def strata(job: Job, target: Tensor) -> NDArray[np.int64]:
    """Return the stratum of each row: its class, or 0 where the target is a number.

    Args:
        job: The job.
        target: Targets of the rows.
    """
    by_class = job.task.kind in ("binary", "multiclass")
    return target.numpy() if by_class else np.zeros(len(target), dtype=np.int64)


def _fold_numbers(
    classes: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the fold of every row, so that each has its share of every stratum."""
    order = np.concatenate([generator.permutation(np.flatnonzero(classes == c)) for c in np.unique(classes)])
    numbers = np.empty(len(classes), dtype=np.int64)
    numbers[order] = np.arange(len(classes)) % count
    return numbers


def _targets(job: Job) -> Tensor:
    """Return the targets of training and validation rows together."""
    return torch.cat([split.target for split in _splits(job)])


def _pooled(job: Job) -> TensorSplit:
    """Return training and validation rows together."""
    pairs = zip(*(split.inputs for split in _splits(job)), strict=True)
    return TensorSplit(tuple(torch.cat(p) for p in pairs), _targets(job))


def _splits(job: Job) -> tuple[TensorSplit, TensorSplit]:
    train, valid = job.data.train, job.data.valid
    assert isinstance(train, TensorSplit)  # folds are made of rows in memory
    assert isinstance(valid, TensorSplit)
    return train, valid
