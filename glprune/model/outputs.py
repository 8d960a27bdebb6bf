"""Flatten what a network returns, be it a tuple, mapping or dataclass, to a tuple of tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from glprune._wording import counted
from glprune.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

PREDICTION = "prediction"
Outputs = Tensor | Sequence[Tensor]


def named_leaves(output: Any) -> list[tuple[str | None, Tensor]]:
    """Return the tensors of a network's output, each with its key where a mapping holds it.

    None is dropped: networks return it in place of what they did not compute.

    Raises:
        ModelError: The output holds something other than tensors.
    """
    found: list[tuple[str | None, Tensor]] = []
    for path, leaf in pytree.tree_flatten_with_path(_as_mapping(output))[0]:
        key = str(path[-1].key) if path and isinstance(path[-1], pytree.MappingKey) else None
        plain = _as_mapping(leaf)
        if isinstance(leaf, Tensor):
            found.append((key, leaf))
        elif plain is not leaf:
            found += named_leaves(plain)
        elif leaf is not None:
            raise ModelError(
                f"The network returns {type(leaf).__name__} beside its tensors; wrap it in a module that "
                "returns tensors alone."
            )
    if not found:
        raise ModelError("The network returns no tensor; wrap it in a module that returns its prediction.")
    return found


def leaves(output: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a network's output, in order."""
    if isinstance(output, Tensor):
        return (output,)
    return tuple(tensor for _, tensor in named_leaves(output))


def as_array(values: Tensor) -> NDArray[Any]:
    """Return a tensor as an array; numbers with a fraction as float64."""
    plain = values.detach()
    return (plain.double() if plain.is_floating_point() else plain).numpy()


def check_dense(outputs: Sequence[Tensor]) -> None:
    """Check that outputs hold real numbers on the CPU, in a layout that can be exported.

    Raises:
        ModelError: One is sparse, complex, quantised or without values.
    """
    kind = next(filter(None, map(_unusual_kind, outputs)), None)
    if kind is not None:
        raise ModelError(f"The network returns a {kind} tensor; return dense real numbers on the CPU.")


def _unusual_kind(tensor: Tensor) -> str | None:
    """Say what keeps a tensor from being dense real numbers on the CPU; None where it is that."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_complex():
        return "complex"
    return None if tensor.device.type == "cpu" else f"{tensor.device.type} (not CPU)"


def check_predicts(prediction: Tensor) -> None:
    """Check that what a network predicts can have a gradient.

    Raises:
        ModelError: It holds whole numbers.
    """
    if not prediction.is_floating_point():
        kind = str(prediction.dtype).removeprefix("torch.")
        raise ModelError(
            f"The network predicts {kind}, which has no gradient; return logits, probabilities or values "
            "instead of decisions."
        )


def flatten_outputs_(network: nn.Module) -> None:
    """Make a network return a tuple of tensors; a hook keeps the names of its weights as they are."""
    network.register_forward_hook(_flatten_output)


def _flatten_output(module: nn.Module, inputs: Any, output: Any) -> tuple[Tensor, ...]:
    return leaves(output)


def _as_mapping(value: Any) -> Any:
    """Turn a dataclass into a mapping of its attributes, which pytree flattens; return all else unchanged."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return value


@dataclasses.dataclass(frozen=True)
class OutputNames:
    """The outputs of a network.

    Attributes:
        names: The name of each in the ONNX file.
        predicted: Number of the output the task predicts; None where it predicts all.
    """

    names: tuple[str, ...]
    predicted: int | None


def name_outputs(recipe: Recipe, found: Sequence[tuple[str | None, Tensor]], rows: int) -> OutputNames:
    """Name the outputs by the recipe and find the one the task predicts.

    Args:
        recipe: The recipe.
        found: The outputs as ``named_leaves`` gives them.
        rows: Rows of the batch they came from.

    Raises:
        RecipeError: The recipe names outputs the network does not have.
        ModelError: The first dimension of an output is not the rows.
    """
    keys = [key for key, _ in found]
    given = recipe.model.outputs
    if given is not None and len(given) != len(found):
        raise RecipeError(
            f"{recipe.where('model', 'outputs')} lists {counted(len(given), 'name')}; the network returns "
            f"{_listed(keys)}."
        )
    predicted = None if recipe.task == "distillation" else _predicted(recipe, keys)
    single = 0 if len(found) == 1 else predicted
    names = list(given) if given is not None else _names(keys, single, [s.name for s in recipe.model.inputs])
    for name, (_, tensor) in zip(names, found, strict=True):
        if tensor.ndim == 0 or len(tensor) != rows:
            raise ModelError(
                f"Output {name!r} has shape {tuple(tensor.shape)} for {counted(rows, 'row')}; every output "
                "begins with the rows: wrap the network in a module that returns such."
            )
    return OutputNames(tuple(names), predicted)


def _predicted(recipe: Recipe, keys: Sequence[str | None]) -> int:
    wanted = recipe.model.prediction
    known: list[str | int | None] = [*(recipe.model.outputs or ()), *keys]
    if wanted is None:
        return 0
    if isinstance(wanted, int) and wanted < len(keys):
        return wanted
    if wanted in known:
        return known.index(wanted) % len(keys)
    raise RecipeError(
        f"{recipe.where('model', 'prediction')}: no output {wanted!r}; the network returns {_listed(keys)}."
    )


def _names(keys: Sequence[str | None], single: int | None, taken: Sequence[str]) -> list[str]:
    names: list[str] = []
    for number, key in enumerate(keys):
        plain = re.sub(r"\W", "_", key or "")
        if number == single:
            plain = PREDICTION
        used = {*names, *taken, *([PREDICTION] if single is not None and number != single else [])}
        names.append(plain if plain and not plain[0].isdigit() and plain not in used else f"output_{number}")
    return names


def _listed(keys: Sequence[str | None]) -> str:
    shown = ", ".join(f"{number}" + (f" ({key})" if key else "") for number, key in enumerate(keys))
    return f"{counted(len(keys), 'output')}: {shown}"
