"""Numbers that stop being finite: where in a network, looked for only once something went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.errors import DataError, GlpruneError, NonFiniteError
from glprune.model.outputs import leaves
from glprune.model.standardize import StandardizedNetwork

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

_NAMED_ROWS = 3


@dataclass(frozen=True)
class Batch:
    """A batch and what a training makes of it.

    Attributes:
        network: The network.
        inputs: What it takes.
        target: What its outputs are compared with.
        loss: Computes the loss, a scalar with gradients.
        first_row: Number of the batch's first row in its split, from 1; None where rows are shuffled.
    """

    network: nn.Module
    inputs: Inputs
    target: Tensor
    loss: Callable[[], Tensor]
    first_row: int | None = None


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether every element of some tensors is finite; None counts as finite."""
    found = [t.detach() for t in tensors if t is not None]
    # one pass over each; a norm may overflow where no element does
    return (
        not found
        or math.isfinite(torch.stack(torch._foreach_norm(found)).sum())
        or not any(map(_has_nonfinite, found))
    )


def finite_rows(outputs: Sequence[Tensor]) -> Tensor:
    """Mark the rows on which all of a network's outputs are finite, bool, shape (rows,)."""
    return torch.stack([torch.isfinite(y).reshape(len(y), -1).all(dim=1) for y in outputs]).all(dim=0)


def explain_nonfinite(batch: Batch, where: str, mend: str) -> GlpruneError | None:
    """The error of a training whose loss, gradient or weights are not finite; the batch is run once more.

    Args:
        batch: The batch after which they are not; gradients in ``.grad`` are those of its loss, or None.
        where: Where the training stands.
        mend: What the user can do.

    Returns:
        DataError where the batch holds NaN or Inf itself, else NonFiniteError; None where it has no rows or
        all is finite: the rows of another process are to blame.
    """
    if not len(batch.inputs[0]):
        return None
    for number, x in enumerate(batch.inputs, 1):
        if _has_nonfinite(x):
            rows = _in_rows(batch, [x])
            return DataError(f"{where}: input {number} holds NaN or Inf{rows}; mend the data.")
    if _has_nonfinite(batch.target):
        return DataError(
            f"{where}: the target is NaN or Inf{_in_rows(batch, [batch.target])}; mend the data."
        )
    cause = _cause(batch)
    return None if cause is None else NonFiniteError(f"{where}: {cause}; {mend}.")


def first_fault(network: nn.Module, inputs: Inputs, first_row: int) -> str:
    """The first layer whose output is not finite, in words."""
    batch = Batch(network, inputs, torch.empty(0), lambda: leaves(network(*inputs))[0], first_row)
    return _first_layer(batch)[0] or "no layer by itself"


def _cause(batch: Batch) -> str | None:
    parameters = dict(batch.network.named_parameters())
    bad_gradients = [n for n, p in parameters.items() if p.grad is not None and _has_nonfinite(p.grad)]
    bad_weights = [n for n, p in parameters.items() if _has_nonfinite(p)]
    layer, order = _first_layer(batch)
    if bad_gradients:  # gradients go from the last layer to the first
        last = max(bad_gradients, key=lambda name: order.get(name.rpartition(".")[0], -1))
        return f"the gradient of {_named(batch.network, last)!r} is not finite"
    if bad_weights:
        return f"the last step left {_named(batch.network, bad_weights[0])!r} not finite"
    if layer is not None:
        return layer
    with torch.no_grad():
        if math.isfinite(batch.loss()):
            return None
        reached = max(float(y.abs().max()) for y in leaves(batch.network(*batch.inputs)))
    wanted = float(batch.target.abs().max()) if batch.target.numel() else 0.0
    return (
        f"every layer's output is finite, the loss is not; outputs reach {reached:.2g}, targets {wanted:.2g}"
    )


def _first_layer(batch: Batch) -> tuple[str | None, dict[str, int]]:
    """The first layer whose output is not finite, in words, and in which order the layers ran."""
    order: dict[str, int] = {}
    found: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            order[name] = len(order)
            odd = [y for y in _tensors(output) if _has_nonfinite(y)]
            if odd and not found:
                named = f"layer {_named(batch.network, name)!r}" if name else "the network"
                found.append(
                    f"the output of {named} ({type(module).__name__}) is not finite{_in_rows(batch, odd)}"
                )

        return look

    handles = [m.register_forward_hook(hook(name)) for name, m in batch.network.named_modules()]
    try:
        with torch.no_grad():
            batch.loss()
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if found else None), order


def _tensors(output: object) -> list[Tensor]:
    """The tensors a layer returned, whatever else it returned."""
    return [y for y in torch.utils._pytree.tree_leaves(output) if isinstance(y, Tensor)]


def _in_rows(batch: Batch, tensors: Sequence[Tensor]) -> str:
    """In which rows of the batch some tensors are not finite; nothing where they have no rows."""
    size = len(batch.inputs[0])
    per_row = [t for t in tensors if t.ndim and len(t) == size]
    if not per_row:
        return ""
    rows = [n + (batch.first_row or 1) for n in torch.nonzero(~finite_rows(per_row)).flatten().tolist()]
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    of = f"of its {size}" if batch.first_row is None else "of the split"
    return f" in row {', '.join(map(str, rows[:_NAMED_ROWS]))}{more} {of}"


def _named(network: nn.Module, name: str) -> str:
    """A name as the user gave it: without the standardisation layer around the network."""
    return name.removeprefix("network.") if isinstance(network, StandardizedNetwork) else name


def _has_nonfinite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
