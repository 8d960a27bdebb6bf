"""Find candidate unit sets in a trace: joined positions are a unit, the units of one layer a set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from glprune.pruning.ids import ClassId, ClassIds, NodeIds, UnitId, UnitIds
from glprune.pruning.units import Role, TensorAxis

if TYPE_CHECKING:
    from glprune.pruning.tracer import AnnotationKind, Trace, TracedAxis, WeightUse


@dataclass(frozen=True)
class Candidate:
    """A unit set as traced; it is not checked yet.

    Attributes:
        name: Name of the input or of the layer.
        source: The input it belongs to, or None for hidden units.
        count: Number of units.
        slots: Where the units lie; ``reader`` where a contraction reads them.
        scales: The same with elementwise factors as readers, for units that meet such a factor before any
            contraction.
        refused: Why the units cannot be cut, or None.
        mixed: The operation that makes a cut inexact, or None.
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


def find_candidates(trace: Trace, names: Sequence[str]) -> list[Candidate]:
    """Find the candidate unit sets of a traced network, inputs first, then layers as they run.

    Args:
        trace: The trace.
        names: The name of each input.
    """
    if not trace.axes:
        return []
    classes = _Classes(trace)
    taken: set[ClassId] = set()
    found = []
    for root in sorted(trace.roots, key=lambda r: r.source is None):
        begun = list(dict.fromkeys(classes.along(root)))
        if root.source is None:  # units that meet at an earlier root belong to that root
            begun = [c for c in begun if c not in taken]
        taken |= set(begun)
        if begun:
            units = {c: UnitId(number) for number, c in enumerate(begun)}
            found.append(_candidate(classes, root, units, names))
    return _number_duplicate_names([candidate for candidate in found if candidate is not None])


class _Classes:
    """The class of every node, and of every weight position within a plane: joined nodes are one class."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        planes = 1 + max((use.plane for use in trace.weight_uses), default=0)
        size = trace.n_nodes * planes + 1
        uses = (np.stack([self.nodes_in_plane(use), use.unit_nodes]) for use in trace.weight_uses)
        edges = [*trace.joined, *uses]
        a, b = np.concatenate(edges, axis=1) if edges else np.zeros((2, 0), dtype=np.int64)
        ones = np.ones(len(a), dtype=np.int8)
        _, labels = connected_components(coo_array((ones, (a, b)), shape=(size, size)), directed=False)
        self._class_of_node = ClassIds(labels)

    def nodes_in_plane(self, use: WeightUse) -> NodeIds:
        """Return the node of each used weight position within the plane of the use."""
        return NodeIds(use.weight_nodes + self.trace.n_nodes * use.plane)

    def of(self, nodes: NodeIds) -> ClassIds:
        """Return the class of each node."""
        return ClassIds(self._class_of_node[nodes])

    def along(self, axis: TracedAxis) -> list[ClassId]:
        """Return the class of each position of an axis."""
        return [ClassId(c) for c in self._class_of_node[_node_slice(axis)].tolist()]

    def units_of_nodes(self, units: Mapping[ClassId, UnitId]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the unit of each class and the unit of each node outside planes; -1 where there is none."""
        unit_of_class = np.full(self._class_of_node.max() + 1, -1)
        unit_of_class[list(units)] = list(units.values())
        unit_of_node = np.full(self.trace.n_nodes + 1, -1)
        unit_of_node[1:] = unit_of_class[self._class_of_node[1 : self.trace.n_nodes + 1]]
        return unit_of_class, unit_of_node

    def reasons(self, kind: AnnotationKind, wanted: ClassIds) -> list[str]:
        """Return the distinct reasons of one kind of annotation on the wanted classes, in order."""
        hits = (
            note.reason
            for note in self.trace.annotations
            if note.kind == kind and np.isin(self.of(note.nodes), wanted).any()
        )
        return list(dict.fromkeys(hits))

    def annotated_fraction(self, kind: AnnotationKind, wanted: ClassIds) -> float:
        """Return the fraction of the wanted classes that carry one kind of annotation."""
        hit = [self.of(note.nodes) for note in self.trace.annotations if note.kind == kind]
        return float(np.isin(wanted, np.concatenate(hit)).mean()) if hit else 0.0


