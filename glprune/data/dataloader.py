"""Read data from a user's DataLoader, or from a plugin that yields rows."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glprune._imports import load_callable
from glprune._plugins import load_plugin
from glprune._user_code import user_code
from glprune._wording import counted
from glprune.data.records import Data
from glprune.data.splits import Inputs
from glprune.errors import DataError, GlpruneError, RecipeError
from glprune.runtime.determinism import settings_kept
from glprune.tables.batches import ordered_inputs, split_batch
from glprune.tables.columns import make_features
from glprune.tables.features import SPLITS, InputColumns
from glprune.tables.table import beyond_float32

if TYPE_CHECKING:
    from glprune.schema.recipe import InputSpec, Recipe

_CLASSES = "yield the classes as 0, 1 and so on"
_MAX_CLASS = 1_000_000


@dataclass
class Fingerprint:
    """What the rows of a pass have in common with those of another pass, of whatever batches.

    Each row, its inputs and target, is hashed to 64 bits; sums of hashes do not depend on an order.

    Attributes:
        rows: Number of rows.
        content: Of the rows in any order.
        order: Of the rows in their order.

    References:
        Carter and Wegman (1979), "Universal classes of hash functions", J. Comput. Syst. Sci. 18(2), 143-154.
    """

    rows: int = 0
    content: int = 0
    order: int = 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Take a batch: tensors with the rows first."""
        hashes = np.zeros(len(tensors[0]), dtype=np.uint64)
        for number, x in enumerate(tensors):
            words = _words(x)
            hashes += words @ _factors(number, words.shape[1])
        places = np.arange(self.rows, self.rows + len(hashes), dtype=np.uint64)
        self.content = (self.content + int(_mixed(hashes).sum())) % 2**64
        self.order = (self.order + int(_mixed(hashes + _mixed(places + np.uint64(1))).sum())) % 2**64
        self.rows += len(hashes)


def _words(x: Tensor) -> NDArray[np.uint64]:
    """Return the bits of each value as a whole number, shape (rows, values)."""
    values = x.contiguous().reshape(len(x), x[:1].numel()).numpy()
    return values.view(f"u{values.itemsize}").astype(np.uint64, copy=False)


@functools.lru_cache
def _factors(seed: int, count: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(2**64, size=count, dtype=np.uint64)


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all bits, so that sums tell which hashes they are of."""
    for shift, factor in ((32, 0xD6E8FEB86659FD93), (32, 0xD6E8FEB86659FD93)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(32))


@dataclass(frozen=True)
class LoaderSplit:
    """A split streamed from a user's DataLoader, in the batches the loader makes.

    Passes that measure all begin with one seed, and must yield what the first did. Those of a training have
    seeds of their own: a loader may draw its order, its sample or an augmentation from them.

    Attributes:
        loader: Yields ``(inputs, target)``; inputs alone where there are no labels.
        specs: The inputs in the network's order.
        kind: The task; it decides the type of the target.
        first: The rows of the first pass.
        ordered: Whether what is measured compares passes row by row.
        name: Place of the loader in the recipe and name of the split, for messages.
    """

    loader: Iterable[Any]
    specs: tuple[InputSpec, ...]
    kind: str
    first: Fingerprint
    ordered: bool
    name: str

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.first.rows

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the batches of the loader; ``generator`` seeds its shuffling."""
        found = Fingerprint()
        with _seeded(generator):
            for inputs, target in _read_batches(self.loader, self.specs, self.kind, self.name):
                if found.rows + len(target) > self.rows:
                    raise self._changed(f"{counted(self.rows, 'row')} at first and more later")
                found.add((*inputs, target))
                yield inputs, target
        if found.rows != self.rows:
            raise self._changed(f"{counted(self.rows, 'row')} at first and {found.rows:,} later")
        if generator is None:
            self._check_same(found)

    def _check_same(self, found: Fingerprint) -> None:
        """Compare the rows of a pass with those of the first."""
        if found.content != self.first.content:
            raise self._changed("other values or targets in a later pass than in the first")
        if self.ordered and found.order != self.first.order:
            raise self._changed("another order of the rows in a later pass than in the first")

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{self.name}: {what}; let the loader yield the same rows in every pass, and draw what is random "
            "from PyTorch's generator, in training only."
        )


