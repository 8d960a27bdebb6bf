"""Stop a run whose original network is not the one that was trained, and say what is likely to be wrong."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune._wording import counted
from glprune.data.splits import first_rows, identity
from glprune.errors import ModelError
from glprune.model.original import (
    Original,
    Predictions,
    find_doubts,
    main_metric,
    measure_original,
    sure_gain,
    unmet_expectations,
)
from glprune.model.prediction import predict
from glprune.model.standardize import Standardize, StandardizedNetwork
from glprune.runtime.events import Notice, OriginalMeasured
from glprune.schema.metrics import HIGHER_IS_BETTER, inline, metric_text

if TYPE_CHECKING:
    from glprune.data.records import Data
    from glprune.data.splits import Split
    from glprune.model.task import Task
    from glprune.runtime.events import Listener
    from glprune.schema.recipe import Recipe

_CHUNK = 1024
_MAX_LISTED = 8  # columns or classes that a message names
_DOUBTFUL = "the original network does not look like the one that was trained"
_ACCEPT = "--accept-original (in Python accept_original=True)"


@dataclass(frozen=True)
class _Trial:
    """A change of the recipe, in words, with the task and the predictions under it."""

    remedy: str
    task: Task
    predictions: Predictions


@dataclass(frozen=True)
class _Scale:
    """Mean and deviation (0 as 1) of an input's columns, and which have more than two values."""

    mean: Tensor
    std: Tensor
    many: Tensor

    def layer(self, chosen: Tensor | None = None) -> Standardize:
        """Return the layer that standardises the chosen columns, or all."""
        keep = torch.ones_like(self.many) if chosen is None else chosen
        return Standardize(torch.where(keep, self.mean, 0.0), torch.where(keep, self.std, 1.0))


