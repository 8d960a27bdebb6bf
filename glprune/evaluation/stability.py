"""Stability selection: repeat the search on resamples of the training rows and count the kept features.

References:
    Meinshausen and Buehlmann (2010), "Stability selection", J. R. Stat. Soc. B 72(4), 417-473;
    complementary pairs: Shah and Samworth (2013), "Variable selection with error control: another look
    at stability selection", J. R. Stat. Soc. B 75(1), 55-80.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from glprune.errors import DataError, NonFiniteError, TargetError
from glprune.report.stability_index import Supports, false_bound, jaccard, nogueira, stable
from glprune.runtime.events import Listener, Notice, Progress, Stage, silent
from glprune.runtime.process_pool import OutcomeLog, WorkerPool, map_with_checkpoint
from glprune.schema.recipe import Recipe, StabilitySpec, TargetSpec
from glprune.schema.report import Interval, Resample, Stability
from glprune.search.outcome import FeatureOutcome
from glprune.search.search import search
from glprune.search.worker_setup import WorkerContext, indexable_split

if TYPE_CHECKING:
    from glprune.data.splits import IndexableSplit
    from glprune.search.job import Job

_OUTCOME: TypeAdapter[Resample | str] = TypeAdapter(Resample | str)
_FEWEST = 10  # choices that a normal approximation can be made of


def draw_resample(labels: NDArray[np.int64], share: float, seed: int, number: int) -> NDArray[np.int64]:
    """Rows of one part, drawn without replacement, every label by its share.

    With ``share`` 0.5 parts 2k and 2k + 1 are complementary halves of one random division.

    Args:
        labels: The stratum of each row, shape (n_rows,).
        share: Share of the rows.
        seed: The recipe's seed.
        number: Number of the part.

    Returns:
        Row numbers, ascending, int64.
    """
    pairs = share == 0.5
    random = np.random.default_rng([seed, number // 2 if pairs else number])
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # every 1/share-th row of the shuffled strata, one behind the other: no stratum is off by more than one
    taken = np.diff(np.floor(np.arange(len(labels) + 1) * share + 1e-9)) > 0
    return np.sort(order[~taken if pairs and number % 2 else taken])


def check_rows(job: Job) -> None:
    """Refuse training rows that no part can be drawn from, before anything is trained.

    Raises:
        DataError: A part would have fewer than two rows, or the rows do not fit together in memory.
    """
    spec = job.recipe.stability
    if spec is None or spec.n_resamples == 0:
        return
    rows = indexable_split(job.data.train, job.recipe.seed).rows
    if int(rows * spec.subsample) < 2:
        raise DataError(
            f"{job.recipe.where('stability', 'subsample')}: {spec.subsample:g} of {rows} training rows leaves "
            "fewer than 2; raise it."
        )


def measure_stability(
    job: Job,
    spec: StabilitySpec,
    outcomes: Sequence[FeatureOutcome],
    workers: WorkerPool[WorkerContext],
    listener: Listener,
) -> Stability | None:
    """Search again on random parts of the training rows, in parallel, and compare the kept features.

    Args:
        job: The job.
        spec: What the recipe asks for.
        outcomes: What became of each feature in the shipped model.
        workers: Processes that rebuild the job.
        listener: Told every finished search.

    Returns:
        The record; None where no resample is asked for, or no feature was removed.

    Raises:
        TargetError: Fewer than two searches found a network.
        GlpruneError: Whatever else went wrong on a part.
    """
    if spec.n_resamples == 0:
        return None
    free = _removable(job)
    if all(outcome.is_kept for outcome, removable in zip(outcomes, free, strict=True) if removable):
        listener(Notice("No feature was removed, so there is no choice whose stability could be measured."))
        return None
    limit = sum(outcome.is_kept for outcome in outcomes)
    listener(Stage("stability", f"searching again on {spec.n_resamples} random parts of the training rows"))
    found = map_with_checkpoint(
        workers,
        functools.partial(_search_part, limit),
        range(spec.n_resamples),
        OutcomeLog(job.journal.open_step("resamples", {"limit": limit}), job.journal, _OUTCOME),
        lambda done: listener(Progress("resamples", done, spec.n_resamples)),
    )
    parts = [part for part in found if isinstance(part, Resample)]
    failures = [reason for reason in found if isinstance(reason, str)]
    if len(parts) < 2:
        raise TargetError(f"stability: {len(failures)} of {spec.n_resamples} resamples failed: {failures[0]}")
    return _record(spec, limit, free, parts, failures)


def _search_part(limit: int, rebuilt: WorkerContext, number: int) -> Resample | str:
    """Search on one part for a network of at most ``limit`` features, or say why none was found."""
    job, recipe, spec = rebuilt.job, rebuilt.job.recipe, rebuilt.job.recipe.stability
    assert spec is not None  # nobody asks for a part without it
    rows = draw_resample(_labels(job, rebuilt.rows), spec.subsample, recipe.seed, number)
    part = rebuilt.rows.take(rows)
    seed = recipe.seed if spec.seeds == "recipe" else _own_seed(recipe.seed, number)
    own = replace(job, recipe=_search_resample(recipe, limit, seed), data=replace(job.data, train=part))
    try:
        chosen = search(own, silent)
    except (TargetError, NonFiniteError) as error:  # of its own rows, such as features that leave together
        return str(error)
    return Resample(
        seed=seed,
        rows=part.rows,
        stages=len(chosen.stages),
        lam=chosen.stages[-1].selected.lam,
        metric=chosen.refit_metric,
        kept=_digits([outcome.is_kept for outcome in chosen.outcomes]),
    )


def _search_resample(recipe: Recipe, limit: int, seed: int) -> Recipe:
    """The recipe of a search for features alone: no refit after the last path, which chose them already."""
    changes: dict[str, object] = {
        "target": TargetSpec(max_features=limit),
        "refit": recipe.refit.model_copy(update={"epochs": 0}),
        "seed": seed,
    }
    if recipe.target.max_hidden is not None:  # hidden units had paths of their own, after the features
        changes["penalty"] = recipe.penalty.model_copy(update={"hidden": None})
    if recipe.target.lam is not None:  # found by one path
        changes["train"] = recipe.train.model_copy(update={"n_stages": 1})
    return recipe.model_copy(update=changes)


def _labels(job: Job, rows: IndexableSplit) -> NDArray[np.int64]:
    """Classes are strata; values are not."""
    by_class = job.task.kind in ("binary", "multiclass")
    return rows.target.numpy() if by_class else np.zeros(rows.rows, dtype=np.int64)


def _own_seed(seed: int, number: int) -> int:
    """A seed for one search, far from those of its neighbours."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1)[0]) % 2**31


