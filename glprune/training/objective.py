"""The penalised training objective of a network: values, gradients, optimality.

``F(w) = mean loss over the training split + penalty(w; lam)``, with a penalty of
``glprune.training.penalties``. The objective is deterministic: the network runs in evaluation mode, so
dropout is off and BatchNorm statistics are fixed. With batch statistics a layer before BatchNorm could shrink
while the loss stays the same, and the penalty would have no effect.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.errors import GlpruneError, ModelError
from glprune.model.diagnostics import Batch, all_finite, explain_nonfinite
from glprune.model.precision import Precision, forward
from glprune.runtime.process_group import ALONE, ProcessGroup
from glprune.schema.recipe import PenaltySpec
from glprune.training.blocks import ParameterGroup, ParameterGroups
from glprune.training.feature_groups import members
from glprune.training.penalties import (
    GroupLasso,
    GroupMCP,
    MakePenalty,
    Penalty,
    SparseGroupLasso,
    mcp_thresholds,
)
from glprune.training.proximal import BoundedPenalty, ProximalProblem
from glprune.training.structured_penalties import LatentGroupLasso, TreeGroupLasso

if TYPE_CHECKING:
    from glprune.data.splits import Inputs, Split
    from glprune.model.task import Task
    from glprune.pruning.groups import GroupSet

CHUNK = 1024  # rows; with more, the activations of convolutions no longer fit the cache
_SCALE_HINT = "check the scale of columns and target, and data.standardize"


@dataclass(eq=False)
class Objective:
    """The loss of a network over a split plus a penalty on groups.

    Attributes:
        network: The network, trained in place.
        task: Its loss.
        split: The training rows.
        penalised: Group sets and the penalty weights of their groups, shape (n_groups,) each.
        bound: Keep weights outside every penalised group inside the ball of their present norm.
            Otherwise the next layer grows while a penalised one shrinks, and the loss stays the same.
        spec: Kind of the penalty and its constants.
        make_penalty: Makes a plugin's penalty from weights and blocks; None for the one of ``spec``.
        process_group: The processes over whose rows losses and gradients are summed.
        sets: The penalised group sets.
        blocks: The parameters split into groups: those of ``sets`` in order, then the other matrices.
        free: Parameters in no group (biases).
        regulariser: Penalty and bounds of the groups.
    """

    network: nn.Module
    task: Task
    split: Split
    penalised: InitVar[Sequence[tuple[GroupSet, Tensor]]]
    bound: InitVar[bool] = True
    spec: InitVar[PenaltySpec] = PenaltySpec()  # noqa: RUF009 - frozen
    make_penalty: InitVar[MakePenalty | None] = None
    process_group: ProcessGroup = ALONE
    sets: list[GroupSet] = field(init=False)
    blocks: ParameterGroups = field(init=False)
    free: list[nn.Parameter] = field(init=False)
    regulariser: BoundedPenalty = field(init=False)

    def __post_init__(
        self,
        penalised: Sequence[tuple[GroupSet, Tensor]],
        bound: bool,
        spec: PenaltySpec,
        make_penalty: MakePenalty | None,
    ) -> None:
        self.sets = [groups for groups, _ in penalised]
        self.blocks, self.free, weights = _partition(self.network, penalised)
        bounded = bound and not bool((weights > 0).all())
        radius = torch.where(weights > 0, torch.inf, self.blocks.norms()) if bounded else None
        penalty = make_penalty(weights, self.blocks) if make_penalty else self._penalty_of(spec, weights)
        self.regulariser = BoundedPenalty(penalty, radius)

    def at(self, lam: float) -> ProximalProblem:
        """The parameters and the penalty at one lambda, for a proximal optimizer."""
        return ProximalProblem(self.blocks, self.free, self.regulariser, lam)

    def first_id(self, groups: GroupSet) -> int:
        """Number of the first group of a penalised set."""
        before = itertools.takewhile(lambda other: other is not groups, self.sets)
        return sum(len(other.labels) for other in before)

    def penalised_ids(self, groups: GroupSet) -> Tensor:
        """Numbers of the groups of a penalised set whose penalty weight is above 0, int64."""
        start = self.first_id(groups)
        ids = torch.arange(start, start + len(groups.labels))
        return ids[self.regulariser.weights[ids] > 0]

    def _penalty_of(self, spec: PenaltySpec, weights: Tensor) -> Penalty:
        if spec.kind == "sparse_group_lasso":
            return SparseGroupLasso(weights, spec.l1_share, self.blocks.sizes)
        if spec.kind == "group_mcp":
            sets = [len(s.labels) for s in self.sets]
            return GroupMCP(weights, mcp_thresholds(self.blocks.norms(), sets, spec.mcp_threshold))
        if spec.kind == "tree_group_lasso":
            return TreeGroupLasso.of(weights, self.blocks.sizes, self._nodes(spec))
        if spec.kind == "latent_group_lasso":
            return LatentGroupLasso.of(weights, self.blocks.sizes, self._nodes(spec))
        return GroupLasso(weights)

    def _nodes(self, spec: PenaltySpec) -> list[Tensor]:
        """Numbers of the features' groups in each of ``penalty.groups``."""
        labels = [(label, s.kind) for s in self.sets for label in s.labels]
        numbers = {label: number for number, (label, kind) in enumerate(labels) if kind == "input"}
        found = members(spec.groups, list(numbers)).values()
        return [torch.tensor([numbers[f] for f in features], dtype=torch.int64) for features in found]

    def batch_loss(self, inputs: Inputs, target: Tensor, precision: Precision = "float32") -> Tensor:
        """Mean loss of one batch, a scalar with gradients."""
        return self.task.loss(forward(self.network, inputs, self.task.view, precision), target)

    def gradient(self, location: str = "", hint: str = _SCALE_HINT) -> float:
        """Compute the mean loss over the split; leave its gradient in ``.grad``.

        Args:
            location: Lambda or stage, for the message.
            hint: What the user can do, for the message.

        Raises:
            NonFiniteError: Loss or gradient is not finite; batch and layer are named.
        """
        self.clear()
        location = f"{location}, all rows"
        total, error = self._local_gradient(location, hint)
        total = self.process_group.sum_gradients_(self.network.parameters(), math.nan if error else total)
        if error is not None or not math.isfinite(total):
            raise self.process_group.first_error(error, location, hint)
        return total

    def _local_gradient(self, location: str, hint: str) -> tuple[float, GlpruneError | None]:
        """Compute this process's part; also return the error of the first batch that is not finite."""
        total, rows = 0.0, 0
        for number, (inputs, target) in enumerate(self.split.batches(CHUNK, None), 1):
            if not len(target):
                continue
            loss = self.batch_loss(inputs, target) * (len(target) / self.split.rows)
            value = float(loss.detach())
            if math.isfinite(value):
                loss.backward()  # type: ignore[no-untyped-call]
            total += value
            if not math.isfinite(value) or not all_finite(p.grad for p in self.network.parameters()):
                batch = self.batch(inputs, target, rows + 1)
                return total, explain_nonfinite(batch, f"{location}, batch {number}", hint)
            rows += len(target)
        return total, None

    def batch(self, inputs: Inputs, target: Tensor, first_row: int | None = None) -> Batch:
        """A batch as ``glprune.model.diagnostics.explain_nonfinite`` takes it."""
        loss = functools.partial(self.batch_loss, inputs, target)
        return Batch(self.network, inputs, target, loss, first_row)

    @torch.no_grad()
    def loss(self) -> float:
        """Compute the mean loss over the split."""
        batches = self.split.batches(CHUNK, None)
        local = sum(float(self.batch_loss(x, y)) * len(y) for x, y in batches if len(y))
        return self.process_group.all_reduce_scalar(local) / self.split.rows

    def clear(self) -> None:
        """Remove all gradients."""
        self.network.zero_grad(set_to_none=True)

    def penalty(self, lam: float) -> float:
        """The penalty at the present weights."""
        return self.regulariser.penalty.value(self.blocks, lam)

    def optimality(self, lam: float) -> tuple[float, float, float]:
        """Compute the mean loss and the KKT residuals of zero and of non-zero groups.

        Returns:
            ``(loss, residual over zero groups, residual over non-zero groups)``, the residuals
            relative to ``lam * weight_g``; see ``glprune.training.penalties.Penalty.residuals``.

        Raises:
            NonFiniteError: See ``gradient``.
        """
        loss = self.gradient(f"lambda {lam:.3g}")
        zero, active = self.regulariser.penalty.residuals(self.blocks, lam)
        self.clear()
        return loss, zero, active


