"""Count the multiply-accumulates and parameters of a network."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glprune.model.standardize import StandardizedNetwork
from glprune.schema.plan import counts_as_parameter

if TYPE_CHECKING:
    from glprune.data.splits import Inputs


def macs(network: nn.Module, inputs: Inputs) -> int:
    """Count the multiply-accumulates of one row: matrix products and convolutions, half their FLOPs.

    Args:
        network: The network, in evaluation mode.
        inputs: At least one row of each input.
    """
    # the counter misses fused kernels of recurrent and transformer layers; without them it sees every product
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about hardware that this build of PyTorch does not know
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(_without_fast_path())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        counter = stack.enter_context(FlopCounterMode(display=False))
        network(*(x[:1] for x in inputs))
    return int(counter.get_total_flops()) // 2


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """Run transformer layers operation by operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def parameters(network: nn.Module) -> int:
    """Count the numbers of the weights, tied ones once: parameters and constant buffers, no statistics."""
    tensors = network.state_dict(keep_vars=True)
    standardize = isinstance(network, StandardizedNetwork)
    counted = {
        id(tensor): tensor.numel()
        for name, tensor in tensors.items()
        if counts_as_parameter(name, tensor.ndim, tensor.is_floating_point(), standardize)
    }
    return sum(counted.values())
