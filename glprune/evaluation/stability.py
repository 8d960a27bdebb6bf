"""Stability selection: repeat the search on random resamples of the training rows and count kept features.

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
from glprune.runtime.events import Listener, Notice, Stage, silent
from glprune.runtime.process_pool import OutcomeLog, WorkerPool, map_with_checkpoint
from glprune.schema.recipe import Recipe, StabilitySpec, TargetSpec
from glprune.schema.report import Interval, Resample, Stability
from glprune.search.outcome import FeatureOutcome
from glprune.search.portfolio.folds import strata
from glprune.search.search import search
from glprune.search.worker_setup import WorkerContext, indexable_split

if TYPE_CHECKING:
    from glprune.search.job import Job

_OUTCOME: TypeAdapter[Resample | str] = TypeAdapter(Resample | str)
_MIN_FOR_INTERVAL = 10  # selections that a normal approximation needs


def draw_resample(labels: NDArray[np.int64], share: float, seed: int, number: int) -> NDArray[np.int64]:
    """Draw the rows of one resample without replacement, stratified by label.

    With ``share`` 0.5, resamples 2k and 2k + 1 are complementary halves of one random split.

    Args:
        labels: The stratum of each row, shape (n_rows,).
        share: Share of the rows.
        seed: The recipe's seed.
        number: Number of the resample.

    Returns:
        Row numbers, ascending, int64.
    """
    pairs = share == 0.5
    random = np.random.default_rng([seed, number // 2 if pairs else number])
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # every 1/share-th row of the concatenated, shuffled strata: each stratum is within one row of its share
    taken = np.diff(np.floor(np.arange(len(labels) + 1) * share + 1e-9)) > 0
    return np.sort(order[~taken if pairs and number % 2 else taken])


def check_rows(job: Job) -> None:
    """Refuse training rows that no resample can be drawn from, before anything is trained.

    Raises:
        DataError: A resample would have fewer than two rows, or the rows differ in shape.
    """
    spec = job.recipe.stability
    if spec is None or spec.n_resamples == 0:
        return
    rows = indexable_split(job.data.train, job.recipe.seed).rows
    if int(rows * spec.subsample) < 2:
        raise DataError(
            f"{job.recipe.where('stability', 'subsample')}: {spec.subsample:g} of {rows} training rows "
            "leaves fewer than 2; raise it."
        )


def measure_stability(
    job: Job,
    spec: StabilitySpec,
    outcomes: Sequence[FeatureOutcome],
    workers: WorkerPool[WorkerContext],
    listener: Listener,
) -> Stability | None:
    """Repeat the search on resamples of the training rows, in parallel, and compare the kept features.

    Args:
        job: The job.
        spec: The recipe's ``stability`` section.
        outcomes: What became of each feature in the shipped model.
        workers: Processes that rebuild the job.
        listener: Receives every finished search.

    Returns:
        The record; None where no resample is asked for, or no feature was removed.

    Raises:
        TargetError: Fewer than two searches found a network.
        GlpruneError: A resample fails for another reason.
    """
    if spec.n_resamples == 0:
        return None
    removable = _removable(job)
    if all(o.is_kept for o, is_removable in zip(outcomes, removable, strict=True) if is_removable):
        listener(
            Notice("No feature was removed, so there is no selection whose stability could be measured.")
        )
        return None
    listener(
        Stage("stability", f"searching again on {spec.n_resamples} random resamples of the training rows")
    )
    limit = sum(outcome.is_kept for outcome in outcomes)
    found = map_with_checkpoint(
        workers,
        functools.partial(_search_resample, limit),
        range(spec.n_resamples),
        OutcomeLog(
            job.checkpoints.open_step("resamples", {"limit": limit}),
            job.checkpoints,
            _OUTCOME,
            "resamples",
            lambda _, found: isinstance(found, str) or len(found.kept) == len(removable),
        ),
        listener,
    )
    resamples = [resample for resample in found if isinstance(resample, Resample)]
    failures = [reason for reason in found if isinstance(reason, str)]
    if len(resamples) < 2:
        raise TargetError(f"stability: {len(failures)} of {spec.n_resamples} resamples failed: {failures[0]}")
    return make_stability(spec, limit, removable, resamples, failures)


def _search_resample(limit: int, context: WorkerContext, number: int) -> Resample | str:
    """Search on one resample for a network of at most ``limit`` features, or return why none was found."""
    job, recipe, spec = context.job, context.job.recipe, context.job.recipe.stability
    assert spec is not None  # resamples are drawn only where the recipe has the section
    rows = draw_resample(strata(job, context.rows.target), spec.subsample, recipe.seed, number)
    train = context.rows.take(rows)
    seed = recipe.seed if spec.seeds == "recipe" else _resample_seed(recipe.seed, number)
    resampled = replace(
        job, recipe=_resample_recipe(recipe, limit, seed), data=replace(job.data, train=train)
    )
    try:
        chosen = search(resampled, silent)
    except (TargetError, NonFiniteError) as error:  # may be due to the rows that were drawn
        return str(error)
    return Resample(
        seed=seed,
        rows=train.rows,
        stages=len(chosen.stages),
        lam=chosen.stages[-1].selected.lam,
        metric=chosen.refit_metric,
        kept=_digits([outcome.is_kept for outcome in chosen.outcomes]),
    )


def _resample_recipe(recipe: Recipe, limit: int, seed: int) -> Recipe:
    """Return the recipe of a search for features alone, without the refit that follows the selection."""
    changes: dict[str, object] = {
        "target": TargetSpec(max_features=limit),
        "refit": recipe.refit.model_copy(update={"epochs": 0}),
        "seed": seed,
    }
    if recipe.target.max_hidden is not None:  # hidden units are removed in a later stage
        changes["penalty"] = recipe.penalty.model_copy(update={"hidden": None})
    if recipe.target.lam is not None:  # a given lambda needs one path
        changes["train"] = recipe.train.model_copy(update={"n_stages": 1})
    return recipe.model_copy(update=changes)


def _resample_seed(seed: int, number: int) -> int:
    """Return a seed for one search, unrelated to those of the other resamples."""
    return int(np.random.SeedSequence([seed, number, 1]).generate_state(1)[0]) % 2**31


def _removable(job: Job) -> list[bool]:
    """Return whether the search decides on each feature: it can be removed and no rule is set for it."""
    return [
        not groups.units.refused and job.rules.free(label)
        for groups in job.input_groups
        for label in groups.labels
    ]


def _digits(flags: Sequence[bool]) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def make_stability(
    spec: StabilitySpec,
    limit: int,
    removable: Sequence[bool],
    resamples: Sequence[Resample],
    failures: Sequence[str],
) -> Stability:
    """Compute the stability of selections over the removable features; the others would inflate it."""
    kept = [[digit == "1" for digit in resample.kept] for resample in resamples]
    supports: Supports = np.array(kept)[:, removable]
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
        if index is not None and len(resamples) >= _MIN_FOR_INTERVAL
        else None,
        false_bound=false_bound(supports, spec.threshold) if halves else None,
        resamples=list(resamples),
        failures=list(failures),
    )
