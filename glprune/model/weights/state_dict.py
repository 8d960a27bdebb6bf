"""Find the state dict in what was saved and match its names with those of a network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from glprune._wording import shortened
from glprune.errors import ModelError

State = Mapping[str, Tensor]
_USUAL = ("", "state_dict", "model_state_dict", "model")  # where training scripts put the weights, in order
_MAX_DEPTH = 3  # of dictionaries in a checkpoint
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside its network
_BATCH_COUNT = "num_batches_tracked"  # of BatchNorm
_PROFILED = frozenset({"total_ops", "total_params"})  # buffers that thop leaves in a network
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclass(frozen=True)
class Renamed:
    """A state dict under other names.

    Attributes:
        state: The tensors.
        how: What was done to the names, for messages; empty where nothing was.
    """

    state: State
    how: str = ""

    def overlap(self, expected: Collection[str]) -> int:
        """Return how many names it shares with a network, less those that it does not share."""
        shared = len(self.state.keys() & set(expected))
        return 3 * shared - len(self.state) - len(expected)


def find_states(content: Any, path: Path) -> dict[str, State]:
    """Return every state dict of a checkpoint by the keys that lead to it, the most usual first.

    Args:
        content: What the file holds.
        path: The file, for messages.

    Raises:
        ModelError: There is none.
    """
    found = dict(_states(content, ()))
    if not found:
        return {"": check_state(_usual(content), path)}
    ranked = sorted(found, key=lambda key: (_rank(key), -len(found[key])))
    return {key: found[key] for key in ranked}


def choose_state(states: Mapping[str, State], fitting: Sequence[str], path: Path) -> tuple[str, list[str]]:
    """Choose among the state dicts of a checkpoint.

    Args:
        states: State dicts by their keys, the most usual first.
        fitting: Keys of those that fit the network.
        path: The file, for messages.

    Returns:
        The key of the one to load, and notes on the choice.

    Raises:
        ModelError: Several fit, and none is where weights usually are.
    """
    key, others = (fitting or list(states))[0], fitting[1:]
    named = ", ".join(repr(k) for k in fitting)
    if others and _rank(key) == len(_USUAL):
        raise ModelError(f"{path} holds several state dicts that fit ({named}); save one of them alone.")
    if others:
        return key, [f"{path} holds weights under {named}; those under {key!r} are loaded."]
    return key, [f"The weights under {key!r} in {path} are loaded."] if _rank(key) == len(_USUAL) else []


def check_state(content: Any, path: Path) -> State:
    """Return a state dict of dense tensors.

    Raises:
        ModelError: It is none; keys are named.
    """
    if not isinstance(content, dict) or not content:
        raise ModelError(
            f"{path}: holds {type(content).__name__}, not a state dict; save model.state_dict()."
        )
    state = dict(dict.items(content))  # here and below: attributes from a file may hide methods
    not_tensors = [str(k) for k, v in state.items() if not isinstance(v, Tensor)]
    if not_tensors:
        raise ModelError(f"{path}: {shortened(not_tensors, 5)} not a tensor; save model.state_dict() alone.")
    unnamed = [repr(k) for k in state if not isinstance(k, str)]
    if unnamed:
        raise ModelError(f"{path}: {shortened(unnamed, 5)} not a name of a tensor; save model.state_dict().")
    state = {name: Tensor.detach(tensor) for name, tensor in state.items()}
    not_dense = [k for k, v in state.items() if v.layout != torch.strided or v.is_quantized or v.is_meta]
    if not_dense:
        raise ModelError(
            f"{path}: {shortened(not_dense, 5)} sparse, quantised or without values; save dense tensors."
        )
    return state


def match_names(state: State, expected: Collection[str]) -> Renamed:
    """Rename the tensors of a file to those of a network, as far as one common prefix allows.

    DataParallel, torch.compile, AveragedModel and modules around a network put a prefix before its names.

    Args:
        state: The tensors of the file.
        expected: The network's names.

    Returns:
        The names that fit best; the state as it is where no prefix makes more of them fit.
    """
    bare = {_without_wrappers(name): tensor for name, tensor in state.items() if name != _COUNTER}
    dropped = sorted({s for name in state for s in name.split(".")} & _WRAPPERS)
    wrappers = f"without {', '.join(repr(s) for s in dropped)}" if dropped else ""
    tries = [Renamed(state)]
    if len(bare) >= len(state) - 1:
        tries += [Renamed(bare, wrappers)]
        tries += [Renamed(*_stripped(bare, prefix)) for prefix in _prefixes(bare)]
        tries += [Renamed(*_added(bare, prefix)) for prefix in _prefixes(expected)]
    return max(tries, key=lambda renamed: renamed.overlap(expected))


def completed(state: State, own: Mapping[str, Any]) -> State:
    """Add or drop what evaluation does not use: BatchNorm's count of batches, a profiler's of operations.

    Args:
        state: The tensors of the file.
        own: The network's state dict.
    """
    profiled = {n for n in state if n not in own and n.rpartition(".")[2] in _PROFILED}
    counts = {n: t for n, t in own.items() if n not in state and n.rpartition(".")[2] == _BATCH_COUNT}
    return {n: t for n, t in state.items() if n not in profiled} | counts


def fitting_parts(state: State, expected: Collection[str]) -> list[str]:
    """Return the prefixes under which a file holds a network's names, beside other names."""
    prefixes = {name[: end + 1] for name in state for end, c in enumerate(name) if c == "."}
    wanted = set(expected)
    return sorted(p for p in prefixes if {n[len(p) :] for n in state if n.startswith(p)} == wanted)


def _states(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, State]]:
    """Yield the dictionaries of tensors in a checkpoint, and those of networks in it."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict) or len(keys) > _MAX_DEPTH:
        return
    if _is_state(content):
        yield ".".join(keys), dict(dict.items(content))
        return
    for key, value in dict.items(content):
        if isinstance(key, str):
            yield from _states(value, (*keys, key))


def _is_state(content: dict[Any, Any]) -> TypeGuard[dict[str, Tensor]]:
    items = dict.items(content)
    return bool(items) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items)


def _usual(content: Any) -> Any:
    """Return what is under the usual keys, or the content itself."""
    for key in _USUAL[1:]:
        if isinstance(content, dict) and isinstance(dict.get(content, key), dict):
            content = dict.get(content, key)
    return content


def _rank(key: str) -> int:
    return _USUAL.index(key) if key in _USUAL else len(_USUAL)


def _without_wrappers(name: str) -> str:
    return ".".join(segment for segment in name.split(".") if segment not in _WRAPPERS)


def _prefixes(names: Collection[str]) -> list[str]:
    """Return the dotted prefixes that all names share, without the empty one."""
    first = min(names, default="")
    ends = [end + 1 for end, character in enumerate(first) if character == "."]
    return [first[:end] for end in ends if all(name.startswith(first[:end]) for name in names)]


def _stripped(state: State, prefix: str) -> tuple[State, str]:
    return {n.removeprefix(prefix): t for n, t in state.items()}, f"without the prefix {prefix!r}"


def _added(state: State, prefix: str) -> tuple[State, str]:
    return {prefix + n: t for n, t in state.items()}, f"with the prefix {prefix!r}"
