"""Check plans numerically: compare outputs on random weights in double precision.

The planner takes no plan from ``glprune.pruning.candidates`` unchecked. On a copy of the network with
random weights, for subsets of units that separate any two units: zeroing the weights that read the units
changes the outputs; with those weights at zero, perturbing the units changes nothing; and neither does
cutting them.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from glprune.data.splits import Inputs, select_columns
from glprune.errors import first_line
from glprune.model.consistency import repeat_rows
from glprune.pruning.groups import zero_units_
from glprune.pruning.ids import UnitIds
from glprune.pruning.surgery import kept_columns, named_tensors, plan_pruning
from glprune.pruning.tracer import is_reduction
from glprune.pruning.units import Attribute, UnitSet

TOLERANCE = 1e-5  # relative, in float32
_DOUBLE_TOLERANCE = 1e-9
_PROBE_ROWS = 7  # at least
_SMALL_BATCHES = (1, 2, 3)
_SMALL_ROW = 4096  # values in a row of all inputs; larger ones are compared on fewer rows
_MAX_ATTRIBUTES = 3
_MAX_ATTRIBUTE_CHOICES = 40
MarkedUnits = tuple[UnitSet, Tensor]  # a unit set and its marked units, bool (n_units,)


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest ``|a - b| / max(1, max|a|)`` over outputs; infinite where shapes or NaNs differ."""
    worst = 0.0
    if len(a) != len(b):
        return float("inf")
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.numel():
            gap = float((x.double() - y.double()).abs().max() / x.double().abs().max().clamp(min=1.0))
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def outputs(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all output tensors of a network, without gradients."""
    with torch.no_grad():
        return [y.detach() for y in pytree.tree_leaves(network(*inputs)) if isinstance(y, Tensor)]


class EquivalenceChecker:
    """Check that cutting the units of a set equals zeroing them.

    Args:
        network: The network; it is copied, never changed.
        inputs: Example inputs, each (batch, ...), batch at least 2.
        axes: The feature axis of each input, or None.
        mixing_reductions: Numbers of the reductions that mix units; sets whose cut may be inexact are checked
            with those held constant.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs,
        axes: Sequence[int | None],
        mixing_reductions: frozenset[int] = frozenset(),
    ) -> None:
        self.axes = tuple(axes)
        self.network, self.probe, self.tolerance = random_copy(network, inputs)
        self.reference = outputs(self.network, self.probe)
        self.mixing_reductions = mixing_reductions

    def check_each(self, sets: Sequence[UnitSet]) -> str | None:
        """Check sets that are cut together on every separating subset; return the reason of a failure."""
        for marks in self._subsets(sets):
            failure = self.mismatch(marks)
            if failure:
                return failure
        return None

    def check_together(self, clusters: Sequence[Sequence[UnitSet]]) -> bool:
        """Check all clusters at once: subsets of all of them are zeroed and cut together."""
        queues = [self._subsets(cluster) for cluster in clusters]
        for number in range(max((len(q) for q in queues), default=0)):
            marks = [mark for queue in queues if number < len(queue) for mark in queue[number]]
            if self.mismatch(marks):
                return False
        return True

    def check_half(self, sets: Sequence[UnitSet]) -> list[UnitSet] | str:
        """Check sets that are cut together on one half of their units, and on one unit.

        Where the forward no longer runs, attributes that it may read its widths from are resized too.

        Returns:
            The sets with the attributes that follow their widths, or the reason why the plan
            does not hold.
        """
        if not self._affects_output(sets):
            return "zeroing these units changes no output, so that nothing can be proved of them"
        failure = self._half_failure(sets)
        if failure is None:
            return list(sets)
        if not failure.startswith(_NO_LONGER_RUNS):
            return failure
        pinned = _fixed_width_reason(self.network, sets)
        if pinned is not None:
            return pinned
        for attributes in _attribute_choices(self.network, sets):
            resized = [replace(s, attributes=attributes if n == 0 else ()) for n, s in enumerate(sets)]
            if self._runs(self._subsets(resized)[0]) and self._half_failure(resized) is None:
                return resized
        return failure

    def _half_failure(self, sets: Sequence[UnitSet]) -> str | None:
        """Return why one half of the units cannot be cut, or one unit alone; None where both can.

        All but one unit have no divisor in common with all, so that a forward that fixes a part of the width,
        such as pairs, is found.
        """
        one = torch.arange(sets[0].count) == 0
        return self.mismatch(self._subsets(sets)[0], _SMALL_BATCHES) or self.mismatch(
            [(s, one) for s in sets], _SMALL_BATCHES
        )

    def _runs(self, marks: Sequence[MarkedUnits]) -> bool:
        """Return whether the network runs without the marked units."""
        return not isinstance(self._outputs_after_cut(_copy_tensors(self.network, ()), marks, (1,)), str)

    def _outputs_after_cut(
        self, network: nn.Module, marks: Sequence[MarkedUnits], sizes: Sequence[int]
    ) -> list[list[Tensor]] | str:
        """Return the outputs without the marked units, or the reason where the network no longer runs.

        Args:
            network: A copy that is no longer needed; it is cut in place.
            marks: Unit sets and the units of each to cut.
            sizes: Numbers of rows to run it on.
        """
        choices = [(units, UnitIds(torch.nonzero(~marked).flatten())) for units, marked in marks]
        columns = kept_columns(choices, self.probe, self.axes)
        try:
            plan_pruning(network, choices, self.probe, self.axes).apply_(network)
            kept = select_columns(self.probe, self.axes, columns)
            return [outputs(network, tuple(x[:size] for x in kept)) for size in sizes]
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a forward may do anything once a width changes
            return no_longer_runs(error)

    def _affects_output(self, sets: Sequence[UnitSet]) -> bool:
        """Return whether zeroing all units changes the outputs."""
        zeroed = _copy_tensors(self.network, [slot.tensor for units in sets for slot in units.readers])
        for units in sets:
            zero_units_(dict(zeroed.state_dict()), units, torch.ones(units.count, dtype=torch.bool))
        return difference(self.reference, outputs(zeroed, self.probe)) > self.tolerance

    def mismatch(self, marks: Sequence[MarkedUnits], batches: Sequence[int] = ()) -> str | None:
        """Return why cutting the marked units does not equal zeroing them, or None where it does.

        Args:
            marks: Unit sets and the units of each to cut.
            batches: Numbers of rows to compare the cut network on too.
        """
        inexact = any(units.inexact for units, _ in marks)
        with _neutral_statistics(self.mixing_reductions, inexact):
            return self._mismatch(marks, batches)

    def _mismatch(self, marks: Sequence[MarkedUnits], batches: Sequence[int]) -> str | None:
        tensors = [slot.tensor for units, _ in marks for slot in units.slots]
        zeroed = _copy_tensors(self.network, tensors)
        for units, marked in marks:
            zero_units_(dict(zeroed.state_dict()), units, marked)
        reference = outputs(zeroed, self.probe)
        moved = _copy_tensors(zeroed, tensors)
        probe = _perturb(moved, marks, self.probe, self.axes)
        if difference(reference, outputs(moved, probe)) > self.tolerance:
            return (
                f"{_mixing_reason(self.network, marks)}: the units reach the output past the weights that "
                "read them"
            )
        sizes = (len(probe[0]), *(n for n in batches if n < len(probe[0])))
        slim = self._outputs_after_cut(zeroed, marks, sizes)
        if isinstance(slim, str):
            return slim
        for size, found in zip(sizes, slim, strict=True):
            if difference([y[:size] for y in reference], found) > self.tolerance:
                return f"{_mixing_reason(self.network, marks)}: zeroed units change outputs when cut"
        return None

    def _subsets(self, sets: Sequence[UnitSet]) -> list[list[MarkedUnits]]:
        """Mark separating subsets; the sets of one cluster have equal counts and are marked equally."""
        return [[(s, subset) for s in sets] for subset in separating_subsets(sets[0].count)]