@dataclass(frozen=True)
class OriginalCheck:
    """The original network with its predictions on every split.

    Attributes:
        recipe: The recipe.
        module: The network as loaded.
        data: The data.
        task: Computes the metrics.
        predictions: Outputs and targets of every split; empty without labels.
    """

    recipe: Recipe
    module: nn.Module
    data: Data
    task: Task
    predictions: Predictions

    @functools.cached_property
    def original(self) -> Original:
        """Its metrics on every split, and what speaks against its being the network that was trained."""
        found = measure_original(self.task, self.predictions, self.data.classes or ())
        return found if found.doubts else replace(found, hints=tuple(self._hints()))

    def _hints(self) -> Iterator[str]:
        """Say where standardising its inputs, or not doing so, would surely make a network better."""
        if not self.predictions or self.recipe.data.stream is not None:  # every pass over a stream is long
            return
        tried = self._best(self._scalings())
        if tried is not None and sure_gain(self.task, self.predictions, tried.predictions):
            name = self.task.default_metric
            now, then = (
                metric_text(main_metric(self.task, p)) for p in (self.predictions, tried.predictions)
            )
            yield (
                f"The original network predicts better with {tried.remedy}: {name} on all rows would be "
                f"{then} instead of {now}. If it was trained so, correct the recipe."
            )

    def report(self, listener: Listener, accept: bool) -> None:
        """Report the metrics, and refuse a network that does not look trained.

        Args:
            listener: Receives the metrics of every split, and what was accepted.
            accept: Whether to go on with it.

        Raises:
            ModelError: ``model.expect`` does not hold, or the network looks untrained and is not accepted.
        """
        for found in self.original.splits:
            listener(OriginalMeasured(found.split, found.rows, found.metrics))
        self._check_expected()
        if self.original.doubts and not accept:
            metrics = "; ".join(map(str, self.original.splits))
            raise ModelError(
                f"{_DOUBTFUL}: {'; '.join(self.original.doubts)}. {self._likely_causes()} "
                f"Its metrics: {metrics}. Correct the recipe, or go on with {_ACCEPT}."
            )
        if self.original.doubts:
            listener(Notice(f"{_DOUBTFUL}, and is accepted: {'; '.join(self.original.doubts)}."))
        for hint in self.original.hints:
            listener(Notice(hint))

    def _check_expected(self) -> None:
        """Compare the network with ``model.expect`` on the test split."""
        expected = {str(name): value for name, value in self.recipe.model.expect.items()}
        unmet = unmet_expectations(self.task, self.predictions, expected) if expected else []
        if unmet:
            raise ModelError(
                f"{self.recipe.where('model', 'expect')}: {'; '.join(unmet)} on the test split: the network "
                f"is not used as it was trained, or was measured on other rows. {self._likely_causes()}"
            )

    def _likely_causes(self) -> str:
        """Name the causes, those first with which the network predicts better when they are put right."""
        found = list(self._found_causes())
        classes = [self._order_of_classes(), "model.output"] if self.data.classes else []
        scale = "the scale of the target" if self.task.kind == "regression" else "class weights in training"
        possible = [
            "inputs scaled outside the network (data.standardize)",
            *classes,
            "the order of the columns (data.features)",
            "weights of another network",
            scale,
        ]
        return f"{' '.join(found)}{' ' if found else ''}Likely causes: {', '.join(possible)}."

    def _order_of_classes(self) -> str:
        """Name the order in which the outputs were read."""
        labels = self.data.classes or ()
        shown = ", ".join(labels[:_MAX_LISTED]) + (", ..." if len(labels) > _MAX_LISTED else "")
        if self.recipe.data.classes is None:
            return f"the order of data.classes (not given, so the sorted labels were taken: {shown})"
        return f"the order of data.classes ({shown})"

    def _found_causes(self) -> Iterator[str]:
        """Try what may be wrong; yield what leaves no doubt, with the metric it would give."""
        name = self.task.default_metric
        before = main_metric(self.task, self.predictions)
        for tried in (self._best(t for t in self._scalings() if self._is_cure(t)), *self._readings()):
            if tried is not None and self._is_cure(tried):
                now, then = metric_text(before), metric_text(main_metric(tried.task, tried.predictions))
                yield f"With {tried.remedy} {inline(name)} on all rows would be {then} instead of {now}."

    def _is_cure(self, tried: _Trial) -> bool:
        """Whether a change makes the network no worse and leaves no doubt, or is sure to make it better."""
        clears = bool(self.original.doubts) and not find_doubts(tried.task, tried.predictions)
        return (clears and self._gain(tried) >= 0) or sure_gain(
            tried.task, self.predictions, tried.predictions
        )

    def _gain(self, tried: _Trial) -> float:
        name = self.task.default_metric
        gain = main_metric(tried.task, tried.predictions) - main_metric(self.task, self.predictions)
        return gain if HIGHER_IS_BETTER[name] else -gain

    def _best(self, trials: Iterable[_Trial]) -> _Trial | None:
        """Return the trial with the best metric, the first of equals; None where there is none."""
        return max(trials, key=self._gain, default=None)

    def _scalings(self) -> Iterator[_Trial]:
        """Try the other settings of ``data.standardize``: none, all columns, those of more than two values.

        Scalers are often fitted without the columns of 0 and 1.
        """
        if any(self.data.standardization):
            yield _Trial("data.standardize: none", self.task, self._predict(self.module))
        first = first_rows(self.data.train, 1)
        scales = [_measure(self.data.train, n) if _is_table(x) else None for n, x in enumerate(first)]
        tables = [scale for scale in scales if scale is not None]
        if tables and self.recipe.data.standardize != "train":
            where = (
                "inputs standardised in the loader" if self.recipe.data.yields else "data.standardize: train"
            )
            layers = [None if s is None else s.layer() for s in scales]
            yield _Trial(where, self.task, self._predict(self._standardized(layers)))
        if any(s.many.any() for s in tables) and not all(s.many.all() for s in tables):
            layers = [None if s is None else s.layer(s.many) for s in scales]
            yield _Trial(self._list_of_many(scales), self.task, self._predict(self._standardized(layers)))

    def _list_of_many(self, scales: Sequence[_Scale | None]) -> str:
        """Say that the columns of more than two values alone are standardised, and which these are."""
        count = counted(sum(int(s.many.sum()) for s in scales if s is not None), "column")
        if self.recipe.data.yields:
            return f"the {count} of more than two values standardised in the loader"
        chosen = [
            part.columns[position]
            for part, scale in zip(self.data.inputs, scales, strict=True)
            if scale is not None
            for position in scale.many.nonzero().flatten().tolist()
        ]
        if len(chosen) > _MAX_LISTED:
            return f"data.standardize: [a list of the {count} of more than two values]"
        names = json.dumps(chosen, ensure_ascii=False)
        return f"data.standardize: {names} (the columns of more than two values)"

    def _readings(self) -> Iterator[_Trial]:
        """Read the same outputs as probabilities, or with the classes in the other order."""
        if self.task.kind != "regression" and self.task.output == "logits" and self._in_unit_interval():
            task = replace(self.task, output="probabilities")
            yield _Trial("model.output: probabilities", task, self.predictions)
        if self.task.kind == "binary":
            yield _Trial("data.classes in the other order", self.task, self._swapped())

    def _predict(self, network: nn.Module) -> Predictions:
        def view(inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (self.task.view(network(*inputs)),)

        found = {}
        for name in self.predictions:
            (output,), target = predict(view, self.data.splits[name], identity)
            found[name] = output, target
        return found

    def _standardized(self, layers: Sequence[Standardize | None]) -> nn.Module:
        """Return the network behind standardisation layers."""
        return StandardizedNetwork(layers, self.module).eval()

    def _swapped(self) -> Predictions:
        return {name: (output, 1 - target) for name, (output, target) in self.predictions.items()}

    def _in_unit_interval(self) -> bool:
        return all(bool(((y >= 0) & (y <= 1)).all()) for y, _ in self.predictions.values())


def _is_table(x: Tensor) -> bool:
    """Whether an input has rows and columns of numbers, which can be standardised."""
    return x.ndim == 2 and x.is_floating_point()


def _measure(split: Split, number: int) -> _Scale:
    """Measure the columns of an input on a split."""
    total, squares, rows = torch.zeros(1), torch.zeros(1), 0
    low, high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    for x in _blocks(split, number):
        total, squares, rows = total + x.sum(0), squares + x.square().sum(0), rows + len(x)
        low, high = torch.minimum(low, x.amin(0)), torch.maximum(high, x.amax(0))
    mean = total / rows
    std = (squares / rows - mean.square()).clamp(min=0).sqrt()
    many = torch.zeros_like(std, dtype=torch.bool)
    for x in _blocks(split, number):
        many |= ((x > low) & (x < high)).any(0)
    return _Scale(mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0), many)


def _blocks(split: Split, number: int) -> Iterator[Tensor]:
    """Yield the rows of an input, float64."""
    return (inputs[number].double() for inputs, _ in split.batches(_CHUNK, None))
