"""Mixed precision: forward passes in bfloat16 while parameters, gradients and losses stay in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bf16"]


def forward(
    network: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    view: Callable[[Any], Tensor],
    precision: Precision,
) -> Tensor:
    """Compute the part of a network's outputs that a loss takes, in a given precision.

    Under ``bf16`` autocast multiplies matrices in bfloat16; parameters and their gradients stay in float32,
    and the output is converted to float32 before the loss.

    Args:
        network: The network.
        inputs: A batch.
        view: Takes the tensor of the loss out of the outputs.
        precision: ``float32`` computes in the parameters' own type.

    References:
        Kalamkar et al. (2019), "A study of BFLOAT16 for deep learning training", arXiv:1905.12322.
    """
    if precision == "float32":
        return view(network(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        output = view(network(*inputs))
    return output.float() if output.dtype == torch.bfloat16 else output