def _copy_tensors(network: nn.Module, names: Collection[str]) -> nn.Module:
    """Copy a network's modules and the named tensors; all others are shared and must not be written."""
    copied = set(names)
    shared = {id(t): t for name, t in network.state_dict(keep_vars=True).items() if name not in copied}
    return copy.deepcopy(network, shared)


_NO_LONGER_RUNS = "the network no longer runs after the cut"


def no_longer_runs(error: BaseException) -> str:
    """Return the reason to refuse a cut after which the network raised an error."""
    return f"{_NO_LONGER_RUNS} ({first_line(error)})"


def separating_subsets(count: int) -> list[Tensor]:
    """Return non-empty, non-full subsets of units, such that one of any two units alone is in one of them."""
    numbers = torch.arange(count)
    bits = [(numbers >> bit) & 1 == 1 for bit in range(max(1, (count - 1).bit_length()))]
    return [s for bit in bits for s in (bit, ~bit) if 0 < int(s.sum()) < count]


def random_copy(network: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, float]:
    """Copy a network with random weights, in double precision where its forward allows it.

    Returns:
        The copy, example inputs in its precision, and the tolerance for that precision.
    """
    probe = repeat_rows(inputs, _probe_rows(network, inputs))
    wide = tuple(x.double() if x.is_floating_point() else x for x in probe)
    for strength in (1.0, 0.1, 0.0):
        copied = _randomize(network, strength)
        double = _in_double(copied, wide)
        if double is not None:
            if strength == 0 or _is_stable(double, wide):
                return double, wide, _DOUBLE_TOLERANCE
        elif _all_finite(outputs(copied, probe)):
            return copied, probe, TOLERANCE
    return copied, probe, TOLERANCE


