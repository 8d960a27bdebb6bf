"""Follow units through a network: from the weights that produce them to the weights that read them.

The network runs once on an example under a dispatch mode that sees every tensor operation. Each tensor
carries label planes: arrays of its own shape that hold the unit of every element, one plane for each
independent way of dividing it into units (such as features and embedding dimensions). Views and
concatenations move labels as they move values, so slices, reshapes and permutations need no rule
of their own; elementwise operations join the units they pair; a contraction with a weight ends a
unit at the weight's positions, which become its reader, and begins the units of its output.
Operations that mix units are recorded by name. ``glprune.pruning.verification`` checks every plan
numerically.

Positions of weights and input columns are nodes; joined nodes are found as connected components.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from glprune.pruning.labels import tensors_in
from glprune.pruning.tracer import Trace, Tracer
from glprune.pruning.tracing_rules import rule_for

if TYPE_CHECKING:
    from glprune.data.splits import Inputs


def trace(network: nn.Module, inputs: Inputs, axes: Sequence[int | None]) -> Trace:
    """Run a network once and record how its units meet its weights.

    Args:
        network: The network, in evaluation mode; it is not changed.
        inputs: Example inputs, each (batch, ...), batch at least 2.
        axes: The axis of each input that holds its features; None where it has none.
    """
    tracer = Tracer(network, inputs, axes, rule_for)
    with torch.no_grad(), _plain_operations(), tracer.track_layers(), tracer:
        outputs = network(*inputs)
    tracer.finish(tensors_in(outputs))
    return tracer.trace


@contextlib.contextmanager
def _plain_operations() -> Iterator[None]:
    """Run attention as matrix products and softmax instead of fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
