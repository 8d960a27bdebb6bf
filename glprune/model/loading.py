"""Load a trained network: build it by the recipe's factory and read its weights without running code."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from glprune._imports import load_callable, modules_of
from glprune._plugins import PluginError, load_plugin
from glprune._user_code import describe, user_code
from glprune._wording import shortened
from glprune.errors import ModelError, first_line
from glprune.model.weights.file import (
    check_pickled_class,
    check_weights_file,
    pickle_error,
    unreadable_safetensors,
)
from glprune.model.weights.reparametrization import fold_, fold_state, parametrized
from glprune.model.weights.state_dict import (
    Renamed,
    State,
    check_state,
    choose_state,
    completed,
    find_states,
    fitting_parts,
    match_names,
)
from glprune.runtime.determinism import settings_kept

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

Format = Literal["state_dict", "safetensors", "pickle", "plugin"]


@dataclass(frozen=True)
class LoadedNetwork:
    """A loaded network.

    Attributes:
        module: The network in evaluation mode, float32, on the CPU.
        sha256: Digest of the weights' file.
        format: How the file was read.
        notes: What was done to fit the file and the network to one another.
    """

    module: nn.Module
    sha256: str
    format: Format
    notes: tuple[str, ...] = ()


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
    check_weights_file(path, recipe, trust_pickle)
    with settings_kept(), torch.random.fork_rng(devices=[]):  # reading and building may run the user's code
        content, form = _read(recipe, path, trust_pickle)
        if isinstance(content, nn.Module):
            module, notes = unwrapped(content), []
        else:
            module = unwrapped(_build(recipe)).eval()
            notes = _load_(module, find_states(content, path), path, recipe.model.factory)
        notes += _fold_note(fold_(module.eval()))
    _check_initialised(module, path)
    module = module.float().cpu()
    _check_finite(module, path)
    with path.open("rb") as stream:
        digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    return LoadedNetwork(module, digest, form, tuple(notes))


def unwrapped(module: nn.Module) -> nn.Module:
    """Take DataParallel, torch.compile and AveragedModel, which cannot be exported, off all parts."""
    module = _inside(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (inner := _inside(child)) is not child:
                parent.add_module(name, inner)
    return module


def _inside(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def materialize_(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the tensors of lazy modules the shapes by their names; those without a shape stay as they are."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor) and name in shapes:
            tensor.materialize(shapes[name])


def _read(recipe: Recipe, path: Path, trust_pickle: bool) -> tuple[Any, Format]:
    """Return what a file holds, read by the recipe's loader plugin where it names one."""
    if recipe.model.loader is not None:
        where = recipe.where("model", "loader")
        plugin = load_plugin("glprune.loaders", recipe.model.loader, where, recipe.allowed)
        try:
            return plugin(path), "plugin"
        except PluginError as error:
            raise ModelError(str(error)) from error
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path), "safetensors"
        except (safetensors.SafetensorError, OSError, LookupError, ValueError) as error:
            raise unreadable_safetensors(path, first_line(error, 160)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols, which are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        check_pickled_class(path)
        if not trust_pickle:
            raise pickle_error(path) from error
        return _unpickle(recipe, path), "pickle"
    except Exception as error:  # torch.load raises RuntimeError, EOFError, KeyError, ... on broken files
        raise ModelError(f"{path}: not a file torch.save wrote ({first_line(error, 160)}).") from error
    return content, "state_dict"


def _unpickle(recipe: Recipe, path: Path) -> Any:
    """Read a trusted pickle, which may need modules beside the recipe."""
    try:
        with modules_of(*([recipe.folder] if recipe.allowed is None else [])):
            return torch.load(path, map_location="cpu", weights_only=False)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # unpickling runs code that may raise anything
        fix = ""
        if isinstance(error, AttributeError | ImportError):
            fix = "; save torch.save(model.state_dict(), path) where the code that it needs is found"
        raise ModelError(f"{path}: the pickle cannot be read ({describe(error)}){fix}.") from error


def _build(recipe: Recipe) -> nn.Module:
    spec = recipe.model
    where = recipe.where("model", "factory")
    factory = load_callable(spec.factory, recipe.folder, where, recipe.allowed)
    if isinstance(inspect.unwrap(factory), nn.Module):
        raise ModelError(f"{where}: {spec.factory} is a network; name a function that builds it.")
    with user_code(ModelError, f"{where}: {spec.factory}"):
        module = factory(**spec.arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{where}: {spec.factory} returned {type(module).__name__}, not a torch.nn.Module.")
    _check_tensors(module, f"{where}: {spec.factory}")
    return module


def _check_tensors(module: nn.Module, subject: str) -> None:
    """Refuse tensors that hold no values or that no gradient may change."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not is_lazy(tensor) and (tensor.is_meta or tensor.is_inference()):
            how = "on the device 'meta'" if tensor.is_meta else "under torch.inference_mode"
            raise ModelError(
                f"{subject} makes {name!r} {how}; build the network on the CPU and outside of it."
            )


def _load_(module: nn.Module, states: Mapping[str, State], path: Path, factory: str) -> list[str]:
    """Load the state dict that fits; return notes on what was done to make it fit."""
    notes: list[str] = []
    renamed, fitting = _matched(module, states)
    if not fitting:  # masks and norms may be in the file or in the network alone
        names = fold_(module)
        folded = {key: fold_state(state) for key, state in states.items()}
        renamed, fitting = _matched(module, {key: state for key, (state, _) in folded.items()})
        names += folded[(fitting or list(states))[0]][1]
        notes += _fold_note(list(dict.fromkeys(names)))
    key, choice = choose_state(states, fitting, path)
    state = check_state(dict(renamed[key].state), path)
    _check_fit(module, Renamed(state, renamed[key].how), states[key], f"{path} does not fit {factory}")
    if renamed[key].how:
        choice.append(f"The names in {path} are those of the network {renamed[key].how}.")
    materialize_(module, {name: tuple(tensor.shape) for name, tensor in state.items()})
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit {factory} ({' '.join(str(error).split())[:160]}).") from error
    return choice + notes


def _matched(module: nn.Module, states: Mapping[str, State]) -> tuple[dict[str, Renamed], list[str]]:
    """Return every state dict under the network's names, and the keys of those that fit."""
    own, found = module.state_dict(), {}
    for key, state in states.items():
        renamed = match_names(state, own)
        found[key] = Renamed(completed(renamed.state, own), renamed.how)
    return found, [key for key, renamed in found.items() if renamed.state.keys() == own.keys()]


def _fold_note(names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"The masked or normalised weights {shortened(names, 5)} are replaced by their values, and "
        "fine-tuning may change each of them."
    ]


def _check_fit(module: nn.Module, found: Renamed, whole: State, subject: str) -> None:
    """Refuse a state dict whose names, shapes or types are not the network's."""
    expected, state = module.state_dict(), found.state
    parts = fitting_parts(whole, expected)
    if parts and state.keys() != expected.keys():
        others = [name for name in whole if not name.startswith(tuple(parts))]
        beside = f", and beside them it holds {shortened(others, 5)}" if others else ""
        raise ModelError(
            f"{subject}: the names under {' and '.join(map(repr, parts))} fit{beside}; save the part that "
            "the factory builds, or build all of it."
        )
    problems = [
        f"{what} {shortened(names, 5)}"
        for what, names in (
            ("missing", [name for name in expected if name not in state]),
            ("unexpected", [name for name in state if name not in expected]),
            *_misfits(module, state),
        )
        if names
    ]
    if problems:
        how = f", its names taken {found.how}" if found.how else ""
        raise ModelError(f"{subject}{how}: {'; '.join(problems)}.{_parametrization_hint(expected, state)}")


def _misfits(module: nn.Module, state: State) -> list[tuple[str, list[str]]]:
    """Return the tensors whose shape or type does not fit."""
    pairs = {n: (state[n], t) for n, t in module.state_dict().items() if n in state and isinstance(t, Tensor)}
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return [
        (
            "wrongly shaped",
            [
                f"{name} {tuple(given.shape)} for {tuple(own.shape)}"
                for name, (given, own) in pairs.items()
                if not is_lazy(own) and given.shape != own.shape
            ],
        ),
        ("complex", [n for n, (given, own) in pairs.items() if given.is_complex() > own.is_complex()]),
        (
            "whole numbers, as of a quantised network, for",
            [
                f"{name} ({given.dtype})"
                for name, (given, own) in pairs.items()
                if name in trained
                and own.is_floating_point()
                and not (given.is_floating_point() or given.is_complex())
            ],
        ),
    ]


def _parametrization_hint(expected: Mapping[str, Tensor], state: State) -> str:
    """Say what to do where one side alone stores a weight as the tensors that it is computed from."""
    for names, others in ((list(state), expected), (list(expected), state)):
        weights = [weight for weight in parametrized(names) if weight in others]
        if weights:
            side = "file" if names == list(state) else "factory"
            return (
                f" The {side} alone parametrizes {weights[0]} in this way; do so in both, or in neither "
                "(torch.nn.utils.parametrize.remove_parametrizations before saving)."
            )
    return ""


def _check_initialised(module: nn.Module, path: Path) -> None:
    """Refuse a network with lazy tensors that no file gave a shape."""
    lazy = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if is_lazy(t)]
    if lazy:
        raise ModelError(
            f"{path}: {shortened(lazy, 5)} of lazy modules without values; run the network on a batch "
            "before it is saved."
        )


def dense_gradients_(module: nn.Module) -> None:
    """Let embeddings give dense gradients, which proximal steps need; their outputs are the same."""
    for part in module.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.sparse = False


def _check_finite(module: nn.Module, path: Path) -> None:
    bad = [
        f"{name} ({int((~torch.isfinite(t)).sum())} of {t.numel()})"
        for name, t in module.state_dict().items()
        if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if bad:
        raise ModelError(f"{path}: NaN or Inf in {shortened(bad, 5)}; train again or correct the weights.")
