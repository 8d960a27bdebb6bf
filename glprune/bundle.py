"""The bundle: what a run leaves behind, written whole or not at all, and read back without pickle."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from glprune.errors import ModelError, UsageError
from glprune.report import DType
from glprune.scaling import Scaled, Standardize
from glprune.surgery import Padding, Surgery

ONNX = "model.onnx"
WEIGHTS = "model.safetensors"
PLAN = "plan.json"
REPORT = "report.json"
PAGE = "report.html"
RECIPE = "recipe.resolved.yaml"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Axis(_Record):
    """Positions kept along one dimension of one tensor of the original network."""

    tensor: str
    dim: int
    size: int
    kept: list[int]


class InputPlan(_Record):
    """The kept columns of one input; without an axis it passes whole."""

    name: str
    axis: int | None
    dtype: DType
    size: int
    kept: list[int]
    columns: list[str]
    constants: list[float] | None = None


class AttributePlan(_Record):
    """A size that a module's forward reads, in the slim network."""

    module: str
    name: str
    value: int | list[int]


class Plan(_Record):
    """How the slim network is cut out of the original one; all of ``plan.json``."""

    schema_version: Literal["glprune.plan/1"] = "glprune.plan/1"
    factory: str
    arguments: dict[str, Any]
    standardize: bool
    inputs: list[InputPlan]
    axes: list[Axis]
    attributes: list[AttributePlan]


def make_axes(network: nn.Module, surgery: Surgery) -> list[Axis]:
    """Describe kept positions for the plan, in the numbering of the original network."""
    state = network.state_dict()
    return [
        Axis(tensor=name, dim=dim, size=state[name].shape[dim], kept=positions.tolist())
        for (name, dim), positions in sorted(surgery.kept.items())
    ]


def make_attributes(surgery: Surgery) -> list[AttributePlan]:
    """Describe the module attributes that follow the widths."""
    return [
        AttributePlan(module=path, name=name, value=list(value) if isinstance(value, tuple | list) else value)
        for (path, name), value in sorted(surgery.attributes.items())
    ]


def make_constants(surgery: Surgery, place: int) -> list[float] | None:
    """What the removed columns of an input are fed inside the network; None where they are cut."""
    padding = surgery.padding.get(place)
    return None if padding is None else padding.values.double().tolist()


def _surgery(plan: Plan) -> Surgery:
    return Surgery(
        kept={(a.tensor, a.dim): torch.tensor(a.kept, dtype=torch.int64) for a in plan.axes},
        attributes={
            (a.module, a.name): tuple(a.value) if isinstance(a.value, list) else a.value
            for a in plan.attributes
        },
        padding={
            place: Padding(place, part.axis, torch.tensor(part.kept, dtype=torch.int64), _values(part))
            for place, part in enumerate(plan.inputs)
            if part.constants is not None and part.axis is not None
        },
    )


def _values(part: InputPlan) -> Tensor:
    return torch.tensor(part.constants, dtype=torch.float64)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's tensors as safetensors; tied tensors once."""
    save_model(network, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # as every other file of the bundle


def load(bundle: str | Path, factory: str | Callable[..., nn.Module] | None = None) -> nn.Module:
    """Rebuild the slim network from a bundle, without pickle.

    Args:
        bundle: Folder a run wrote.
        factory: What builds the original network: a callable, or ``package.module:function``,
            called with the arguments in the plan; None takes the plan's own factory, which must
            then be importable.

    Returns:
        The slim network in evaluation mode. It takes the kept columns, in the order of the
        report, as the slim ONNX file does.

    Raises:
        ModelError: The plan, the weights or the factory do not fit each other.
    """
    folder = Path(bundle)
    plan = _read_plan(folder / PLAN)
    build = _factory(plan.factory if factory is None else factory)
    network = build(**plan.arguments)
    if plan.standardize:
        network = Scaled([_unscaled(part) for part in plan.inputs], network)
    _check_axes(network, plan.axes)
    _surgery(plan).apply_(network)
    try:
        load_model(network, str(folder / WEIGHTS), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS}: does not fit the network of the plan ({error})") from error
    return network.eval()


def _unscaled(part: InputPlan) -> Standardize | None:
    """The standardisation layer of an input, its figures to be loaded; None for inputs that have none."""
    return Standardize(torch.zeros(part.size), torch.ones(part.size)) if part.dtype == "float32" else None


def _read_plan(path: Path) -> Plan:
    try:
        return Plan.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); a bundle holds {PLAN}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: {where}: {first['msg']}; this is not a plan glprune wrote.") from error


def _factory(factory: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if callable(factory):
        return factory
    module, _, name = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ModelError(
            f"factory {factory!r} cannot be imported ({error}); pass the function that builds the network."
        ) from error


def _check_axes(network: nn.Module, axes: Sequence[Axis]) -> None:
    state = network.state_dict()
    for axis in axes:
        shape = state[axis.tensor].shape if axis.tensor in state else None
        if shape is None or axis.dim >= len(shape) or shape[axis.dim] != axis.size:
            found = "no such tensor" if shape is None else f"shape {tuple(shape)}"
            raise ModelError(
                f"{PLAN}: {axis.tensor!r} should have {axis.size} positions along dimension {axis.dim}, "
                f"the factory's network has {found}; pass the factory the original was built with."
            )


def digest(path: Path) -> str:
    """SHA-256 of a file as ``sha256:<hex>``."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write strict, stable JSON: UTF-8, two-space indent, no NaN, final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that exists, before any work is done.

    Raises:
        UsageError: The folder exists and ``overwrite`` is not set, or it is not a bundle.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise UsageError(f"{folder} exists; choose another --out or pass --overwrite.")
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / REPORT).exists()):
        raise UsageError(f"{folder} is not a bundle (it holds no {REPORT}); it is not overwritten.")


@contextlib.contextmanager
def staged(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` and move it into place when the block ends well.

    Raises:
        UsageError: The place cannot be written to, or was taken meanwhile.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"{folder.parent}: cannot write here ({error.strerror}); choose another --out."
        ) from error
    try:
        stage.chmod(0o755)
        yield stage
        check_free(folder, overwrite)
        _replace(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(stage: Path, folder: Path) -> None:
    """Move ``stage`` to ``folder``; an older bundle is kept until the new one stands."""
    if not folder.exists():
        stage.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old / folder.name)
    try:
        stage.rename(folder)
    except OSError:
        (old / folder.name).rename(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
