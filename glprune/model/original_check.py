"""Stop a run whose original network is not the one that was trained, and say what is likely to be wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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
_DOUBTFUL = "the original network does not look like the one that was trained"
_ACCEPT = "--accept-original (in Python accept_original=True)"


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
        found = measure_original(self.task, self.predictions)
        return found if found.doubts else replace(found, hints=tuple(self._hints()))

    def _hints(self) -> Iterator[str]:
        """Say where standardising its inputs, or not doing so, would surely make a network better."""
        if not self.predictions or self.recipe.data.stream is not None:  # every pass over a stream is long
            return
        for remedy, attempt in self._remedies():
            if "standardi" not in remedy:
                continue
            task, predictions = attempt()
            if sure_gain(task, self.predictions, predictions):
                name = task.default_metric
                now, then = (metric_text(main_metric(task, p)) for p in (self.predictions, predictions))
                yield (
                    f"The original network predicts better with {remedy}: {name} on all rows would be {then} "
                    f"instead of {now}. If it was trained so, correct the recipe."
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
        classes = [] if self.task.kind == "regression" else ["the order of data.classes", "model.output"]
        scale = "the scale of the target" if self.task.kind == "regression" else "class weights in training"
        possible = [
            "inputs scaled outside the network (data.standardize)",
            *classes,
            "the order of the columns (data.features)",
            "weights of another network",
            scale,
        ]
        return f"{' '.join(found)}{' ' if found else ''}Likely causes: {', '.join(possible)}."

    def _found_causes(self) -> Iterator[str]:
        """Try what may be wrong; yield what leaves no doubt, with the metric it would give."""
        name = self.task.default_metric
        before = main_metric(self.task, self.predictions)
        for remedy, attempt in self._remedies():
            task, predictions = attempt()
            value = main_metric(task, predictions)
            gain = value - before if HIGHER_IS_BETTER[name] else before - value
            clears = bool(self.original.doubts) and gain >= 0 and not find_doubts(task, predictions)
            if clears or sure_gain(task, self.predictions, predictions):
                now, then = metric_text(before), metric_text(value)
                yield f"With {remedy} {inline(name)} on all rows would be {then} instead of {now}."

    def _remedies(self) -> Iterator[tuple[str, Callable[[], tuple[Task, Predictions]]]]:
        """Yield changes of the recipe, each with what computes the predictions under it."""
        where = "inputs standardised in the loader" if self.recipe.data.yields else "data.standardize: train"
        if any(self.data.standardization):
            yield "data.standardize: none", lambda: (self.task, self._predict(self.module))
        elif any(_is_table(x) for x in first_rows(self.data.train, 1)):
            yield where, lambda: (self.task, self._predict(self._standardized()))
        if self.task.kind != "regression" and self.task.output == "logits" and self._in_unit_interval():
            task = replace(self.task, output="probabilities")
            yield "model.output: probabilities", lambda: (task, self.predictions)
        if self.task.kind == "binary":
            yield "data.classes in the other order", lambda: (self.task, self._swapped())

    def _predict(self, network: nn.Module) -> Predictions:
        def view(inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (self.task.view(network(*inputs)),)

        found = {}
        for name in self.predictions:
            (output,), target = predict(view, self.data.splits[name], identity)
            found[name] = output, target
        return found

    def _standardized(self) -> nn.Module:
        """Return the network behind the mean and standard deviation of the training rows."""
        layers = [
            Standardize(*_moments(self.data.train, number)) if _is_table(x) else None
            for number, x in enumerate(first_rows(self.data.train, 1))
        ]
        return StandardizedNetwork(layers, self.module).eval()

    def _swapped(self) -> Predictions:
        return {name: (output, 1 - target) for name, (output, target) in self.predictions.items()}

    def _in_unit_interval(self) -> bool:
        return all(bool(((y >= 0) & (y <= 1)).all()) for y, _ in self.predictions.values())


def _is_table(x: Tensor) -> bool:
    """Whether an input has rows and columns of numbers, which can be standardised."""
    return x.ndim == 2 and x.is_floating_point()


def _moments(split: Split, number: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the columns of an input, a deviation of 0 as 1."""
    total, squares, rows = torch.zeros(1), torch.zeros(1), 0
    for inputs, _ in split.batches(_CHUNK, None):
        x = inputs[number].double()
        total, squares, rows = total + x.sum(0), squares + x.square().sum(0), rows + len(x)
    mean = total / rows
    std = (squares / rows - mean.square()).clamp(min=0).sqrt()
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0)