@contextlib.contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Seed PyTorch for a pass, with a number from a generator or the same for all; restore its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if generator is None else int(torch.randint(2**31, (1,), generator=generator)))
        yield


_END = object()


def _read_batches(
    loader: Iterable[Any], specs: tuple[InputSpec, ...], kind: str, name: str
) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield the batches of a loader that have rows.

    What the loader does to PyTorch's settings between two batches stays with it: a generator that yields
    inside ``with torch.no_grad()`` would otherwise turn off the gradients of a training.

    Args:
        loader: The user's.
        specs: The inputs in the network's order.
        kind: The task.
        name: Place of the loader in the recipe and name of the split, for messages.

    Raises:
        DataError: The loader fails, or a batch is none.
    """
    iterator: Iterator[Any] | None = None
    rows = 0
    while True:
        # around the user's code alone, so that a consumer may stop
        with _named(name), user_code(DataError, name), settings_kept():
            iterator = iter(loader) if iterator is None else iterator
            batch = next(iterator, _END)
        if batch is _END:
            return
        with _named(name), user_code(DataError, name):
            inputs, target = unpack(batch, specs, kind, rows)
        rows += len(target)
        if len(target):
            yield inputs, target


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Begin the messages of errors with the name of the split."""
    try:
        yield
    except GlpruneError as error:
        text = str(error)
        raise DataError(text if text.startswith(name) else f"{name}: {text}") from error


@dataclass(frozen=True)
class _Survey:
    """What the first pass over a loader found."""

    split: LoaderSplit
    digest: str
    widths: tuple[int, ...]
    largest: int


def load_loader(recipe: Recipe) -> Data:
    """Make the loader of every split and read it once.

    Raises:
        DataError: A loader cannot be made, or yields invalid batches.
        RecipeError: The recipe lists other features or classes than the loader yields.
    """
    with settings_kept(), torch.random.fork_rng(devices=[]):  # importing runs the user's code
        reference, where, make = _loader_factory(recipe)
    found: dict[str, _Survey] = {}
    for name in SPLITS:
        split = f"{where}: split {name!r}"
        with _named(split):
            with user_code(DataError, split), settings_kept():
                loader = make(split=name)
            with _seeded(None):
                found[name] = _survey(loader, recipe, split, ordered=name != "train")
        if found[name].widths != found["train"].widths:
            raise DataError(f"{where}: split {name!r} and split 'train' have different numbers of features.")
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


def _loader_factory(recipe: Recipe) -> tuple[str, str, Callable[..., Iterable[Any]]]:
    """Return the function that makes the loader of a split, with its name and its place in the recipe."""
    spec = recipe.data
    if spec.source is None:
        where = recipe.where("data", "loader")
        return str(spec.loader), where, load_callable(str(spec.loader), recipe.folder, where, recipe.allowed)
    where = recipe.where("data", "source")
    plugin = load_plugin("glprune.data", spec.source, where, recipe.allowed)
    return f"{spec.source} ({plugin.package})", where, functools.partial(plugin, **spec.arguments)


def _loader_inputs(recipe: Recipe, widths: Sequence[int]) -> tuple[InputColumns, ...]:
    """Name the features of every input, from data.features or by number."""
    specs = recipe.model.inputs
    names = recipe.data.features
    if names is None:
        stem = [f"{spec.name}." if len(specs) > 1 else "x" for spec in specs]
        names = [f"{stem[n]}{i}" for n, width in enumerate(widths) for i in range(width)]
    if len(names) != sum(widths):
        raise RecipeError(
            f"{recipe.where('data', 'features')} lists {counted(len(names), 'name')}, the loader yields "
            f"{counted(sum(widths), 'feature')}."
        )
    remaining = iter(names)
    return tuple(
        InputColumns(spec.name, spec.axis, tuple(next(remaining) for _ in range(width)))
        for spec, width in zip(specs, widths, strict=True)
    )