def lambda_max(objective: Objective) -> float:
    """Compute the lambda at which zero becomes a solution for the input groups.

    All penalised groups of one kind are set to zero (inputs if they are penalised, else each layer in turn),
    and the largest lambda at which one of them leaves zero is taken: above it the zero point satisfies the
    KKT conditions. The weights are restored.

    If no gradient reaches a zero group (the units that read it are dead at zero), the result is the lambda at
    which zero costs as much as the trained weights do, or the largest at which a gradient at the trained
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
            "look for layers of zeros or dead units in the trained network, or a detach in its forward."
        )
    return found


def _zero_point_lambda(objective: Objective, sets: Sequence[GroupSet]) -> float:
    with _zeroed(objective, sets) as ids:
        objective.gradient("with all penalised groups at zero")
        lambdas = objective.regulariser.penalty.zero_lambda(objective.blocks)[ids]
        objective.clear()
    return float(lambdas.max())


def _lambda_of_weights(objective: Objective, sets: Sequence[GroupSet]) -> float:
    """Compute the two alternatives to a lambda_max that is zero; see ``lambda_max``."""
    with _zeroed(objective, sets) as ids:
        zero_loss, zero_penalty = objective.loss(), objective.penalty(1.0)
    loss, penalty = objective.gradient("at the trained weights"), objective.penalty(1.0)
    largest = float(objective.regulariser.penalty.zero_lambda(objective.blocks)[ids].max())
    objective.clear()
    return max(largest, (zero_loss - loss) / (penalty - zero_penalty) if penalty > zero_penalty else 0.0)


@contextlib.contextmanager
def _zeroed(objective: Objective, sets: Sequence[GroupSet]) -> Iterator[Tensor]:
    """Set the penalised groups of some sets to zero inside the block; yield their numbers."""
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
    """Split a network's parameters into numbered groups and free ones (biases).

    Groups of the penalised sets come first, in order; then one group for each other weight matrix, and one
    for the positions of a penalised matrix that belong to no group.

    Returns:
        The groups, the free parameters and the penalty weight of each group, shape (n_groups,).
    """
    parameters = dict(network.named_parameters())
    owners: dict[str, tuple[int, Tensor]] = {}
    weights: list[Tensor] = []
    count = 0
    for groups, set_weights in penalised:
        for slot in groups.units.readers:
            owner = groups.owner(slot)
            dim, known = owners.get(slot.tensor, (slot.dim, torch.full_like(owner, -1)))
            owners[slot.tensor] = dim, torch.where(owner >= 0, owner + count, known)
        weights.append(set_weights)
        count += len(groups.labels)
    blocks, free = [], []
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        if name not in owners and not _is_multiplied(name, parameter):
            free.append(parameter)
            continue
        dim, of = owners.get(name, (0, torch.full((parameter.shape[0],), -1)))
        if bool((of < 0).any()):
            of = torch.where(of < 0, count, of)
            weights.append(torch.zeros(1))
            count += 1
        blocks.append(ParameterGroup(parameter, dim, of))
    return ParameterGroups(blocks, count), free, torch.cat([w.float() for w in weights])


def _is_multiplied(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix or the scale of a normalisation layer; a bias is only added."""
    return parameter.ndim > 1 or (parameter.ndim == 1 and name.rpartition(".")[2] == "weight")
