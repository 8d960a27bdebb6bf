"""Find where in a network values stop being finite, once a training has failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from glprune.errors import DataError, GlpruneError, NonFiniteError
from glprune.model.outputs import leaves
from glprune.model.standardize import StandardizedNetwork

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

_NAMED_ROWS = 3


@dataclass(frozen=True)
class Batch:
    """A batch and its loss.

    Attributes:
        network: The network.
        inputs: Its inputs.
        target: The target of the loss.
        loss: Computes the loss, a scalar with gradients.
        first_row: Number of the batch's first row in its split, from 1; None where rows are shuffled.
    """

    network: nn.Module
    inputs: Inputs
    target: Tensor
    loss: Callable[[], Tensor]
    first_row: int | None = None


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether every element of some tensors is finite; None counts as finite."""
    found = [t.detach() for t in tensors if t is not None]
    if not found:
        return True
    # one pass over each; a norm may overflow where no element does
    norms = torch._foreach_norm(found)  # noqa: SLF001 - the only fused norm of many tensors
    return math.isfinite(torch.stack(norms).sum()) or not any(map(_has_nonfinite, found))


def finite_rows(outputs: Sequence[Tensor]) -> Tensor:
    """Mark the rows on which all of a network's outputs are finite, bool, shape (rows,)."""
    return torch.stack([torch.isfinite(y).reshape(len(y), -1).all(dim=1) for y in outputs]).all(dim=0)


def explain_nonfinite(batch: Batch, where: str, hint: str) -> GlpruneError | None:
    """Run a batch once more to explain why a loss, gradient or weight is not finite.

    Args:
        batch: The batch after which they are not; gradients in ``.grad`` are those of its loss, or None.
        where: The step of the training, for the message.
        hint: What the user can do.

    Returns:
        DataError where the batch itself holds NaN or Inf, else NonFiniteError; None where it has no rows or
        all is finite: the cause is in the rows of another process.
    """
    if not len(batch.inputs[0]):
        return None
    for number, x in enumerate(batch.inputs, 1):
        if _has_nonfinite(x):
            rows = _in_rows(batch, [x])
            return DataError(f"{where}: input {number} holds NaN or Inf{rows}; correct the data.")
    if _has_nonfinite(batch.target):
        return DataError(
            f"{where}: the target is NaN or Inf{_in_rows(batch, [batch.target])}; correct the data."
        )
    cause = _cause(batch)
    return None if cause is None else NonFiniteError(f"{where}: {cause}; {hint}.")


def first_fault(network: nn.Module, inputs: Inputs, first_row: int) -> str:
    """Describe the first layer whose output is not finite."""
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
    """Describe the first layer whose output is not finite, and number the layers in the order they run."""
    order: dict[str, int] = {}
    found: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def check(module: nn.Module, inputs: object, output: object) -> None:
            order[name] = len(order)
            nonfinite = [y for y in _tensors(output) if _has_nonfinite(y)]
            if nonfinite and not found:
                named = f"layer {_named(batch.network, name)!r}" if name else "the network"
                found.append(
                    f"the output of {named} ({type(module).__name__}) is not finite"
                    f"{_in_rows(batch, nonfinite)}"
                )

        return check

    handles = [m.register_forward_hook(hook(name)) for name, m in batch.network.named_modules()]
    try:
        with torch.no_grad():
            batch.loss()
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if found else None), order


def _tensors(output: object) -> list[Tensor]:
    """Return the tensors among everything a layer returned."""
    return [y for y in pytree.tree_leaves(output) if isinstance(y, Tensor)]


def _in_rows(batch: Batch, tensors: Sequence[Tensor]) -> str:
    """Name the rows of the batch in which some tensors are not finite; empty where they have no rows."""
    size = len(batch.inputs[0])
    per_row = [t for t in tensors if t.ndim and len(t) == size]
    if not per_row:
        return ""
    rows = [n + (batch.first_row or 1) for n in torch.nonzero(~finite_rows(per_row)).flatten().tolist()]
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    of = f"of its {size}" if batch.first_row is None else "of the split"
    return f" in row {', '.join(map(str, rows[:_NAMED_ROWS]))}{more} {of}"


def _named(network: nn.Module, name: str) -> str:
    """Return a name without the prefix of the standardisation layers around the network."""
    return name.removeprefix("network.") if isinstance(network, StandardizedNetwork) else name


def _has_nonfinite(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
