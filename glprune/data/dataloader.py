"""Read data from a user's loader."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glprune._imports import describe, load_callable
from glprune._plugins import load_plugin
from glprune.data.columns import make_features
from glprune.data.records import Data, InputColumns
from glprune.data.splits import SPLITS, Inputs
from glprune.errors import DataError, GlpruneError, RecipeError

if TYPE_CHECKING:
    from glprune.schema.recipe import InputSpec, Recipe


@dataclass(frozen=True)
class LoaderSplit:
    """A split streamed from a user's DataLoader, in the batches the loader makes.

    Attributes:
        loader: Yields ``(inputs, target)``; inputs alone where there are no labels.
        specs: The inputs in the network's order.
        kind: The task, which decides the target's type.
        rows: Number of rows, counted once.
        name: The split's, and where the recipe names the loader, for messages.
    """

    loader: Iterable[Any]
    specs: tuple[InputSpec, ...]
    kind: str
    rows: int
    name: str

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the loader's own batches; its shuffling is seeded from ``generator``."""
        with torch.random.fork_rng(devices=[]):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            try:
                for batch in self.loader:
                    yield unpack(batch, self.specs, self.kind)
            except GlpruneError as error:
                raise DataError(f"{self.name}: {error}") from error
            except Exception as error:  # the user's loader may raise anything
                raise DataError(f"{self.name} failed ({describe(error)}).") from error


@dataclass(frozen=True)
class _Survey:
    """What one reading of a loader found."""

    split: LoaderSplit
    digest: str
    widths: tuple[int, ...]
    largest: int


def load_loader(recipe: Recipe) -> Data:
    """Make the loader of every split and go through it once.

    Raises:
        DataError: A loader cannot be made, or yields what no network could take.
        RecipeError: The recipe names other features or classes than it yields.
    """
    reference, where, make = _maker(recipe)
    found: dict[str, _Survey] = {}
    for name in SPLITS:
        split = f"{where}: split {name!r}"
        try:
            found[name] = _survey(make(split=name), recipe, split)
        except GlpruneError as error:
            raise DataError(f"{split}: {error}") from error
        except Exception as error:  # the user's loader may raise anything
            raise DataError(f"{split} failed ({describe(error)}).") from error
        if found[name].widths != found["train"].widths:
            raise DataError(f"{where}: split {name!r} has other numbers of features than 'train'.")
    inputs = _loader_inputs(recipe, found["train"].widths)
    return Data(
        source=reference,
        inputs=inputs,
        features=make_features(recipe, inputs),
        train=found["train"].split,
        valid=found["valid"].split,
        test=found["test"].split,
        classes=_loader_classes(recipe, max(survey.largest for survey in found.values())),
        standardization=(None,) * len(inputs),
        digests={name: survey.digest for name, survey in found.items()},
        notes=(),
    )


def _maker(recipe: Recipe) -> tuple[str, str, Callable[..., Iterable[Any]]]:
    """What makes the loader of a split: its name, the place that names it, and the function."""
    spec = recipe.data
    if spec.source is None:
        where = recipe.where("data", "loader")
        return str(spec.loader), where, load_callable(str(spec.loader), recipe.folder, where, recipe.allowed)
    where = recipe.where("data", "source")
    plugin = load_plugin("glprune.data", spec.source, where, recipe.allowed)
    return f"{spec.source} ({plugin.package})", where, functools.partial(plugin, **spec.arguments)


def _loader_inputs(recipe: Recipe, widths: Sequence[int]) -> tuple[InputColumns, ...]:
    """Name the features of every input, as data.features lists them over all inputs."""
    specs = recipe.model.inputs
    names = recipe.data.features
    if names is None:
        stem = [f"{spec.name}." if len(specs) > 1 else "x" for spec in specs]
        names = [f"{stem[n]}{i}" for n, width in enumerate(widths) for i in range(width)]
    if len(names) != sum(widths):
        raise RecipeError(
            f"{recipe.where('data', 'features')} lists {len(names)} names, the loader yields "
            f"{sum(widths)} features."
        )
    left = iter(names)
    return tuple(
        InputColumns(spec.name, spec.axis, tuple(next(left) for _ in range(width)))
        for spec, width in zip(specs, widths, strict=True)
    )


def _survey(loader: Iterable[Any], recipe: Recipe, name: str) -> _Survey:
    """Read a loader once: rows, digest of the tensors, features of each input, largest class."""
    total, rows, largest = hashlib.sha256(), 0, 0
    specs = tuple(recipe.model.inputs)
    widths: tuple[int, ...] | None = None
    for batch in loader:
        inputs, target = unpack(batch, specs, recipe.task)
        for tensor in (*inputs, target):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError(f"NaN or Inf in batch after row {rows}.")
            total.update(tensor.contiguous().numpy().tobytes())
        found = tuple(0 if s.axis is None else x.shape[s.axis] for s, x in zip(specs, inputs, strict=True))
        if found != (widths or found):
            raise DataError(f"the number of features changes after row {rows}; it must be one number.")
        widths, rows = found, rows + len(target)
        if recipe.task in ("binary", "multiclass"):
            largest = max(largest, int(target.max()))
            if int(target.min()) < 0:
                raise DataError(f"class {int(target.min())} is below 0 after row {rows}.")
    if rows < 2 or widths is None:
        raise DataError(f"{rows} rows; at least 2 are needed.")
    return _Survey(
        LoaderSplit(loader, specs, recipe.task, rows, name), f"sha256:{total.hexdigest()}", widths, largest
    )