def _probe_rows(network: nn.Module, inputs: Inputs) -> int:
    """Return a number of rows that has no divisor in common with any width.

    With others a forward that fixes a width, such as ``x.view(-1, 8)``, may run on a cut network too: what
    is missing in each row is taken from the next.
    """
    larger = sum(x[0].numel() for x in inputs) / _SMALL_ROW
    least = _PROBE_ROWS if larger <= 1 else max(2, int(_PROBE_ROWS / (2 * larger)))
    shapes = [x.shape[1:] for x in inputs] + [t.shape for t in named_tensors(network).values()]
    widths = {size for shape in shapes for size in shape if size}
    return next(n for n in itertools.count(least) if all(math.gcd(n, size) == 1 for size in widths))


def _in_double(network: nn.Module, inputs: Inputs) -> nn.Module | None:
    """Return a copy in double precision; None if it needs float32 or its outputs are not finite."""
    copied = copy.deepcopy(network).double()
    try:
        found = outputs(copied, inputs)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a forward may ask for float32 by an error of any class
        return None
    floats = [y for y in found if y.is_floating_point()]
    return copied if _all_finite(found) and all(y.dtype == torch.float64 for y in floats) else None


def _is_stable(network: nn.Module, inputs: Inputs) -> bool:
    """Return whether round-off stays small: random recurrent weights can amplify it without bound."""
    perturbed = copy.deepcopy(network)
    for parameter in filter(torch.is_floating_point, perturbed.parameters()):
        parameter.data.mul_(1 + 1e-14)
    return difference(outputs(network, inputs), outputs(perturbed, inputs)) <= _DOUBLE_TOLERANCE / 100


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    floats = [t for t in tensors if t.is_floating_point()]
    return bool(floats) and all(bool(torch.isfinite(t).all()) for t in floats)


def _randomize(network: nn.Module, strength: float) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    copied = copy.deepcopy(network).eval()
    for parameter in copied.parameters():
        if parameter.is_floating_point():
            scale = parameter.detach().double().square().mean().sqrt().clamp(min=1e-2) * strength
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.data = (parameter.data.double() + noise).to(parameter.dtype)
    for name, buffer in copied.named_buffers():
        if buffer.is_floating_point():
            factor = 1 + strength * torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
            shift = strength * torch.randn(buffer.shape, generator=generator, dtype=torch.float64) / 10
            moved = buffer.double() * factor + (shift if name.endswith("running_mean") else 0.0)
            buffer.copy_(moved.to(buffer.dtype))
    return copied


