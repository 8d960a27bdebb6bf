"""Load a trained network: build it by the recipe's factory and read its weights without running code."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from glprune._files import is_utf8, unreadable_reason
from glprune._imports import load_callable
from glprune._plugins import PluginError, load_plugin
from glprune._user_code import describe, user_code
from glprune.errors import ModelError, first_line
from glprune.model.reparametrize import fold_norms_

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"
Format = Literal["state_dict", "safetensors", "pickle", "plugin"]


@dataclass(frozen=True)
class LoadedNetwork:
    """A loaded network.

    Attributes:
        module: The network in evaluation mode, float32, on the CPU.
        sha256: Digest of the weights' file.
        format: How the file was read.
        folded: Weights whose normalisation was undone; see ``fold_norms_``.
    """

    module: nn.Module
    sha256: str
    format: Format
    folded: tuple[str, ...] = ()


def load_network(recipe: Recipe, path: Path, *, trust_pickle: bool = False) -> LoadedNetwork:
    """Build the recipe's network and load its weights.

    Args:
        recipe: Names the factory.
        path: ``.safetensors``, or a state dict written by ``torch.save``.
        trust_pickle: Allow a fully pickled module, which runs code when it is read.

    Raises:
        ModelError: The file or the factory cannot be used; tensors are named.
        RecipeError: The factory cannot be imported.
    """
    if not is_utf8(path):
        raise ModelError(f"{path} has a path that is not UTF-8; rename it.")
    why = unreadable_reason(path)
    if why is not None:
        raise ModelError(f"{path} {why}; give the trained weights (.pt or .safetensors).")
    content, form = (
        _read(path, trust_pickle)
        if recipe.model.loader is None
        else (_read_with_plugin(recipe, path), "plugin")
    )
    if isinstance(content, nn.Module):
        module: nn.Module = content
    else:
        module = _build(recipe)
        _load(module, _without_prefix(content), path, recipe.model.factory)
    _check_finite(module, path)
    with path.open("rb") as stream:
        digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    module = module.float().cpu().eval()
    return LoadedNetwork(module, digest, form, fold_norms_(module))


def _read_with_plugin(recipe: Recipe, path: Path) -> Mapping[str, Tensor] | nn.Module:
    """Read the file with the recipe's loader plugin."""
    where = recipe.where("model", "loader")
    plugin = load_plugin("glprune.loaders", str(recipe.model.loader), where, recipe.allowed)
    try:
        content = plugin(path)
    except PluginError as error:
        raise ModelError(str(error)) from error
    return content if isinstance(content, nn.Module) else _state(content, path)


def _read(path: Path, trust_pickle: bool) -> tuple[Mapping[str, Tensor] | nn.Module, Format]:
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path), "safetensors"
        except (safetensors.SafetensorError, OSError, LookupError, ValueError) as error:
            raise ModelError(f"{path}: not a safetensors file ({first_line(error, 160)}).") from error
    _check_container(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols, which are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust_pickle:
            raise ModelError(
                f"{path} is a pickle of more than tensors, and reading a pickle runs code of whoever made "
                "it; save torch.save(model.state_dict(), path) instead, or pass --trust-pickle."
            ) from error
        content = _unpickle(path)
        return content if isinstance(content, nn.Module) else _state(content, path), "pickle"
    except Exception as error:  # torch.load raises RuntimeError, EOFError, KeyError, ... on broken files
        raise ModelError(f"{path}: not a file torch.save wrote ({first_line(error, 160)}).") from error
    return _state(content, path), "state_dict"


def _check_container(path: Path) -> None:
    """Refuse a file that torch.save did not write before anything in it is unpickled or unpacked."""
    with path.open("rb") as stream:
        head = stream.read(len(_ZIP))
    if head[:1] != _PICKLE and head != _ZIP:
        raise ModelError(f"{path}: not a file torch.save wrote; save torch.save(model.state_dict(), path).")
    if head != _ZIP:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ModelError(
            f"{path}: truncated or no file torch.save wrote ({first_line(error, 160)})."
        ) from error
    names = [PurePosixPath(m.filename) for m in members]
    if any(name.name == "constants.pkl" for name in names):
        raise ModelError(
            f"{path} is a TorchScript archive, which holds code; save model.state_dict() instead."
        )
    counts = Counter(names)
    unsafe = next((n for n in names if n.is_absolute() or ".." in n.parts or counts[n] > 1), None)
    if unsafe is not None:
        raise ModelError(
            f"{path}: member {str(unsafe)[:80]!r} leaves the archive or is there twice; save it anew."
        )
    total = sum(m.file_size for m in members)
    if total > path.stat().st_size:
        raise ModelError(f"{path}: unpacks to {total:,} bytes, more than it has; write it with torch.save.")


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # unpickling runs code that may raise anything
        raise ModelError(f"{path}: the pickle cannot be read ({describe(error)}).") from error


def _state(content: Any, path: Path) -> Mapping[str, Tensor]:
    """Find the state dict in what was saved, also under 'state_dict' or 'model'."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(dict.get(content, key), dict):
            content = dict.get(content, key)
    if not isinstance(content, dict) or not content:
        raise ModelError(
            f"{path}: holds {type(content).__name__}, not a state dict; save model.state_dict()."
        )
    state = dict(dict.items(content))  # here and below: attributes from a file may hide methods
    not_tensors = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if not_tensors:
        raise ModelError(
            f"{path}: {_shortened_list(not_tensors)} not a tensor; save model.state_dict() alone."
        )
    unnamed = [repr(k) for k in state if not isinstance(k, str)]
    if unnamed:
        raise ModelError(
            f"{path}: {_shortened_list(unnamed)} not a name of a tensor; save model.state_dict()."
        )
    state = {name: Tensor.detach(tensor) for name, tensor in state.items()}
    not_dense = [k for k, v in state.items() if v.layout != torch.strided or v.is_quantized or v.is_meta]
    if not_dense:
        raise ModelError(
            f"{path}: {_shortened_list(not_dense)} sparse, quantised or without values; save dense tensors."
        )
    return state


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the ``module.`` that DataParallel puts before every name."""
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


def _build(recipe: Recipe) -> nn.Module:
    spec = recipe.model
    where = recipe.where("model", "factory")
    factory = load_callable(spec.factory, recipe.folder, where, recipe.allowed)
    with torch.random.fork_rng(devices=[]), user_code(ModelError, f"{where}: {spec.factory}"):
        module = factory(**spec.arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{where}: {spec.factory} returned {type(module).__name__}, not a torch.nn.Module.")
    return module


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path, factory: str) -> None:
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    complex_ = [
        n for n, tensor in expected.items() if n in state and state[n].is_complex() > tensor.is_complex()
    ]
    problems = [
        f"{what} {_shortened_list(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrongly shaped", shaped),
            ("complex", complex_),
        )
        if names
    ]
    if problems:
        raise ModelError(f"{path} does not fit {factory}: {'; '.join(problems)}.")
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit {factory} ({first_line(error, 160)}).") from error


def _check_finite(module: nn.Module, path: Path) -> None:
    bad = [
        f"{name} ({int((~torch.isfinite(t)).sum())} of {t.numel()})"
        for name, t in module.state_dict().items()
        if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if bad:
        raise ModelError(f"{path}: NaN or Inf in {_shortened_list(bad)}; train again or correct the weights.")


def _shortened_list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
