"""Rebuild the slim network from a bundle, without pickle."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import load_model
from torch import nn

from glprune._imports import check_allowed, load_callable
from glprune._user_code import user_code
from glprune.errors import ModelError, first_line
from glprune.model.loading import materialize_, unwrapped
from glprune.model.standardize import Standardize, StandardizedNetwork
from glprune.model.weights.reparametrization import fold_
from glprune.pruning.ids import Positions
from glprune.pruning.surgery import ConstantFill, PruningPlan, named_tensors
from glprune.schema.bundle import PLAN, WEIGHTS
from glprune.schema.plan import Axis, InputPlan, Plan


def load(
    bundle: str | Path,
    factory: str | Callable[..., nn.Module] | None = None,
    *,
    allow_factory: Sequence[str] | None = None,
) -> nn.Module:
    """Rebuild the slim network from a bundle, without pickle.

    Args:
        bundle: Folder a run wrote.
        factory: Builds the original network: a callable, or ``package.module:function``, called with
            the arguments in the plan. None uses the function that the plan names, which runs only if
            ``allow_factory`` lists its module. Files and modules inside the bundle are never imported.
        allow_factory: Packages and modules of yours that the plan's function may be imported from, such as
            ``["my_package.networks"]``.

    Returns:
        The slim network in evaluation mode. It takes the kept columns in the order of the
        report, as the slim ONNX file does.

    Raises:
        ModelError: The plan, the weights and the factory do not match, or the plan names a function that
            the caller does not allow.
    """
    folder = Path(bundle)
    plan = _read_plan(folder / PLAN)
    with _outside(folder):
        build = _plan_factory(plan, folder, allow_factory) if factory is None else _resolve(factory, folder)
        with user_code(ModelError, f"{folder / PLAN}: its factory"):
            network = build(**plan.arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{folder / PLAN}: its factory returned {type(network).__name__}, not a torch.nn.Module; pass "
            "the function that builds the network."
        )
    network = unwrapped(network).eval()
    fold_(network)
    shapes = _full_shapes(folder / WEIGHTS, plan.axes)
    try:
        if plan.standardize:
            network = StandardizedNetwork([_empty_standardization(part) for part in plan.inputs], network)
        materialize_(network, shapes)
    except (MemoryError, RuntimeError, ValueError) as error:
        raise ModelError(f"{folder / PLAN}: its sizes do not fit in memory ({first_line(error)}).") from error
    _check_axes(network, plan.axes)
    _check_attributes(network, plan, folder / PLAN)
    try:
        _pruning_plan(plan).apply_(network)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder / PLAN}: does not fit the factory's network ({first_line(error)})."
        ) from error
    try:
        load_model(network, str(folder / WEIGHTS), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"{folder / WEIGHTS}: does not fit the network of the plan ({first_line(error)})"
        ) from error
    return network.eval()


def _pruning_plan(plan: Plan) -> PruningPlan:
    for part in plan.inputs:
        if part.constants is not None and len(part.constants) != part.size:
            raise ValueError(f"{len(part.constants)} constants for {part.size} columns of {part.name!r}")
    return PruningPlan(
        kept={(a.tensor, a.dim): Positions(torch.tensor(a.kept, dtype=torch.int64)) for a in plan.axes},
        attributes={
            (a.module, a.name): tuple(a.value) if isinstance(a.value, list) else a.value
            for a in plan.attributes
        },
        padding={
            index: ConstantFill(
                index,
                part.axis,
                torch.tensor(part.kept, dtype=torch.int64),
                torch.tensor(part.constants, dtype=torch.float64),
            )
            for index, part in enumerate(plan.inputs)
            if part.constants is not None and part.axis is not None
        },
    )


def _empty_standardization(part: InputPlan) -> Standardize | None:
    """Return an input's standardisation layer, whose statistics are loaded later; None for other types."""
    return Standardize(torch.zeros(part.size), torch.ones(part.size)) if part.dtype == "float32" else None


def _read_plan(path: Path) -> Plan:
    _check_regular(path)
    try:
        return Plan.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); a bundle holds {PLAN}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: {where}: {first['msg']}; this is not a plan glprune wrote.") from error