@torch.no_grad()
def _perturb(
    network: nn.Module, marks: Sequence[MarkedUnits], inputs: Inputs, axes: Sequence[int | None]
) -> Inputs:
    """Change what produces the marked units: positions of carriers, in place, and input columns."""
    state = named_tensors(network)
    moved = list(inputs)
    for units, marked in marks:
        for slot in units.slots:
            tensor = state[slot.tensor]
            hit = torch.nonzero((slot.unit >= 0) & marked[slot.unit.clamp(min=0)]).flatten()
            if slot.role == "carrier" and tensor.is_floating_point() and units.removal == "cut":
                tensor.index_copy_(slot.dim, hit, tensor.index_select(slot.dim, hit) * 1.5 + 0.25)
        if units.source is not None:
            x, axis = moved[units.source], axes[units.source]
            assert axis is not None  # an input without a feature axis has no units
            hit = torch.nonzero(marked).flatten()
            part = x.index_select(axis, hit)
            changed = part * 1.5 + 0.25 if x.is_floating_point() else part.roll(1, 0)
            moved[units.source] = x.index_copy(axis % x.ndim, hit, changed)
    return tuple(moved)


def _mixing_reason(network: nn.Module, marks: Sequence[MarkedUnits]) -> str:
    """Return which operation mixes the units: a norm among their carriers, or another one."""
    for units, _ in marks:
        for slot in units.slots:
            path = slot.tensor.rpartition(".")[0]
            layer = network.get_submodule(path)
            if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                return f"{type(layer).__name__} {path!r} mixes the units"
    return "an operation between the layers mixes the units"


def _fixed_width_reason(network: nn.Module, sets: Sequence[UnitSet]) -> str | None:
    """Return the reason where a well-known layer fixes the width in its own code, or None."""
    for slot in (slot for s in sets for slot in s.slots):
        path = slot.tensor.rpartition(".")[0]
        for module in (path, path.rpartition(".")[0]):
            if isinstance(network.get_submodule(module), nn.MultiheadAttention):
                return f"MultiheadAttention {module!r} ties the width of its heads to the width of its input"
    return None


def _attribute_choices(network: nn.Module, sets: Sequence[UnitSet]) -> Iterator[tuple[Attribute, ...]]:
    """Yield sets of attributes, small ones first, that may hold the width of the units or their number."""
    count = sets[0].count
    widths = {count} | {int((slot.unit >= 0).sum()) for s in sets for slot in s.slots}
    paths: dict[str, None] = {}
    for slot in (slot for s in sets for slot in s.slots):
        path = slot.tensor.rpartition(".")[0]
        while True:
            paths[path] = None
            for name, child in network.get_submodule(path).named_children():
                if not any(True for _ in child.parameters()):  # such as Unflatten
                    paths[f"{path}.{name}".lstrip(".")] = None
            if not path:
                break
            path = path.rpartition(".")[0]
    found = [
        Attribute(path, name, width // count)
        for path in paths
        for name, value in vars(network.get_submodule(path)).items()
        for width in widths
        if width % count == 0 and name not in ("training",) and _holds_width(value, width)
    ]
    sizes = range(1, min(_MAX_ATTRIBUTES, len(found)) + 1)
    combinations = itertools.chain.from_iterable(itertools.combinations(found, size) for size in sizes)
    return itertools.islice(combinations, _MAX_ATTRIBUTE_CHOICES)


def _holds_width(value: Any, width: int) -> bool:
    if isinstance(value, tuple | list):
        return width > 1 and any(type(v) is int and v == width for v in value)
    return type(value) is int and value == width


@contextlib.contextmanager
def _neutral_statistics(mixing: frozenset[int], wanted: bool) -> Iterator[None]:
    """Hold statistics over units constant, so that a plan can be checked past them."""
    if not wanted:
        yield
        return
    with _NeutralStatistics(mixing):
        yield


class _NeutralStatistics(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's __init_subclass__
    """Compute norms as their affine part, softmax as a sigmoid, mixing reductions as ones."""

    def __init__(self, mixing: frozenset[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mixing = mixing
        self.reductions = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        if name in ("native_layer_norm", "_fused_rms_norm"):
            weight, bias = args[2], args[3] if name == "native_layer_norm" else None
            scaled = args[0] if weight is None else args[0] * weight
            return (scaled.clone() if bias is None else scaled + bias, *out[1:])
        if name == "_softmax":
            return args[0].sigmoid()
        if is_reduction(name):
            self.reductions += 1
            if self.reductions in self.mixing:
                return pytree.tree_map(torch.ones_like, out)
        return out
