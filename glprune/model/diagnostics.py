"""Find out why a network cannot be trained, and where values stop being finite once a training has failed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from glprune._user_code import describe
from glprune.errors import DataError, GlpruneError, ModelError, NonFiniteError, error_text
from glprune.model.outputs import leaves
from glprune.model.standardize import StandardizedNetwork
from glprune.runtime.determinism import settings_kept

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


def check_layers(network: nn.Module) -> None:
    """Refuse layers and weights that no run can prune, train and export, by their names.

    Raises:
        ModelError: A normalisation without running statistics, complex weights, scripted code, or a state
            beside tensors.
    """
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in network.modules()):
        raise ModelError(
            "The network is scripted by TorchScript and cannot be traced; give the plain torch.nn.Module."
        )
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.running_mean is None or layer.running_var is None):
            raise ModelError(
                f"Layer {name!r} ({type(layer).__name__}) has no running statistics, so that the output for "
                "a row depends on the other rows of its batch; train it with track_running_stats=True."
            )
    for name, parameter in network.named_parameters():
        if parameter.is_complex():
            raise ModelError(
                f"{name!r} is complex, which ONNX files cannot hold; train with real and imaginary parts as "
                "two real weights."
            )
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name!r} in the network's state is {type(value).__name__}, not a tensor; keep it out of "
                "the state (get_extra_state)."
            )


def check_trainable(network: nn.Module, inputs: Inputs, view: Callable[[Any], Tensor]) -> None:
    """Compute the gradient of a copy of a network on some rows; a run trains copies of it.

    Args:
        network: The network, in evaluation mode.
        inputs: A few rows.
        view: Takes the tensor of the loss out of the outputs.

    Raises:
        ModelError: The network cannot be copied, a copy uses the original's weights, no gradient reaches its
            weights, or a gradient is sparse.
    """
    network.zero_grad(set_to_none=True)
    twin = copied(network)
    if not any(p.requires_grad for p in twin.parameters()):
        return  # the groups are refused as frozen, by their names
    try:
        with settings_kept():
            output = view(twin(*inputs))
            if output.requires_grad:
                output.sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # the user's forward, and backward, may raise anything
        raise ModelError(f"The gradient of the network cannot be computed ({describe(error)}).") from error
    _check_gradients(network, twin, output)
    copied(twin)  # what a forward keeps of its gradients cannot be copied


def _check_gradients(network: nn.Module, twin: nn.Module, output: Tensor) -> None:
    """Refuse gradients that do not reach the weights of the copy, or are sparse."""
    if not output.requires_grad:
        raise ModelError(
            "The network's output has no gradient: its forward runs under torch.no_grad or inference_mode, "
            "or detaches the output or takes it from NumPy; remove that from the forward."
        )
    held = [name for name, p in network.named_parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    if held:
        raise ModelError(
            f"A copy of the network computes with {_named(network, held[0])!r} of the original: a function "
            "that the network keeps as an attribute holds the network itself; make it a method of the class."
        )
    sparse = [n for n, p in twin.named_parameters() if p.grad is not None and p.grad.layout != torch.strided]
    if sparse:
        raise ModelError(
            f"The gradient of {_named(network, sparse[0])!r} is sparse, which proximal steps do not take; "
            "pass sparse=False to the embedding."
        )


def copied(network: nn.Module) -> nn.Module:
    """Copy a network.

    Raises:
        ModelError: It cannot be copied; the message names the attribute that forbids it.
    """
    try:
        return copy.deepcopy(network)
    except (Exception, SystemExit) as error:  # an attribute of the user's may raise anything
        place = next(_uncopyable(network), "it")
        if "graph leaves" in error_text(error):
            why = f"{place} keeps a tensor with its gradient; keep tensor.detach()"
        else:
            why = f"{place} forbids it ({describe(error)}); make it when it is needed, outside the network"
        raise ModelError(f"The network cannot be copied: {why}.") from error


def tensor_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a network's tensors by their names."""
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def check_tensors(network: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Check that a network still has the tensors that it had before it was trained.

    Raises:
        ModelError: The user's forward changed them.
    """
    different = tensor_shapes(network).items() ^ shapes.items()
    if different:
        raise ModelError(
            f"The network's forward adds, removes or reshapes {min(name for name, _ in different)!r} in "
            "training; make every tensor in __init__, with its shape."
        )


def _uncopyable(network: nn.Module) -> Iterator[str]:
    """Yield the attributes of a network that cannot be copied."""
    for name, module in network.named_modules():
        owner = _named(network, name)
        for key, value in vars(module).items():
            try:
                if key != "_modules":
                    copy.deepcopy(value)
            except (Exception, SystemExit):  # noqa: BLE001 - as above
                yield f"attribute {key!r} of {f'layer {owner!r}' if owner else type(module).__name__}"


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