def _plan_factory(plan: Plan, folder: Path, allowed: Sequence[str] | None) -> Callable[..., nn.Module]:
    """Import the factory that the plan names."""
    place = plan.factory.rpartition(":")[0]
    if place.endswith(".py"):
        raise ModelError(
            f"{folder / PLAN}: factory: {place!r} is a file, and no file of a bundle is imported; pass the "
            "function that builds the network."
        )
    where = f"{folder / PLAN}: factory"
    if allowed is None:
        raise ModelError(
            f"{where}: {plan.factory[:200]!r} is named by the bundle, and runs only if you allow it; pass "
            f"the function that builds the network, or allow_factory=[{place[:200]!r}]."
        )
    check_allowed(place, allowed, f"{where}: {place!r}")
    with contextlib.suppress(ImportError, ValueError):  # the import itself says what is missing
        _refuse_inside(place, folder)
    return load_callable(plan.factory, folder, where, allowed)


def _resolve(factory: str | Callable[..., nn.Module], folder: Path) -> Callable[..., nn.Module]:
    if callable(factory):
        return factory
    module, _, name = factory.partition(":")
    try:
        _refuse_inside(module, folder)
        found: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
        return found
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ModelError(
            f"factory {factory!r} cannot be imported ({first_line(error)}); pass the function that builds "
            "the network."
        ) from error


@contextlib.contextmanager
def _outside(folder: Path) -> Iterator[None]:
    """Find no modules in a folder inside the block: Python looks in the current one."""
    before = list(sys.path)
    sys.path[:] = [place for place in before if not Path(place).resolve().is_relative_to(folder.resolve())]
    try:
        yield
    finally:
        sys.path[:] = before


def _refuse_inside(module: str, folder: Path) -> None:
    """Refuse a module that lies in a folder, which can be found from a folder around it as a package."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = importlib.util.find_spec(".".join(parts[:end]))
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
        if any(place and Path(place).resolve().is_relative_to(folder.resolve()) for place in places):
            raise ModelError(
                f"{folder / PLAN}: factory: {module!r} lies in the bundle, and no file of a bundle is "
                "imported; pass the function that builds the network."
            )


def _check_regular(path: Path) -> None:
    """Refuse what is no plain file: a named pipe would be waited for."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); a bundle holds {path.name}.") from error
    if not regular:
        raise ModelError(f"{path}: is not a plain file; a bundle holds {path.name}.")


def _check_attributes(network: nn.Module, plan: Plan, path: Path) -> None:
    """Require attributes that hold a size, or sizes, in the network too: nothing else is replaced."""
    modules = dict(network.named_modules())
    for entry in plan.attributes:
        old = getattr(modules.get(entry.module), entry.name, None)
        several = isinstance(entry.value, list)
        is_size = isinstance(old, tuple | list) if several else type(old) is int
        if not is_size:
            where = f"{entry.module}.{entry.name}".lstrip(".")
            raise ModelError(
                f"{path}: attributes: {where!r} holds no size in the factory's network; pass the factory the "
                "original was built with."
            )


def _full_shapes(weights: Path, axes: Sequence[Axis]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the original network's tensors: the slim ones', with the plan's axes in full."""
    _check_regular(weights)
    try:
        with safetensors.safe_open(str(weights), framework="pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{weights}: cannot be read ({error}); the bundle is damaged.") from error
    for axis in axes:
        if axis.tensor in shapes and axis.dim < len(shapes[axis.tensor]):
            shapes[axis.tensor][axis.dim] = axis.size
    return {name: tuple(shape) for name, shape in shapes.items()}


def _check_axes(network: nn.Module, axes: Sequence[Axis]) -> None:
    """Refuse a factory's network whose shapes are not those of the plan."""
    state = named_tensors(network)
    for axis in axes:
        shape = state[axis.tensor].shape if axis.tensor in state else None
        if shape is None or axis.dim >= len(shape) or shape[axis.dim] != axis.size:
            found = "no such tensor" if shape is None else f"shape {tuple(shape)}"
            raise ModelError(
                f"{PLAN}: {axis.tensor!r} should have {axis.size} positions along dimension {axis.dim}, "
                f"the factory's network has {found}; pass the factory the original was built with."
            )
