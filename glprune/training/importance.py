"""How much the loss depends on each group: the importances that adaptive penalty weights are divided by.

An importance has the unit of a group's root mean square weight: a rise of the loss that is quadratic in the
group's weights enters by its square root, divided by the square root of the number of weights. All measures
use training rows, drawn with the recipe's seed, and the network as the penalised objective does, in
evaluation mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.errors import NonFiniteError
from glprune.model.diagnostics import all_finite, explain_nonfinite
from glprune.pruning.groups import group_sizes, root_mean_squares
from glprune.runtime.process_group import ALONE, ProcessGroup
from glprune.training.objective import CHUNK, Objective

if TYPE_CHECKING:
    from torch import nn

    from glprune.data.splits import Inputs, Split
    from glprune.model.task import Task
    from glprune.pruning.groups import GroupSet
    from glprune.schema.recipe import GroupWeights

MAX_ROWS = 2048
"""Training rows that the loss or its gradients are measured on, at most."""
FISHER_BATCHES = 128
TAYLOR_ROWS = 128
_HINT = "check the scale of columns and target, and data.standardize, or set penalty.weights: adaptive"


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with the loss and the rows that its groups matter to.

    Attributes:
        network: The network, in evaluation mode; measured on a copy.
        task: Its loss.
        split: The training rows.
        seed: Seed of the rows that are drawn.
        process_group: The processes over whose rows losses and gradients are summed.
    """

    network: nn.Module
    task: Task
    split: Split
    seed: int = 0
    process_group: ProcessGroup = ALONE


def group_importances(
    trained: TrainedNetwork, sets: Sequence[GroupSet], measure: GroupWeights
) -> list[Tensor]:
    """Measure the importance of every group.

    Measured importances are multiplied by one number, so that their mean over all groups is that of the root
    mean square weights: lambda keeps its order of magnitude, and groups of different layers stay comparable.

    Args:
        trained: The network, loss and rows.
        sets: Groups that can be removed.
        measure: ``size``: every group has importance 1; ``adaptive``: root mean square weight, see
            ``root_mean_squares``; the others: see the functions of this module.

    Returns:
        One tensor for each set, shape (n_groups,), float64, >= 0.

    Raises:
        NonFiniteError: A loss or gradient is not finite.
    """
    state = trained.network.state_dict()
    sizes = [group_sizes(state, groups).double().clamp(min=1) for groups in sets]
    if measure == "size":
        return [torch.ones_like(size) for size in sizes]
    norms = [root_mean_squares(state, groups) for groups in sets]
    if measure == "adaptive" or not sets:
        return norms
    rises = MEASURES[measure](_Probe.of(trained, sets)).clamp(min=0.0)
    found = (rises / torch.cat(sizes)).sqrt()
    scale = torch.cat(norms).mean() / found.mean() if bool(found.any()) else 1.0
    parts: tuple[Tensor, ...] = torch.split(found * scale, [len(size) for size in sizes])
    return list(parts)


