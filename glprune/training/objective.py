"""The penalised training objective of a network: values, gradients, optimality.

The objective is deterministic: the network runs in evaluation mode, so dropout is off and
BatchNorm statistics are fixed, and ``F(w) = mean loss over the training split +
penalty(w; lam)``, the penalty being one of :mod:`glprune.training.penalties`. With batch statistics a layer
before BatchNorm could shrink at no loss and the penalty would mean nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.errors import GlpruneError, ModelError
from glprune.model.diagnostics import Batch, all_finite, explain_nonfinite
from glprune.model.precision import Precision, forward
from glprune.runtime import process_group
from glprune.schema.recipe import PenaltySpec
from glprune.training.blocks import ParameterGroup, ParameterGroups
from glprune.training.penalties import GroupLasso, GroupMCP, Penalty, SparseGroupLasso, mcp_thresholds
from glprune.training.proximal import BoundedPenalty

if TYPE_CHECKING:
    from glprune.data.splits import Inputs, Split
    from glprune.model.task import Task
    from glprune.pruning.groups import GroupSet

CHUNK = 1024  # rows; of more, what convolutions hold between layers leaves the cache
SCALES = "check the scale of columns and target, and data.standardize"


class Objective:
    """Loss of a network over a split plus a penalty on groups.

    Args:
        network: The network, trained in place.
        task: Its loss.
        split: The training rows.
        penalised: Group sets and the penalty weights of their groups, shape (n_groups,) each.
        bound: Hold weights outside every penalised group inside the ball of their norm now;
            otherwise the next layer grows while a penalised one shrinks, at no loss.
        spec: Kind of the penalty and its constants.
        make: Makes the penalty from weights and blocks in the place of ``spec``: a plugin's.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        split: Split,
        penalised: Sequence[tuple[GroupSet, Tensor]],
        bound: bool = True,
        spec: PenaltySpec = PenaltySpec(),  # noqa: B008 - frozen
        make: Callable[[Tensor, ParameterGroups], Penalty] | None = None,
    ) -> None:
        self.network, self.task, self.split = network, task, split
        self.sets = [groups for groups, _ in penalised]
        self.blocks, self.free, weights = _partition(network, penalised)
        bounded = bound and not bool((weights > 0).all())
        radius = torch.where(weights > 0, torch.inf, self.blocks.norms()) if bounded else None
        made = make(weights, self.blocks) if make is not None else self._penalty(weights, spec)
        self.regulariser = BoundedPenalty(made, radius)

    def penalised_ids(self, groups: GroupSet) -> Tensor:
        """Numbers of a penalised set's groups that have a weight, int64; 0 is no penalty."""
        start = 0
        for other in self.sets:
            if other is groups:
                break
            start += len(other.labels)
        ids = torch.arange(start, start + len(groups.labels))
        return ids[self.regulariser.weights[ids] > 0]

    def _penalty(self, weights: Tensor, spec: PenaltySpec) -> Penalty:
        if spec.kind == "sparse_group_lasso":
            return SparseGroupLasso(weights, spec.l1_share, self.blocks.sizes)
        if spec.kind == "group_mcp":
            sets = [len(s.labels) for s in self.sets]
            return GroupMCP(weights, mcp_thresholds(self.blocks.norms(), sets, spec.knot))
        return GroupLasso(weights)

    def batch_loss(self, inputs: Inputs, target: Tensor, precision: Precision = "float32") -> Tensor:
        """Mean loss of one batch, a scalar with gradients."""
        return self.task.loss(forward(self.network, inputs, self.task.view, precision), target)

    def gradient(self, where: str = "", mend: str = SCALES) -> float:
        """Mean loss over the split; leaves its gradient in ``.grad``.

        Args:
            where: Where the training stands, for the message.
            mend: What the user can do, for the message.

        Raises:
            NonFiniteError: Loss or gradient is not finite; batch and layer are named.
        """
        self.clear()
        total, rows = 0.0, 0
        own: GlpruneError | None = None
        for number, (inputs, target) in enumerate(self.split.batches(CHUNK, None), 1):
            if not len(target):
                continue
            loss = self.batch_loss(inputs, target) * (len(target) / self.split.rows)
            value = float(loss.detach())
            if math.isfinite(value):
                loss.backward()
            total += value
            rows += len(target)
            if not math.isfinite(value) or not all_finite(p.grad for p in self.network.parameters()):
                batch = self.batch(inputs, target, rows - len(target) + 1)
                own = explain_nonfinite(batch, f"{where}, all rows, batch {number}", mend)
                break
        total = process_group.sum_gradients_(self.network.parameters(), math.nan if own else total)
        if own is not None or not math.isfinite(total):
            raise process_group.first_error(own, f"{where}, all rows", mend)
        return total

    def batch(self, inputs: Inputs, target: Tensor, first_row: int | None = None) -> Batch:
        """A batch as :func:`glprune.model.diagnostics.fault` takes it."""
        loss = functools.partial(self.batch_loss, inputs, target)
        return Batch(self.network, inputs, target, loss, first_row)

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss over the split."""
        batches = self.split.batches(CHUNK, None)
        own = sum(float(self.batch_loss(x, y)) * len(y) for x, y in batches if len(y))
        return process_group.all_reduce_scalar(own) / self.split.rows

    def clear(self) -> None:
        """Drop all gradients."""
        self.network.zero_grad(set_to_none=True)

    def penalty(self, lam: float) -> float:
        """The penalty at the present weights."""
        return self.regulariser.penalty.value(self.blocks, lam)

    def optimality(self, lam: float, mend: str = SCALES) -> tuple[float, float, float]:
        """Mean loss and the KKT residuals of zero and of non-zero groups at the present weights.

        Returns:
            ``(loss, residual over zero groups, residual over non-zero groups)``, the residuals
            relative to ``lam * weight_g``; see :meth:`glprune.training.penalties.Penalty.residuals`.

        Raises:
            NonFiniteError: See :meth:`gradient`.
        """
        loss = self.gradient(f"lambda {lam:.3g}", mend)
        zero, active = self.regulariser.penalty.residuals(self.blocks, lam)
        self.clear()
        return loss, zero, active


def lambda_max(objective: Objective) -> float:
    """The lambda at which zero becomes a solution for the input groups, from the data.

    All penalised groups of one kind are set to zero on the spot (inputs where they are penalised, else
    each layer in turn) and the largest lambda at which one of them leaves zero is taken: above it
    the zero point satisfies the KKT conditions. The weights are restored.

    Where no gradient reaches a zero group (units behind it that are dead at zero), the lambda at which
    zero costs as much as the trained weights do is taken, or the largest at which a gradient at the trained
    weights could hold a group against the penalty.

    Returns:
        That lambda, above zero.

    Raises:
        ModelError: No gradient reaches any group, at zero or at the trained weights.
    """
    inputs = [s for s in objective.sets if s.kind == "input"]
    trials = [inputs] if inputs else [[s] for s in objective.sets]
    found = max(_zero_point_lambda(objective, trial) for trial in trials)
    if found == 0.0:
        found = max(_lambda_of_weights(objective, trial) for trial in trials)
    if found == 0.0:
        raise ModelError(
            "No gradient reaches a group under the penalty, so the network's output does not depend on them; "
            "look for layers of zeros or dead units in the trained network."
        )
    return found


def _zero_point_lambda(objective: Objective, sets: Sequence[GroupSet]) -> float:
    with _zeroed(objective, sets) as ids:
        objective.gradient("with all penalised groups at zero")
        found = objective.regulariser.penalty.zero_lambda(objective.blocks)[ids]
        objective.clear()
    return float(found.max())


def _lambda_of_weights(objective: Objective, sets: Sequence[GroupSet]) -> float:
    """Two stand-ins for a lambda_max that is zero; see :func:`lambda_max`."""
    with _zeroed(objective, sets) as ids:
        without, spared = objective.loss(), objective.penalty(1.0)
    loss, whole = objective.gradient("at the trained weights"), objective.penalty(1.0)
    held = float(objective.regulariser.penalty.zero_lambda(objective.blocks)[ids].max())
    objective.clear()
    return max(held, (without - loss) / (whole - spared) if whole > spared else 0.0)


@contextlib.contextmanager
def _zeroed(objective: Objective, sets: Sequence[GroupSet]) -> Iterator[Tensor]:
    """Set the penalised groups of some sets to zero for a while; yields their numbers."""
    kept = [p.detach().clone() for p in objective.blocks.parameters]
    ids = torch.cat([objective.penalised_ids(s) for s in sets])
    factor = torch.ones(objective.blocks.count)
    factor[ids] = 0.0
    objective.blocks.scale_(factor)
    try:
        yield ids
    finally:
        for parameter, old in zip(objective.blocks.parameters, kept, strict=True):
            parameter.data.copy_(old)


def _partition(
    network: nn.Module, penalised: Sequence[tuple[GroupSet, Tensor]]
) -> tuple[ParameterGroups, list[nn.Parameter], Tensor]:
    """Split a network's parameters into numbered groups and the free rest (vectors: biases, scales).

    Groups of the penalised sets come first, in order; then one group for each other weight
    matrix, and one for the positions of a penalised matrix that belong to no group.
    """
    parameters = dict(network.named_parameters())
    owners: dict[str, tuple[int, Tensor]] = {}
    weights: list[Tensor] = []
    count = 0
    for groups, own in penalised:
        for slot in groups.units.readers:
            owner = groups.owner(slot)
            dim, known = owners.get(slot.tensor, (slot.dim, torch.full_like(owner, -1)))
            owners[slot.tensor] = dim, torch.where(owner >= 0, owner + count, known)
        weights.append(own)
        count += len(groups.labels)
    blocks, free = [], []
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        if name not in owners and not _multiplies(name, parameter):
            free.append(parameter)
            continue
        dim, owner = owners.get(name, (0, torch.full((parameter.shape[0],), -1)))
        if bool((owner < 0).any()):
            owner = torch.where(owner < 0, count, owner)
            weights.append(torch.zeros(1))
            count += 1
        blocks.append(ParameterGroup(parameter, dim, owner))
    return ParameterGroups(blocks, count), free, torch.cat([w.float() for w in weights])


def _multiplies(name: str, parameter: nn.Parameter) -> bool:
    """Tell matrices and the scales of normalisation layers from what is only added (biases)."""
    return parameter.ndim > 1 or (parameter.ndim == 1 and name.rpartition(".")[2] == "weight")
