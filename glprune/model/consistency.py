"""Check that a network computes every row by itself, the same way in every call and in every batch.

All that follows rests on it: groups are proved on a few rows, the file is measured on others, and a service
sends one row at a time.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glprune._user_code import describe
from glprune._wording import counted
from glprune.errors import ModelError
from glprune.model.outputs import leaves

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

BATCHES = (1, 2, 7, 8)
"""Numbers of rows at which the outputs for a row must agree, in PyTorch and in the exported file."""
_ROWS = max(BATCHES)
_LARGER = (32, 64, 100, 128)  # usual sizes, tried in PyTorch alone
_CALLS, _CALLS_WITH_STATE = 64, 512  # in a row that must agree; where something changes from call to call
_OTHER_SEED = 0x5EED
_REPEATED, _SUSPICIOUS, _SAME = 1e-6, 1e-5, 1e-4  # relative differences in float32
_SAME_IN_DOUBLE = 1e-8
_AGAIN = "The network returns other outputs when it is called again on the same rows"
_IN_TRAINING = "; do so in training only (if self.training)."
_NUMBER_COUNTS = "its forward depends on the number of rows; treat batches of every size alike"


def repeat_rows(inputs: Inputs, rows: int) -> Inputs:
    """Return the first ``rows`` rows, repeated from the first where there are fewer."""
    return tuple(x[torch.arange(rows) % len(x)].contiguous() for x in inputs)


def keep_inputs_(network: nn.Module, inputs: Inputs) -> None:
    """Make a network that writes into its inputs write into copies of them instead.

    Args:
        network: The network; where it is such, it gets a hook.
        inputs: Rows to run it on; they are not changed.
    """
    given = tuple(x.clone() for x in inputs)
    _run(network, given)
    if not all(torch.equal(x, y) for x, y in zip(inputs, given, strict=True)):
        network.register_forward_pre_hook(_copy_inputs, prepend=True)


def _copy_inputs(module: nn.Module, inputs: Inputs) -> Inputs:
    return tuple(x.clone() for x in inputs)


def check_consistency(network: nn.Module, inputs: Inputs) -> None:
    """Check that two equal calls agree, and a row alone with the same row in batches of other sizes.

    Args:
        network: The network, in evaluation mode.
        inputs: Real rows, at least 2.

    Raises:
        ModelError: The network is random or keeps a state, drops the axis of the rows, mixes the rows, or
            treats batches of some size in another way.
    """
    changed = _check_repeatable(network, inputs)
    _check_draws(network, inputs)
    rows = repeat_rows(inputs, _ROWS)
    whole = _run(network, rows)
    alone = [slice(row, row + 1) for row in range(_ROWS)]
    for part in (*alone, *(slice(size) for size in BATCHES if size > 1)):
        _compare(network, rows, whole, part)
    check_batch(network, inputs, _run(network, inputs))
    for size in _LARGER:
        rows = repeat_rows(inputs, size)
        check_batch(network, rows, _run(network, rows))
    _check_steady(network, inputs, changed)


def check_batch(network: nn.Module, inputs: Inputs, outputs: Sequence[Tensor]) -> None:
    """Check that the outputs for the first rows of a batch are those of a small batch.

    Args:
        network: The network, in evaluation mode.
        inputs: The batch.
        outputs: The network's outputs for it.

    Raises:
        ModelError: They differ.
    """
    _compare(network, inputs, outputs, slice(_ROWS))


def check_rows(network: nn.Module, inputs: Inputs, outputs: Sequence[Tensor]) -> None:
    """Check that the outputs for every row of a batch are those that it has among other rows.

    Args:
        network: The network, in evaluation mode.
        inputs: The batch.
        outputs: The network's outputs for it.

    Raises:
        ModelError: They differ.
    """
    for part in _parts(len(inputs[0])):
        _compare(network, inputs, outputs, part)


def in_other_batches(model: Callable[[Inputs], Sequence[Tensor]], inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the outputs of a model for the rows of a batch, run in another order and in several batches."""
    parts = _parts(len(inputs[0]))
    found = [model(tuple(x[part] for x in inputs)) for part in parts]
    back = torch.cat(parts).argsort()
    return tuple(torch.cat([*ys])[back] for ys in zip(*found, strict=True))


