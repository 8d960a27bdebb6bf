"""Replace weights that are computed from others by the weights they are, in networks and in state dicts.

``torch.nn.utils.prune``, ``weight_norm`` and ``spectral_norm`` store other tensors in the place of a weight.
Columns can only be cut, and become zero, in the weight itself: one divided by its own norm is 0/0 at zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from glprune.model.weights.state_dict import State

_GROUP = ".parametrizations."


def fold_(network: nn.Module) -> list[str]:
    """Replace masked and normalised weights of a network by their values, in place.

    Args:
        network: In evaluation mode: a spectral norm is estimated anew in training mode.

    Returns:
        The names of the weights.
    """
    return [name for prefix, module in list(network.named_modules()) for name in _fold_module(prefix, module)]


def fold_state(state: State) -> tuple[State, list[str]]:
    """Compute masked and normalised weights of a state dict from the tensors that stand for them.

    Returns:
        The state dict with the weights, and their names. Others are left: what they stand for is not known
        from the tensors alone.
    """
    folded, names = dict(state), []
    for weight, parts in [*_masked(state), *_normalised(state), *_spectral(state)]:
        if weight not in state:
            folded[weight] = _spectral_weight(state, *parts) if len(parts) == 3 else _weight(state, *parts)
            for part in parts:
                del folded[part]
            names.append(weight)
    return folded, names


def parametrized(names: list[str]) -> list[str]:
    """Return the weights that names of tensors stand for: of a parametrization, a mask or a norm."""
    known = set(names)
    found = [a + "." + b.split(".")[0] for a, group, b in (n.rpartition(_GROUP) for n in names) if group]
    found += [n.removesuffix("_orig") for n in names if n.endswith("_orig")]
    found += [n.removesuffix("_g") for n in names if n.endswith("_g") and n[:-1] + "v" in known]
    return list(dict.fromkeys(name.lstrip(".") for name in found))


def _fold_module(prefix: str, module: nn.Module) -> Iterator[str]:
    """Fold the weights of one module; yield their names."""
    stem = f"{prefix}." if prefix else ""
    for hook in list(module._forward_pre_hooks.values()):  # noqa: SLF001 - where these utilities keep them
        if isinstance(hook, prune.BasePruningMethod):
            yield stem + hook._tensor_name  # noqa: SLF001
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]  # noqa: SLF001
        elif isinstance(hook, WeightNorm):
            yield stem + hook.name
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            yield stem + hook.name
            remove_spectral_norm(module, hook.name)
            _forget_spectral_norm(module)
    if parametrize.is_parametrized(module):
        for name, steps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
            if all(isinstance(step, _WeightNorm | _SpectralNorm) for step in steps):
                yield stem + name
                parametrize.remove_parametrizations(module, name)


def _forget_spectral_norm(module: nn.Module) -> None:
    """Remove what ``remove_spectral_norm`` leaves: a hook that demands the old tensors of any state dict."""
    hooks = module._load_state_dict_pre_hooks  # noqa: SLF001 - as above
    for number, hook in list(hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks[number]


def _masked(state: State) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the weights of ``torch.nn.utils.prune`` with their values and masks."""
    for name in state:
        mask = name.removesuffix("_orig") + "_mask"
        if name.endswith("_orig") and mask in state and state[mask].shape == state[name].shape:
            yield name.removesuffix("_orig"), (name, mask)


def _normalised(state: State) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the weights of ``weight_norm`` with their norms and directions, in its old and its new form."""
    for name in state:
        before, group, after = name.rpartition(_GROUP)
        if group and after.endswith(".original0"):
            stem = name.removesuffix("0")
            weight, parts = f"{before}.{after.removesuffix('.original0')}", (name, f"{stem}1")
            family = sum(n.startswith(stem.removesuffix("original")) for n in state)
        else:
            weight, parts, family = name.removesuffix("_g"), (name, name.removesuffix("_g") + "_v"), 2
        if parts[1] != name and parts[1] in state and family == 2 and _norm_axis(state, *parts) is not None:
            yield weight, parts


def _spectral(state: State) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Yield the weights of ``spectral_norm`` with their values and singular vectors, in both of its forms."""
    for name in state:
        before, group, after = name.rpartition(_GROUP)
        if group and after.endswith(".original"):
            stem = name.removesuffix("original")
            weight, parts = (
                f"{before}.{after.removesuffix('.original')}",
                (name, f"{stem}0._u", f"{stem}0._v"),
            )
            family = sum(n.startswith(stem) for n in state)
        else:
            weight, family = name.removesuffix("_orig"), 3
            parts = name, f"{weight}_u", f"{weight}_v"
        if (
            weight != name
            and family == 3
            and all(p in state for p in parts)
            and _spectral_axes(state, *parts)
        ):
            yield weight, parts


def _spectral_axes(state: State, values: str, left: str, right: str) -> list[int]:
    """Return the axes that singular vectors may belong to: the first, or the second if transposed."""
    w, sizes = state[values], (state[left].numel(), state[right].numel())
    return [a for a in range(min(2, w.ndim)) if sizes[0] and (w.shape[a], w.numel() // sizes[0]) == sizes]


def _spectral_weight(state: State, values: str, left: str, right: str) -> Tensor:
    """Divide values by their largest singular value, as ``spectral_norm`` does in evaluation mode.

    Where two axes fit, the one for which the vectors give more is theirs: they approximate the largest.
    """
    w, u, v = (state[name].float() for name in (values, left, right))
    axes = _spectral_axes(state, values, left, right)
    return w / torch.stack([u @ w.movedim(axis, 0).flatten(1) @ v for axis in axes]).max()


def _norm_axis(state: State, norm: str, direction: str) -> int | None:
    """Return the axis that norms of directions belong to, -1 for one norm of all; None if they are none."""
    g, v = state[norm], state[direction]
    if g.numel() == 1:
        return -1
    axes = [axis for axis, size in enumerate(g.shape) if size > 1]
    fits = g.ndim == v.ndim and len(axes) == 1 and g.shape[axes[0]] == v.shape[axes[0]]
    return axes[0] if fits else None


def _weight(state: State, first: str, second: str) -> Tensor:
    """Return a weight from its values and mask, or from its norm and direction."""
    if second.endswith("_mask"):
        return state[first] * state[second]
    axis = _norm_axis(state, first, second)
    v, g = state[second].float(), state[first].float()
    rest = [a for a in range(v.ndim) if a != axis]
    norm: Tensor = torch.linalg.vector_norm(v, dim=rest, keepdim=True)
    return v * (g / norm)