def _candidate(
    classes: _Classes, root: TracedAxis, units: Mapping[ClassId, UnitId], names: Sequence[str]
) -> Candidate | None:
    wanted = ClassIds(np.array(list(units)))
    outputs = classes.annotated_fraction("output", wanted)
    if root.source is None and outputs == 1.0:
        return None
    refused = _refusal(classes, wanted, outputs, root, names)
    slots = _tensor_axes(classes, units, lambda use: use.role == "reader")
    scales = _tensor_axes(classes, units, lambda use: use.scales)
    if not any(s.role == "reader" for s in slots):
        slots = scales
    mixed = classes.reasons("mixed", wanted)
    return Candidate(
        name=names[root.source] if root.source is not None else _layer_name(root.tensor),
        source=root.source,
        count=root.size if refused else len(units),
        slots=slots,
        scales=scales,
        refused=refused,
        mixed=mixed[0] if mixed else None,
    )


def _refusal(
    classes: _Classes, wanted: ClassIds, outputs: float, root: TracedAxis, names: Sequence[str]
) -> str | None:
    """Return why the units of a root cannot be cut, or None.

    Args:
        classes: All classes.
        wanted: The classes of the units.
        outputs: The fraction of them that are outputs of the network.
        root: The axis that began them.
        names: The name of each input.
    """
    refused = classes.reasons("refused", wanted)
    if root.source is not None and (joined := _joined_inputs(classes, wanted, names)):
        return joined
    if refused:
        return refused[0]
    if outputs:
        return (
            "some of the units are the output"
            if root.source is None
            else "the units are added to the network's output"
        )
    if len(wanted) < 2:
        tied = classes.reasons("tied", wanted)
        return f"all units are tied together by {tied[0]}" if tied else "all units are tied together"
    if root.source is not None and len(wanted) < root.size:
        return "the network joins columns with one another, so that they cannot leave one by one"
    return None


def _joined_inputs(classes: _Classes, wanted: ClassIds, names: Sequence[str]) -> str | None:
    """Return the reason to refuse columns of several inputs that are joined, or None."""
    joined = {
        names[axis.source]
        for axis in classes.trace.roots
        if axis.source is not None and np.isin(classes.along(axis), wanted).any()
    }
    if len(joined) > 1:
        return f"the inputs {' and '.join(map(repr, sorted(joined)))} are joined column by column"
    return None


def _number_duplicate_names(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Number the sets of one name, as those of a weight that has units along two dimensions."""
    times: dict[str, int] = {}
    named = []
    for candidate in candidates:
        number = times[candidate.name] = times.get(candidate.name, 0) + 1
        named.append(replace(candidate, name=f"{candidate.name}#{number}") if number > 1 else candidate)
    return named


def _tensor_axes(
    classes: _Classes, units: Mapping[ClassId, UnitId], reads: Callable[[WeightUse], bool]
) -> tuple[TensorAxis, ...]:
    """Return every tensor axis that units lie along; it is a reader where ``reads`` accepts a use of it."""
    trace = classes.trace
    unit_of_class, unit_of_node = classes.units_of_nodes(units)
    reading: set[int] = set()
    starts = np.array([axis.start for axis in trace.axes])
    for use in trace.weight_uses:
        used_by = unit_of_class[classes.of(classes.nodes_in_plane(use))]
        hit = used_by >= 0
        if hit.any():
            if use.plane:
                unit_of_node[use.weight_nodes[hit]] = used_by[hit]
            if reads(use):
                axes = np.searchsorted(starts, use.weight_nodes[hit], side="right") - 1
                reading |= set(np.unique(axes).tolist())
    slots = []
    for number, axis in enumerate(trace.axes):
        along = unit_of_node[_node_slice(axis)]
        if axis.source is None and (along >= 0).any():
            role: Role = "reader" if number in reading else "carrier"
            slots.append(TensorAxis(axis.tensor, axis.dim, UnitIds(torch.from_numpy(along.copy())), role))
    return tuple(slots)


def _node_slice(axis: TracedAxis) -> slice:
    return slice(axis.start, axis.start + axis.size)


def _layer_name(tensor: str) -> str:
    """Name a layer after the tensor that begins its units."""
    path, _, leaf = tensor.rpartition(".")
    if leaf == "weight" and path:
        return path
    if leaf.startswith(("weight_ih_", "weight_hh_")):
        return f"{path}.{leaf[len('weight_ih_') :]}" if path else leaf[len("weight_ih_") :]
    return path if leaf == "in_proj_weight" and path else tensor