def _parts(rows: int) -> list[Tensor]:
    """Divide numbers of rows, in another order, into a third and the rest."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return [part for part in order.tensor_split([rows // 3]) if len(part)]


def _run(network: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(y.detach().clone() for y in leaves(network(*inputs)))


def _check_repeatable(network: nn.Module, inputs: Inputs) -> list[str]:
    """Check that two equal calls agree; return what changes from call to call and is in no output."""
    before = _state(network)
    with _seeded():
        first = _run(network, inputs)
    changed = _changed(before, _state(network))
    gap = _gap(first, _run(network, inputs))
    if gap > (0 if changed else _REPEATED):
        raise _differs_again(network, inputs, gap, changed)
    return changed


def _check_steady(network: nn.Module, inputs: Inputs, changed: Sequence[str]) -> None:
    """Check that many calls on one row agree, the more where something changes from call to call."""
    row = tuple(x[:1] for x in inputs)
    gap = _drift(network, row, _CALLS_WITH_STATE if changed else _CALLS)
    if gap > (0 if changed else _REPEATED):
        raise _differs_again(network, row, gap, changed)


def _differs_again(network: nn.Module, inputs: Inputs, gap: float, changed: Sequence[str]) -> ModelError:
    """Return the error on a network whose equal calls differ; name what makes them differ."""
    says = f"{_AGAIN} (by {gap:.1e})"
    if not changed and _draws(network, inputs) and _drift(network, inputs, _CALLS, _seeded) <= _REPEATED:
        return ModelError(
            f"{says}: its forward draws random numbers; draw them in training only (if self.training), as "
            "nn.Dropout does."
        )
    what = f" ({changed[0]!r} changes)" if changed else ", or reads a clock or random numbers of its own"
    return ModelError(f"{says}: its forward keeps a state from call to call{what}{_IN_TRAINING}")


def _drift(
    network: nn.Module,
    inputs: Inputs,
    calls: int,
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> float:
    """Return the largest difference from the first to another one of some calls on the same rows."""

    def run() -> tuple[Tensor, ...]:
        with around():
            return _run(network, inputs)

    first = run()
    return max(_gap(first, run()) for _ in range(calls))


def _draws(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a forward draws from a generator that all share."""
    with _seeded():
        before = random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist()
        _run(network, inputs)
        return before != (
            random.getstate(),
            str(np.random.get_state()),
            torch.random.get_rng_state().tolist(),
        )


def _check_draws(network: nn.Module, inputs: Inputs) -> None:
    """Refuse random numbers that are the same in every call, since the forward seeds them itself.

    Raises:
        ModelError: The outputs are others with other draws; no exported file could repeat these.
    """
    draws = _OtherDraws()
    expected = _run(network, inputs)
    with draws:
        found = _run(network, inputs)
    if draws.operation and _gap(expected, found) > _REPEATED:
        raise ModelError(
            f"The network's forward draws random numbers ({draws.operation}) with a seed of its own, which "
            "no exported file repeats; draw them once, and keep them in a buffer (register_buffer)."
        )


class _OtherDraws(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Gives every random operation other numbers, also where the forward has just seeded the generator.

    Attributes:
        operation: The last such operation; empty if there was none.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.operation = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.operation = f"torch.{func.overloadpacket.__name__}"
        if kwargs.get("generator") is not None:
            kwargs["generator"] = torch.Generator().manual_seed(_OTHER_SEED)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_OTHER_SEED)
            return func(*args, **kwargs)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed every generator that a forward may draw from, and restore them."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def _state(network: nn.Module) -> dict[str, Any]:
    """Copy the tensors and numbers that the modules of a network hold."""
    found: dict[str, Any] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor | bool | int | float | str):
                copied = value.clone() if isinstance(value, Tensor) else value
                found[f"{path}.{name}".lstrip(".")] = copied
    return found


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Name what differs between two states."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        return type(a) is type(b) and bool(a == b or a != a)

    return [name for name, value in after.items() if name not in before or not same(before[name], value)]