def _removable(job: Job) -> list[bool]:
    """Whether each feature can be removed and its removal is a choice, in their order."""
    return [
        not groups.units.refused and job.rules.free(label)
        for groups in job.input_groups
        for label in groups.labels
    ]


def _digits(marks: Sequence[bool]) -> str:
    return "".join("1" if mark else "0" for mark in marks)


def _record(
    spec: StabilitySpec,
    limit: int,
    removable: Sequence[bool],
    parts: Sequence[Resample],
    failures: Sequence[str],
) -> Stability:
    """Summarise the choices over the features that can be removed; others would only raise the figures."""
    supports: Supports = np.array([[digit == "1" for digit in part.kept] for part in parts])[:, removable]
    index, halves = nogueira(supports), spec.subsample == 0.5
    return Stability(
        subsample=spec.subsample,
        pairs=halves,
        seeds=spec.seeds,
        limit=limit,
        removable=_digits(removable),
        threshold=spec.threshold,
        stable=stable(supports, spec.threshold),
        mean_kept=float(supports.sum(axis=1).mean()),
        jaccard=jaccard(supports),
        nogueira=index and index.value,
        nogueira_interval=Interval(low=index.low, high=index.high)
        if index is not None and len(parts) >= _FEWEST
        else None,
        false_bound=false_bound(supports, spec.threshold) if halves else None,
        resamples=list(parts),
        failures=list(failures),
    )