@dataclass(frozen=True)
class _Probe:
    """A copy of a network whose groups are numbered through all sets, and the rows to measure on."""

    objective: Objective
    seed: int
    count: int

    @classmethod
    def of(cls, trained: TrainedNetwork, sets: Sequence[GroupSet]) -> _Probe:
        network = copy.deepcopy(trained.network).eval()
        penalised = [(groups, torch.ones(len(groups.labels))) for groups in sets]
        objective = Objective(
            network,
            trained.task,
            trained.split,
            penalised,
            bound=False,
            process_group=trained.process_group,
        )
        return cls(objective, trained.seed, sum(len(groups.labels) for groups in sets))

    @property
    def rows(self) -> int:
        return min(MAX_ROWS, self.objective.split.rows)

    def batches(self, size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield this process's parts of batches of random rows, about ``MAX_ROWS`` over all processes."""
        generator = torch.Generator().manual_seed(self.seed)
        left = math.ceil(self.rows / size)
        for batch in self.objective.split.batches(size, generator):
            yield batch
            left -= 1
            if not left:
                return

    def gradients(self, size: int) -> Iterator[int]:
        """Leave the gradient of one batch after another in ``.grad``; yield its number of rows."""
        objective, group = self.objective, self.objective.process_group
        for number, (inputs, target) in enumerate(self.batches(size), 1):
            objective.clear()
            value = 0.0
            if len(target):
                loss = objective.batch_loss(inputs, target)
                value = float(loss.detach())
                loss.backward()  # type: ignore[no-untyped-call]
            parameters = list(objective.network.parameters())
            mean = group.average_gradients_(parameters, value, len(target))
            if not math.isfinite(mean) or not all_finite(p.grad for p in parameters):
                location = f"importances of groups, batch {number}"
                error = explain_nonfinite(objective.batch(inputs, target), location, _HINT)
                raise group.first_error(error, location, _HINT)
            yield int(group.all_reduce_scalar(len(target)))

    @torch.no_grad()
    def loss(self, held: Sequence[tuple[Inputs, Tensor]]) -> float:
        """Mean loss over rows of all processes."""
        objective = self.objective
        local = sum(float(objective.batch_loss(x, y)) * len(y) for x, y in held if len(y))
        total = objective.process_group.all_reduce_scalar(local)
        return total / objective.process_group.all_reduce_scalar(sum(len(y) for _, y in held))


def fisher(probe: _Probe) -> Tensor:
    """Rise of the loss to second order, with the empirical Fisher information for the Hessian.

    ``0.5 * sum_i w_i**2 * E[g_i**2]`` over the group's weights: the saliency ``0.5 * h_ii * w_i**2`` of
    Optimal Brain Damage (LeCun, Denker and Solla, 1990, "Optimal brain damage", NeurIPS) with the diagonal
    of the empirical Fisher information, the mean squared gradient of single rows, for that of the Hessian
    (Theis et al., 2018, "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787).
    With many rows, gradients are means over batches of b rows, whose squares are multiplied by b.
    """
    total = torch.zeros(probe.count, dtype=torch.float64)
    blocks, count = probe.objective.blocks, 0
    for rows in probe.gradients(math.ceil(probe.rows / FISHER_BATCHES)):
        products = [v * g for v, g in zip(blocks.values, blocks.gradients, strict=True)]
        total += 0.5 * rows * rows * blocks.dot(products)[: probe.count]
        count += rows
    return total / count


def taylor(probe: _Probe) -> Tensor:
    """Squared first-order change of the loss when a group is set to zero, a mean over batches.

    ``E[(sum_i w_i * g_i)**2]``, the sum over the group's weights and the mean over batches: the first-order
    importance ``(w * g)**2`` of Molchanov et al. (2019), "Importance estimation for neural network pruning",
    CVPR, for a gate on each group. For batches of one row it is the Fisher information of that gate.
    """
    total = torch.zeros(probe.count, dtype=torch.float64)
    blocks, count = probe.objective.blocks, 0
    for rows in probe.gradients(TAYLOR_ROWS):
        total += rows * blocks.dot(blocks.values, blocks.gradients)[: probe.count].double().square()
        count += rows
    return total / count


def ablation(probe: _Probe) -> Tensor:
    """Rise of the loss when a group is set to zero, measured by one pass over the rows for each group."""
    blocks, held = probe.objective.blocks, list(probe.batches(CHUNK))
    whole = probe.loss(held)
    if not math.isfinite(whole):
        raise NonFiniteError(f"importances of groups: the training loss is not finite; {_HINT}.")
    rises = torch.zeros(probe.count, dtype=torch.float64)
    kept = [v.clone() for v in blocks.values]
    for group in range(probe.count):
        factors = torch.ones(blocks.count)
        factors[group] = 0.0
        blocks.scale_(factors)
        rises[group] = probe.loss(held) - whole
        torch._foreach_copy_(blocks.values, kept)
    finite = rises.isfinite()
    return rises.where(finite, rises.where(finite, 0.0).max())  # without such a group nothing works


MEASURES: Mapping[str, Callable[[_Probe], Tensor]] = {
    "fisher": fisher,
    "taylor": taylor,
    "ablation": ablation,
}