def _compare(network: nn.Module, inputs: Inputs, outputs: Sequence[Tensor], part: slice | Tensor) -> None:
    """Check that some rows of a batch alone give the outputs that they have in the batch.

    Args:
        network: The network.
        inputs: The batch.
        outputs: The outputs for it.
        part: The rows, or their numbers.
    """
    batch, expected = tuple(x[part] for x in inputs), [y[part] for y in outputs]
    rows = len(batch[0])
    shown, among = counted(rows, "row"), f"the same among {len(inputs[0])}"
    try:
        found = _run(network, batch)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's forward may raise anything
        raise ModelError(
            f"The network does not run on {shown} ({describe(error)}): {_NUMBER_COUNTS}."
        ) from error
    for y, z in zip(expected, found, strict=False):
        if y.shape != z.shape:
            raise ModelError(
                f"The network returns shape {tuple(z.shape)} for {shown} and {tuple(y.shape)} for {among}; "
                "every output begins with the rows at every batch size: write .squeeze(-1) instead of "
                ".squeeze(), and x.shape[0] instead of a number of rows."
            )
    gap = _gap(expected, found)
    if gap <= _SUSPICIOUS:
        return
    if _changes(network, batch, found) or _changes(network, inputs, outputs):
        raise ModelError(f"{_AGAIN}: its forward keeps a state from call to call{_IN_TRAINING}")
    if not _agrees_in_double(network, inputs, part, gap):
        row = int(torch.arange(len(inputs[0]))[part][_worst_row(expected, found)])
        raise ModelError(
            f"The outputs for {shown} differ by {gap:.1e} from those for {among}: "
            f"{_cause(network, inputs, row)}."
        )


def _changes(network: nn.Module, inputs: Inputs, outputs: Sequence[Tensor]) -> bool:
    """Whether a network now has other outputs than before for a batch."""
    return _gap(outputs, _run(network, inputs)) > _SUSPICIOUS


def _worst_row(a: Sequence[Tensor], b: Sequence[Tensor]) -> int:
    """Return the row of the largest difference between outputs of equal shapes."""
    pairs = ((x, y) for x, y in zip(a, b, strict=True) if x.numel())
    gaps = [(x.detach().double() - y.detach().double()).abs().reshape(len(x), -1).amax(1) for x, y in pairs]
    largest = max(gaps, key=lambda gap: float(gap.max()))
    return int(largest.argmax())


def _gap(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest difference relative to each output's own scale; infinite where forms differ."""
    if [y.shape for y in a] != [y.shape for y in b]:
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.numel():
            exact = x.detach().double()
            scale = exact.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            gap = float((exact - y.detach().double()).abs().max() / scale)
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def _agrees_in_double(network: nn.Module, inputs: Inputs, part: slice | Tensor, gap: float) -> bool:
    """Return whether a difference is round-off: it is gone in double precision.

    A forward that needs float32 cannot be asked; there the size of the difference decides.
    """
    try:
        double = copy.deepcopy(network).double()
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        whole, alone = _run(double, wide), _run(double, tuple(x[part] for x in wide))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the user's forward may raise anything
        return gap <= _SAME
    return _gap([y[part] for y in whole], alone) <= _SAME_IN_DOUBLE


def _cause(network: nn.Module, inputs: Inputs, worst: int) -> str:
    """Say whether the rows of a batch mix, as those of one row do, or only their number counts."""
    whole = _run(network, inputs)
    for row in (slice(n, n + 1) for n in (0, worst, len(inputs[0]) - 1)):
        alike = tuple(x[row].expand_as(x).contiguous() for x in inputs)  # as many rows, all equal to this one
        if _gap([y[row] for y in whole], [y[row] for y in _run(network, alike)]) > _SUSPICIOUS:
            return (
                "its forward mixes the rows of a batch (as x.mean(0) does); compute each row by itself, with "
                "statistics of the training rows kept in buffers"
            )
    return _NUMBER_COUNTS
