"""Undo weight and spectral normalisation: the network holds the products alone, and computes the same."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# normalised weights as PyTorch registers them; it has no public names of these classes
_PARAMETRIZED = tuple(getattr(parametrizations, name) for name in ("_WeightNorm", "_SpectralNorm"))


def fold_norms_(network: nn.Module) -> tuple[str, ...]:
    """Replace every weight that PyTorch divides by its norm by the product, a parameter of its own.

    A penalty on the factors would not remove anything: the size of one does not matter, and at zero the
    division is 0/0.

    Args:
        network: The network, in evaluation mode, with its trained weights.

    Returns:
        The names of these weights.
    """
    folded = []
    for path, module in list(network.named_modules()):
        for name, remove in _norms(module):
            remove(module, name)
            folded.append(f"{path}.{name}".lstrip("."))
    return tuple(folded)


def _norms(module: nn.Module) -> list[tuple[str, Callable[[nn.Module, str], object]]]:
    """Return the normalised weights of a layer, each with the function that undoes it."""
    found: list[tuple[str, Callable[[nn.Module, str], object]]] = []
    if parametrize.is_parametrized(module):
        lists = module.get_submodule("parametrizations")
        norms = (n for n, steps in lists.named_children() if any(map(_is_norm, steps.children())))
        found += [(name, parametrize.remove_parametrizations) for name in norms]
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 - where the older functions register
        if isinstance(hook, WeightNorm):
            found.append((hook.name, remove_weight_norm))
        elif isinstance(hook, SpectralNorm):
            found.append((hook.name, remove_spectral_norm))
    return found


def _is_norm(step: nn.Module) -> bool:
    return isinstance(step, _PARAMETRIZED)