def _survey(loader: Iterable[Any], recipe: Recipe, name: str, ordered: bool) -> _Survey:
    """Read a loader once: its rows, digest of the tensors, features of each input, largest class."""
    digest, first, largest = hashlib.sha256(), Fingerprint(), 0
    specs = tuple(recipe.model.inputs)
    widths: tuple[int, ...] | None = None
    if isinstance(loader, Iterator):
        raise DataError(
            f"a {type(loader).__name__} can be read once only, and a run reads its rows many times; return a "
            "DataLoader or a list of batches."
        )
    for inputs, target in _read_batches(loader, specs, recipe.task, name):
        _check_finite(inputs, target, specs, first.rows)
        for tensor in (*inputs, target):
            digest.update(tensor.contiguous().numpy().tobytes())
        found = tuple(0 if s.axis is None else x.shape[s.axis] for s, x in zip(specs, inputs, strict=True))
        if found != (widths or found):
            raise DataError(f"the number of features changes after row {first.rows}; it must be constant.")
        if recipe.task in ("binary", "multiclass"):
            largest = max(largest, _largest_class(target, first.rows))
        widths = found
        first.add((*inputs, target))
    if first.rows < 2 or widths is None:
        raise DataError(f"{counted(first.rows, 'row')}; at least 2 are needed.")
    split = LoaderSplit(loader, specs, recipe.task, first, ordered, name)
    return _Survey(split, f"sha256:{digest.hexdigest()}", widths, largest)


def _check_finite(inputs: Inputs, target: Tensor, specs: Sequence[InputSpec], rows: int) -> None:
    """Refuse NaN and Inf in a batch that follows a number of rows."""
    named = [(f"input {s.name!r}", x) for s, x in zip(specs, inputs, strict=True)]
    for name, tensor in (*named, ("the target", target)):
        if tensor.is_floating_point():
            finite = torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
            if not bool(finite.all()):
                row = rows + int(finite.int().argmin()) + 1
                raise DataError(f"NaN or Inf in batch: {name} in row {row}; fill or drop them.")


def _largest_class(target: Tensor, rows: int) -> int:
    """Return the largest class of a batch that follows a number of rows; refuse negative and huge ones."""
    if not len(target):
        return 0
    for extreme, what in ((target.min(), "below 0"), (target.max(), f"above {_MAX_CLASS:,}")):
        if not 0 <= int(extreme) <= _MAX_CLASS:
            row = rows + int((target == extreme).int().argmax()) + 1
            raise DataError(f"class {int(extreme)} is {what} in row {row}; {_CLASSES}.")
    return int(target.max())


def unpack(batch: Any, specs: Sequence[InputSpec], kind: str, start: int = 0) -> tuple[Inputs, Tensor]:
    """Convert a batch of a loader to ``(inputs, target)``.

    Args:
        batch: ``(x, y)``, ``((x1, x2), y)`` or ``({name: x}, y)``; for distillation the target may be
            missing.
        specs: The inputs in the network's order.
        kind: The task.
        start: Rows before this batch, for messages.

    Returns:
        Inputs as float32, int64 or bool; classes (rows,) int64, values (rows,) float32, or
        (rows, 0) for distillation.

    Raises:
        DataError: The batch has another form.
    """
    raw, target = split_batch(batch, len(specs), kind, _is_tensor)
    found = ordered_inputs(raw, [spec.name for spec in specs], _is_tensor)
    inputs = tuple(_as_input(x, spec, start) for x, spec in zip(found, specs, strict=True))
    rows = len(inputs[0])
    for spec, x in zip(specs, inputs, strict=True):
        if len(x) != rows:
            raise DataError(
                f"input {spec.name!r} has {counted(len(x), 'row')}, {specs[0].name!r} has {rows}."
            )
    if kind == "distillation":
        return inputs, torch.empty(rows, 0)
    if not rows:
        return inputs, torch.empty(0)
    if not isinstance(target, Tensor):
        raise DataError(f"a batch should hold {len(specs)} input tensor(s) and a target tensor.")
    return inputs, _as_target(target, inputs[0], kind, start)


