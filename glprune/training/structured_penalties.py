"""Penalties on nested and on overlapping sets of groups: features inside fields inside sources.

A *node* is a set of groups with a norm and a weight of its own. Nodes of a tree are nested or disjoint; other
nodes may overlap. Both penalties see groups through their norms alone, so that the proximal operators map
norms to norms and a removed group is exactly zero.

References:
    Jenatton, Mairal, Obozinski and Bach (2011), "Proximal methods for hierarchical sparse coding", J. Mach.
    Learn. Res. 12, 2297-2334.
    Jacob, Obozinski and Vert (2009), "Group lasso with overlap and graph lasso", ICML.
    Villa, Rosasco, Mosci and Verri (2014), "Proximal methods for the latent group lasso penalty", Comput.
    Optim. Appl. 58, 381-407.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from glprune.training.overlap import latent_scales
from glprune.training.penalties import Penalty, block_soft_threshold

if TYPE_CHECKING:
    from glprune.training.blocks import ParameterGroups

_BISECTIONS = 60


def node_weight(weights: Tensor, sizes: Tensor, node: Tensor) -> float:
    """Return the weight of a node, from the weights of its groups.

    A group's weight is ``strength * sqrt(p_g) / I_g``, with the importance I_g a root mean square over its
    p_g weights; the node's is the same with the root mean square over the weights of all its groups.

    Args:
        weights: Penalty weight of each group, shape (n_groups,).
        sizes: Number of weights of each group, shape (n_groups,).
        node: Numbers of the node's groups, each of a weight above 0.
    """
    sizes, weights = sizes[node].double(), weights[node].double()
    return float(sizes.sum() / (sizes / weights).square().sum().sqrt())


def components(nodes: Sequence[Tensor], count: int) -> Tensor:
    """Number the groups so that those which nodes connect have one number, shape (count,), int64."""
    numbers = torch.arange(count)
    for node in nodes:
        joined = torch.isin(numbers, numbers[node])
        numbers[joined] = numbers[node].min()
    return numbers


def _component_maxima(values: Tensor, component: Tensor) -> Tensor:
    """The largest value in the component of each group, shape (n_groups,)."""
    maxima = np.zeros(len(values), dtype=values.numpy().dtype)
    np.maximum.at(maxima, component.numpy(), values.numpy())
    return torch.from_numpy(maxima)[component]


@dataclass(frozen=True)
class Level:
    """Disjoint nodes of a tree.

    Attributes:
        owner: The node of each group, shape (n_groups,); n_nodes where it is in none.
        weights: Penalty weight of each node, shape (n_nodes,).
    """

    owner: Tensor
    weights: Tensor

    def norms(self, of_groups: Tensor) -> Tensor:
        """Norms of the nodes, and a last number for the groups in none, shape (n_nodes + 1,)."""
        total = torch.zeros(len(self.weights) + 1, dtype=of_groups.dtype)
        return total.index_add_(0, self.owner, of_groups.square()).sqrt_()

    def of_groups(self, of_nodes: Tensor, otherwise: float) -> Tensor:
        """The value of its node for each group, shape (n_groups,)."""
        return torch.cat([of_nodes, of_nodes.new_full((1,), otherwise)])[self.owner]

    def shrink(self, norms: Tensor, threshold: Tensor) -> Tensor:
        """Soft-threshold the nodes; new norms of the groups.

        Args:
            norms: Norms of groups, shape (n_groups,).
            threshold: The threshold of each node, at each of its groups, shape (n_groups,).
        """
        of_nodes = self.norms(norms)[self.owner]
        factors = block_soft_threshold(of_nodes, threshold) / of_nodes.where(of_nodes != 0, 1.0)
        return torch.where(self.owner < len(self.weights), norms * factors, norms)


@dataclass(frozen=True)
class TreeGroupLasso(Penalty):
    """``lam * (sum_g weight_g * ||w_g|| + sum_v weight_v * ||w_v||)`` over groups and over nodes of a tree.

    A node is zero or its groups compete inside it, so that whole fields and sources leave. Its proximal
    operator is exact: block soft-thresholding of the groups, then of the nodes from the leaves to the roots
    (Jenatton et al., 2011). For a zero node the distance of a gradient from the subdifferential
    is the norm of the gradient after the proximal operator of its subtree, by Moreau's decomposition.

    Attributes:
        levels: Nodes by height, those inside others first.
        tree: The tree of each group, see ``Penalty.components``.
    """

    levels: tuple[Level, ...]
    tree: Tensor

    @classmethod
    def of(cls, weights: Tensor, sizes: Tensor, nodes: Sequence[Tensor]) -> TreeGroupLasso:
        """Make the penalty from nested or disjoint nodes, given by their groups; see ``node_weight``."""
        nodes = sorted((_penalised(node, weights) for node in nodes), key=len)
        height = torch.zeros(len(weights), dtype=torch.int64)
        at: dict[int, list[Tensor]] = {}
        for node in (node for node in nodes if len(node)):
            level = int(height[node].max())
            at.setdefault(level, []).append(node)
            height[node] = level + 1
        levels = tuple(_level(at[level], weights, sizes) for level in sorted(at))
        return cls(weights, levels, components([node for node in nodes if len(node)], len(weights)))

    @property
    def components(self) -> Tensor:
        """See ``Penalty.components``."""
        return self.tree

    def value_of_norms(self, norms: Tensor) -> Tensor:
        """Terms of groups and of nodes; see ``Penalty.value_of_norms``."""
        nodes = [level.weights * level.norms(norms)[:-1] for level in self.levels]
        return torch.cat([self.weights * norms, *nodes])

    def shrink(self, norms: Tensor, strength: Tensor) -> Tensor:
        """See ``Penalty.shrink``."""
        shrunk = block_soft_threshold(norms, strength * self.weights)
        for level in self.levels:
            shrunk = level.shrink(shrunk, strength * level.of_groups(level.weights, 0.0))
        return shrunk

    def slopes(self, norms: Tensor) -> Tensor:
        """See ``Penalty.slopes``."""
        total = self.weights / norms.where(norms > 0, 1.0)
        for level in self.levels:
            of_nodes = level.norms(norms)[:-1]
            total = total + level.of_groups(level.weights / of_nodes.where(of_nodes > 0, 1.0), 0.0)
        return total

    def excess(self, gradients: Tensor, norms: Tensor, lam: float) -> Tensor:
        """See ``Penalty.excess``."""
        left = block_soft_threshold(gradients.where(norms == 0, 0.0), lam * self.weights)
        for level in self.levels:
            zero = level.norms(norms)[:-1] == 0
            left = level.shrink(left, lam * level.of_groups(level.weights * zero, 0.0))
        return left

    def zero_lambda(self, blocks: ParameterGroups) -> Tensor:
        """The lambda from which on a whole tree is zero, for each of its groups, by bisection."""
        gradients = blocks.dot([g.double() for g in blocks.gradients]).sqrt()
        high = _component_maxima(_ratio(gradients, self.weights, 0.0), self.tree)
        low = torch.zeros_like(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = _component_maxima(self.shrink(gradients, middle), self.tree) > 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high.where(self.weights > 0, torch.inf)


@dataclass(frozen=True)
class LatentGroupLasso(Penalty):
    """``lam * min sum_v weight_v * ||u_v||`` over vectors u_v on the nodes whose sum is w.

    Groups that remain are a union of nodes (Jacob et al., 2009): a group in several nodes stays if one of
    them stays. A group in no node has a term of its own, as in the group LASSO. The minimum is that of a
    convex function of one scale for each node, see ``glprune.training.overlap``.

    Attributes:
        covered: Numbers of the groups in a node, shape (n_covered,).
        member: Whether a covered group is in a node, 0.0 or 1.0, float64, shape (n_nodes, n_covered).
        node_weights: Penalty weight of each node, float64, shape (n_nodes,).
        union: The connected nodes of each group, see ``Penalty.components``.
    """

    covered: Tensor
    member: Tensor
    node_weights: Tensor
    union: Tensor

    @classmethod
    def of(cls, weights: Tensor, sizes: Tensor, nodes: Sequence[Tensor]) -> LatentGroupLasso:
        """Make the penalty from nodes, given by their groups; see ``node_weight``."""
        nodes = [node for node in (_penalised(node, weights) for node in nodes) if len(node)]
        covered = torch.cat([torch.zeros(0, dtype=torch.int64), *nodes])
        covered = torch.from_numpy(np.unique(covered.numpy()))
        member = torch.stack([torch.isin(covered, node).double() for node in nodes]) if nodes else None
        own = torch.tensor([node_weight(weights, sizes, node) for node in nodes], dtype=torch.float64)
        return cls(
            weights,
            covered,
            torch.zeros(0, 0, dtype=torch.float64) if member is None else member,
            own,
            components(nodes, len(weights)),
        )

    @property
    def components(self) -> Tensor:
        """See ``Penalty.components``."""
        return self.union

    def value_of_norms(self, norms: Tensor) -> Tensor:
        """See ``Penalty.value_of_norms``."""
        inside = norms[self.covered].double()
        scales = latent_scales(inside, torch.zeros_like(inside), self.member, self.node_weights)
        total = scales @ self.member
        sums = 0.5 * inside.square() / total.where(inside > 0, 1.0)
        nodes = 0.5 * self.node_weights.square() * scales
        alone = (self.weights * norms).index_fill(0, self.covered, 0.0)
        return torch.cat([alone.double(), sums, nodes])

    def shrink(self, norms: Tensor, strength: Tensor) -> Tensor:
        """See ``Penalty.shrink``; NaN for all groups in nodes where one of their norms is not finite."""
        shrunk = block_soft_threshold(norms, strength * self.weights)
        inside = self._shrink_inside(norms[self.covered].double(), strength[self.covered].double())
        shrunk[self.covered] = inside.to(shrunk.dtype)
        return shrunk

    def slopes(self, norms: Tensor) -> Tensor:
        """See ``Penalty.slopes``."""
        inside = norms[self.covered].double()
        total = latent_scales(inside, torch.zeros_like(inside), self.member, self.node_weights) @ self.member
        slopes = self.weights / norms.where(norms > 0, 1.0)
        slopes[self.covered] = (1 / total.where(inside > 0, 1.0)).to(slopes.dtype)
        return slopes

    def excess(self, gradients: Tensor, norms: Tensor, lam: float) -> Tensor:
        """See ``Penalty.excess``.

        A subgradient is fixed on the nodes that are not zero. On a node that is zero, the groups it shares
        with them take their part of the largest norm that a subgradient may have.
        """
        left = (gradients - lam * self.weights).clamp(min=0.0)
        if lam == 0:
            return left
        inside = norms[self.covered].double()
        scales = latent_scales(inside, torch.zeros_like(inside), self.member, self.node_weights)
        total = scales @ self.member
        taken = self.member @ (inside / total.where(inside > 0, 1.0)).square()
        squares = self.node_weights.square()
        free = (squares - taken).clamp(min=0.0).sqrt() / self.node_weights
        free = free.where(scales == 0, 1.0).clamp(min=1e-6)  # of a node that is not zero nothing is left
        pulled = gradients[self.covered].double()
        alone = pulled.where(total == 0, 0.0)
        strength = torch.full_like(alone, lam)
        rest = latent_scales(alone, strength, self.member, free * self.node_weights) @ self.member
        found = torch.where(total == 0, alone * rest / (lam + rest), pulled)
        left[self.covered] = found.to(left.dtype)
        return left

    def zero_lambda(self, blocks: ParameterGroups) -> Tensor:
        """The lambda from which on all connected nodes are zero, for each of their groups."""
        squares = blocks.dot([g.double() for g in blocks.gradients])
        largest = _ratio(squares.sqrt(), self.weights, torch.inf)
        of_nodes = (self.member @ squares[self.covered]).sqrt() / self.node_weights
        largest[self.covered] = (self.member * of_nodes[:, None]).amax(0) if len(of_nodes) else 0.0
        return _component_maxima(largest, self.union)

    def _shrink_inside(self, norms: Tensor, strength: Tensor) -> Tensor:
        if not bool(norms.isfinite().all()):
            return torch.full_like(norms, torch.nan)
        scales = latent_scales(norms, strength, self.member, self.node_weights) @ self.member
        return norms * torch.where(strength > 0, scales / (strength + scales).where(strength > 0, 1.0), 1.0)


def _ratio(values: Tensor, weights: Tensor, otherwise: float) -> Tensor:
    """Values over weights; another number for groups that are not penalised."""
    return torch.where(weights > 0, values / weights.where(weights > 0, 1.0), otherwise)


def _penalised(node: Tensor, weights: Tensor) -> Tensor:
    """The groups of a node that are penalised: the others stay whatever their node does."""
    return node[weights[node] > 0]


def _level(nodes: Sequence[Tensor], weights: Tensor, sizes: Tensor) -> Level:
    owner = torch.full((len(weights),), len(nodes))
    for number, node in enumerate(nodes):
        owner[node] = number
    found = torch.tensor([node_weight(weights, sizes, node) for node in nodes], dtype=weights.dtype)
    return Level(owner, found)
