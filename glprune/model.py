"""Load a trained network: a factory from the recipe and weights from a file, without running code."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from glprune.errors import GlpruneError, ModelError
from glprune.imports import describe, load_callable
from glprune.recipe import Recipe

Format = Literal["state_dict", "safetensors", "pickle"]


@dataclass(frozen=True)
class Network:
    """A loaded network.

    Attributes:
        module: In evaluation mode, float32, on the CPU.
        sha256: Digest of the weights' file.
        format: How the file was read.
    """

    module: nn.Module
    sha256: str
    format: Format


def load_network(recipe: Recipe, path: Path, *, trust_pickle: bool = False) -> Network:
    """Build the recipe's network and load its weights.

    Args:
        recipe: Names the factory.
        path: ``.safetensors``, or a state dict written by ``torch.save``.
        trust_pickle: Allow a fully pickled module, which runs code when it is read.

    Raises:
        ModelError: The file or the factory cannot be used; tensors are named.
        RecipeError: The factory cannot be imported.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the trained weights (.pt or .safetensors).")
    content, form = _read(path, trust_pickle)
    if isinstance(content, nn.Module):
        module: nn.Module = content
    else:
        module = _build(recipe)
        _load(module, _without_prefix(content), path, recipe.model.factory)
    _check_finite(module, path)
    with path.open("rb") as stream:
        digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    return Network(module.float().cpu().eval(), digest, form)


def _read(path: Path, trust_pickle: bool) -> tuple[Mapping[str, Tensor] | nn.Module, Format]:
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path), "safetensors"
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a safetensors file ({error}).") from error
    try:
        content, form = torch.load(path, map_location="cpu", weights_only=True), "state_dict"
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower() and "global" not in str(error).lower():
            raise ModelError(f"{path}: not a file torch.save wrote ({_first(error)}).") from error
        if not trust_pickle:
            raise ModelError(
                f"{path} is a pickle of more than tensors, and reading a pickle runs code of whoever made "
                "it; save torch.save(model.state_dict(), path) instead, or pass --trust-pickle."
            ) from error
        content, form = _unpickle(path), "pickle"
    except Exception as error:  # torch.load raises RuntimeError, EOFError, KeyError, ... on broken files
        raise ModelError(f"{path}: not a file torch.save wrote ({_first(error)}).") from error
    if isinstance(content, nn.Module):
        return content, "pickle"
    return _state(content, path), "state_dict" if form == "state_dict" else "pickle"


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs code that may raise anything
        raise ModelError(f"{path}: the pickle cannot be read ({describe(error)}).") from error


def _state(content: Any, path: Path) -> Mapping[str, Tensor]:
    """Find the state dict in what was saved, also under 'state_dict' or 'model'."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ModelError(
            f"{path}: holds {type(content).__name__}, not a state dict; save model.state_dict()."
        )
    strange = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if strange:
        raise ModelError(f"{path}: {_listed(strange)} not a tensor; save model.state_dict() alone.")
    return content


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the ``module.`` that DataParallel puts before every name."""
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


def _build(recipe: Recipe) -> nn.Module:
    spec = recipe.model
    where = recipe.where("model", "factory")
    factory = load_callable(spec.factory, recipe.folder, where)
    try:
        with torch.random.fork_rng(devices=[]):
            module = factory(**spec.arguments)
    except GlpruneError:
        raise
    except Exception as error:  # the user's factory may raise anything
        raise ModelError(f"{where}: {spec.factory} failed ({describe(error)}).") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{where}: {spec.factory} returned {type(module).__name__}, not a torch.nn.Module.")
    return module


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path, factory: str) -> None:
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{what} {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shaped))
        if names
    ]
    if problems:
        raise ModelError(f"{path} does not fit {factory}: {'; '.join(problems)}.")
    module.load_state_dict(dict(state))


def _check_finite(module: nn.Module, path: Path) -> None:
    bad = [
        f"{name} ({int((~torch.isfinite(t)).sum())} of {t.numel()})"
        for name, t in module.state_dict().items()
        if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if bad:
        raise ModelError(f"{path}: NaN or Inf in {_listed(bad)}; train again or mend the weights.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