def _as_target(target: Tensor, inputs: Tensor, kind: str, start: int) -> Tensor:
    """Return class numbers int64 or values float32, shape (rows,)."""
    if target.ndim == 0 or len(target) != len(inputs):
        raise DataError(
            f"inputs of shape {tuple(inputs.shape)} do not fit a target of shape {tuple(target.shape)}."
        )
    flat = _plain(target, "the target").reshape(len(inputs), -1)
    if flat.shape[1] != 1:
        raise DataError(
            f"a target of shape {tuple(target.shape)} has several values in a row; one is needed."
        )
    if kind == "regression":
        return _narrowed(flat[:, 0], "the target", start)
    return _class_numbers(flat[:, 0], start)


def _class_numbers(labels: Tensor, start: int) -> Tensor:
    """Return whole numbers as int64."""
    if labels.is_floating_point():
        wrong = ~(labels.isfinite() & (labels == labels.trunc()))
        if bool(wrong.any()):
            first = int(wrong.int().argmax())
            label, row = float(labels[first]), start + first + 1
            raise DataError(f"class label {label:g} in row {row} is not a whole number; {_CLASSES}.")
    return labels.long()


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _as_input(x: Tensor, spec: InputSpec, start: int) -> Tensor:
    """Convert one input to float32, int64 or bool."""
    min_axes = 1 if spec.axis is None else max(2, spec.axis + 1 if spec.axis > 0 else 1 - spec.axis)
    if x.ndim < min_axes:
        raise DataError(
            f"tensors of shape {tuple(x.shape)} do not fit input {spec.name!r}: a batch of it has at least "
            f"{min_axes} axes."
        )
    x = _plain(x, f"input {spec.name!r}")
    if x.is_floating_point():
        if spec.dtype == "int":
            raise DataError(f"input {spec.name!r} has dtype: int and the loader yields {x.dtype}.")
        return _narrowed(x, f"input {spec.name!r}", start)
    return x if x.dtype == torch.bool else x.long()


def _narrowed(x: Tensor, name: str, start: int) -> Tensor:
    """Return values as float32; refuse finite ones that it does not hold."""
    narrow = x.float()
    if x.dtype == torch.float64 and x.numel():
        beyond = (narrow.isinf() & x.isfinite()).reshape(len(x), -1)
        if bool(beyond.any()):
            row = int(beyond.any(1).int().argmax())
            value = float(x.reshape(len(x), -1)[row][beyond[row]][0])
            raise DataError(f"{name} {beyond_float32(value, f'row {start + row + 1}')}; scale it.")
    return narrow


def _plain(x: Tensor, name: str) -> Tensor:
    """Return a tensor without its gradient; refuse one that is not of dense real values."""
    if x.is_complex() or x.layout != torch.strided or x.is_meta or x.is_quantized or x.is_nested:
        kind = f"device {x.device}" if x.is_meta else f"{x.dtype}, {x.layout}"
        raise DataError(f"{name} holds no dense real numbers ({kind}); convert it in the loader.")
    return x.clone() if x.is_inference() else x.detach()


def _loader_classes(recipe: Recipe, largest: int) -> tuple[str, ...] | None:
    """Return the class labels: those of the recipe, or numbers up to the largest class."""
    if recipe.task in ("regression", "distillation"):
        return None
    if recipe.data.classes is not None:
        classes = tuple(str(c) for c in recipe.data.classes)
    else:
        classes = tuple(str(n) for n in range(2 if recipe.task == "binary" else largest + 1))
    if largest >= len(classes):
        raise DataError(
            f"{recipe.where('data', 'loader')}: the loader yields class {largest}, data.classes "
            f"lists {len(classes)}."
        )
    return classes
