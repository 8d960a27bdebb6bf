"""From a trace to drafts: joined positions are a unit, the units of one layer a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from glprune.pruning.units import Role, TensorAxis

if TYPE_CHECKING:
    from glprune.pruning.tracer import Axis, Trace, WeightUse


@dataclass(frozen=True)
class Candidate:
    """A unit set as traced, before any proof.

    Attributes:
        name: Name of the input or of the layer.
        source: The input it belongs to, or None for hidden units.
        count: Number of units.
        slots: Places of the units; ``reader`` where a contraction reads them.
        scales: The same with elementwise factors as readers, for units no contraction reads first.
        refused: Why the units cannot be cut.
        mixed: The operation that makes a cut inexact.
        family: The module that holds these units under one width with others, or None.
    """

    name: str
    source: int | None
    count: int
    slots: tuple[TensorAxis, ...]
    scales: tuple[TensorAxis, ...]
    refused: str | None
    mixed: str | None
    family: str | None = None


def find_candidates(seen: Trace, names: Sequence[str]) -> list[Candidate]:
    """Draft the unit sets of a traced network, inputs first, then layers as they run.

    Args:
        seen: The trace.
        names: The name of each input.
    """
    if not seen.axes:
        return []
    classes = _Classes(seen)
    taken: set[int] = set()
    made = []
    for root in sorted(seen.roots, key=lambda r: r.source is None):
        own = dict.fromkeys(classes.of[_range(root)].tolist())
        if root.source is None:  # units that meet at an earlier root are that root's
            own = {c: None for c in own if c not in taken}
        taken |= set(own)
        if own:
            made.append(_candidate(seen, classes, root, {c: n for n, c in enumerate(own)}, names))
    return _distinct([draft for draft in made if draft is not None])


class _Classes:
    """Joined nodes: the class of every node, and of every weight position within a plane."""

    def __init__(self, seen: Trace) -> None:
        self.nodes = seen.nodes
        planes = 1 + max((c.plane for c in seen.claims), default=0)
        size = self.nodes * planes + 1
        edges = [*seen.pairs, *(np.stack([self.place(c), c.ids]) for c in seen.claims)]
        a, b = np.concatenate(edges, axis=1) if edges else np.zeros((2, 0), dtype=np.int64)
        ones = np.ones(len(a), dtype=np.int8)
        _, self.of = connected_components(coo_array((ones, (a, b)), shape=(size, size)), directed=False)

    def place(self, claim: WeightUse) -> NDArray[np.int64]:
        """The node of each claimed cell within the claim's plane."""
        return claim.cells + self.nodes * claim.plane

    def marked(self, seen: Trace, kind: str, wanted: NDArray[np.int64]) -> list[str]:
        """Reasons of the marks of one kind on the wanted classes, first come first."""
        hits = (m.reason for m in seen.marks if m.kind == kind and np.isin(self.of[m.ids], wanted).any())
        return list(dict.fromkeys(hits))

    def share(self, seen: Trace, kind: str, wanted: NDArray[np.int64]) -> float:
        """Share of the wanted classes that carry a mark of one kind."""
        hit = [self.of[m.ids] for m in seen.marks if m.kind == kind]
        return float(np.isin(wanted, np.concatenate(hit)).mean()) if hit else 0.0


def _candidate(
    seen: Trace, classes: _Classes, root: Axis, units: Mapping[int, int], names: Sequence[str]
) -> Candidate | None:
    wanted = np.array(list(units))
    outputs = classes.share(seen, "output", wanted)
    if root.source is None and outputs == 1.0:
        return None
    refused = _refusal(seen, classes, wanted, outputs, root, names)
    reads = _slots(seen, classes, units, lambda c: c.role == "reader")
    factors = _slots(seen, classes, units, lambda c: c.scales)
    if not any(s.role == "reader" for s in reads):
        reads = factors
    mixed = classes.marked(seen, "mixed", wanted)
    return Candidate(
        name=names[root.source] if root.source is not None else _name(root.tensor),
        source=root.source,
        count=root.size if refused else len(units),
        slots=reads,
        scales=factors,
        refused=refused,
        mixed=mixed[0] if mixed else None,
    )


def _refusal(
    seen: Trace,
    classes: _Classes,
    wanted: NDArray[np.int64],
    outputs: float,
    root: Axis,
    names: Sequence[str],
) -> str | None:
    if root.source is not None:
        met = {names[r.source] for r in seen.roots if r.source is not None and _meets(classes, r, wanted)}
        if len(met) > 1:
            return f"the inputs {' and '.join(map(repr, sorted(met)))} are joined column by column"
    refused = classes.marked(seen, "refused", wanted)
    if refused:
        return refused[0]
    if outputs:
        return (
            "some of the units are the output"
            if root.source is None
            else "the units are added to the network's output"
        )
    if len(wanted) < 2:
        tied = classes.marked(seen, "tied", wanted)
        return f"all units are tied together by {tied[0]}" if tied else "all units are tied together"
    if root.source is not None and len(wanted) < root.size:
        return "the network joins columns with one another, so that they cannot leave one by one"
    return None


def _meets(classes: _Classes, root: Axis, wanted: NDArray[np.int64]) -> bool:
    return bool(np.isin(classes.of[_range(root)], wanted).any())


def _distinct(drafts: Sequence[Candidate]) -> list[Candidate]:
    """Give a set whose name is taken, as of a weight with units along two dimensions, a number."""
    seen: dict[str, int] = {}
    named = []
    for draft in drafts:
        seen[draft.name] = seen.get(draft.name, 0) + 1
        number = seen[draft.name]
        named.append(replace(draft, name=f"{draft.name}#{number}") if number > 1 else draft)
    return named


def _slots(
    seen: Trace, classes: _Classes, units: Mapping[int, int], reads: Callable[[WeightUse], bool]
) -> tuple[TensorAxis, ...]:
    """Every position whose class is a unit; readers where a claim that ``reads`` says so."""
    unit = np.full(classes.of.max() + 1, -1)
    unit[list(units)] = list(units.values())
    owner = np.full(seen.nodes + 1, -1)
    owner[1:] = unit[classes.of[1 : seen.nodes + 1]]
    reading: set[int] = set()
    starts = np.array([a.start for a in seen.axes])
    for claim in seen.claims:
        mine = unit[classes.of[classes.place(claim)]]
        hit = mine >= 0
        if hit.any():
            if claim.plane:
                owner[claim.cells[hit]] = mine[hit]
            if reads(claim):
                reading |= set(
                    np.unique(np.searchsorted(starts, claim.cells[hit], side="right") - 1).tolist()
                )
    slots = []
    for place, axis in enumerate(seen.axes):
        positions = owner[_range(axis)]
        if axis.source is None and (positions >= 0).any():
            role: Role = "reader" if place in reading else "carrier"
            slots.append(TensorAxis(axis.tensor, axis.dim, torch.from_numpy(positions.copy()), role))
    return tuple(slots)


def _range(axis: Axis) -> slice:
    return slice(axis.start, axis.start + axis.size)


def _name(tensor: str) -> str:
    """Name a layer after the tensor that begins its units."""
    path, _, leaf = tensor.rpartition(".")
    if leaf == "weight" and path:
        return path
    if leaf.startswith(("weight_ih_", "weight_hh_")):
        return f"{path}.{leaf[len('weight_ih_') :]}" if path else leaf[len("weight_ih_") :]
    return path if leaf == "in_proj_weight" and path else tensor