def unpack(batch: Any, specs: Sequence[InputSpec], kind: str) -> tuple[Inputs, Tensor]:
    """Bring a loader's batch to ``(inputs, target)``.

    Args:
        batch: ``(x, y)``, ``((x1, x2), y)`` or ``({name: x}, y)``; for distillation the inputs may
            come alone.
        specs: The inputs in the network's order.
        kind: The task.

    Returns:
        Inputs as float32, int64 or bool; classes (rows,) int64, values (rows,) float32, or
        (rows, 0) for distillation.

    Raises:
        DataError: The batch is something else.
    """
    raw, goal = _parted(batch, len(specs), kind)
    inputs = _as_inputs(raw, specs)
    rows = len(inputs[0])
    for spec, x in zip(specs, inputs, strict=True):
        if len(x) != rows:
            raise DataError(f"input {spec.name!r} has {len(x)} rows, {specs[0].name!r} has {rows}.")
    if kind == "distillation":
        return inputs, torch.empty(rows, 0)
    if not isinstance(goal, Tensor):
        raise DataError(f"a batch should hold {len(specs)} input tensor(s) and a target tensor.")
    if goal.ndim == 0 or len(goal) != rows:
        raise DataError(
            f"inputs of shape {tuple(inputs[0].shape)} do not fit a target of shape {tuple(goal.shape)}."
        )
    flat = goal.reshape(rows, -1)
    if flat.shape[1] != 1:
        raise DataError(f"a target of shape {tuple(goal.shape)} has several values in a row; one is needed.")
    if kind == "regression":
        return inputs, flat[:, 0].float()
    if flat.is_floating_point() and not torch.equal(flat, flat.trunc()):
        raise DataError("a class label is not a whole number; yield the classes as 0, 1 and so on.")
    return inputs, flat[:, 0].long()


def _parted(batch: Any, inputs: int, kind: str) -> tuple[Any, Any]:
    """Inputs and target of a batch; without labels the target is whatever stands behind the inputs."""
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    if kind != "distillation":
        if not pair:
            raise DataError(f"a batch is {type(batch).__name__}, not a pair (inputs, target).")
        return batch[0], batch[1]
    # a pair of tensors is both inputs of a network with two, and inputs with a label of one with one
    if pair and (inputs == 1 or not isinstance(batch[0], Tensor)):
        return batch[0], batch[1]
    return batch, None


def _as_inputs(raw: Any, specs: Sequence[InputSpec]) -> Inputs:
    """The tensors of each input, in the network's order."""
    if isinstance(raw, Mapping):
        absent = [s.name for s in specs if s.name not in raw]
        if absent:
            raise DataError(f"a batch has no input {absent[0]!r}; it has {', '.join(map(str, raw))}.")
        raw = [raw[s.name] for s in specs]
    found = [raw] if isinstance(raw, Tensor) else raw
    if (
        not isinstance(found, list | tuple)
        or len(found) != len(specs)
        or not all(isinstance(x, Tensor) for x in found)
    ):
        raise DataError(f"a batch should hold {len(specs)} input tensor(s); it holds {_contents(found)}.")
    return tuple(_as_input(x, spec) for x, spec in zip(found, specs, strict=True))


def _contents(found: Any) -> str:
    if isinstance(found, list | tuple):
        return f"{len(found)}: {', '.join(type(x).__name__ for x in found)}"
    return type(found).__name__


def _as_input(x: Tensor, spec: InputSpec) -> Tensor:
    """One input as float32, int64 or bool."""
    places = 1 if spec.axis is None else max(2, spec.axis + 1 if spec.axis > 0 else 1 - spec.axis)
    if x.ndim < places:
        raise DataError(
            f"tensors of shape {tuple(x.shape)} do not fit input {spec.name!r}: a batch of it has at least "
            f"{places} axes."
        )
    if x.is_floating_point():
        if spec.dtype == "int":
            raise DataError(f"input {spec.name!r} has dtype: int and the loader yields {x.dtype}.")
        return x.float()
    return x if x.dtype == torch.bool else x.long()


def _loader_classes(recipe: Recipe, largest: int) -> tuple[str, ...] | None:
    if recipe.task in ("regression", "distillation"):
        return None
    if recipe.data.classes is not None:
        classes = tuple(str(c) for c in recipe.data.classes)
    else:
        classes = tuple(str(n) for n in range(2 if recipe.task == "binary" else largest + 1))
    if largest >= len(classes):
        raise DataError(
            f"{recipe.where('data', 'loader')}: class {largest} is yielded, data.classes lists "
            f"{len(classes)}."
        )
    return classes
