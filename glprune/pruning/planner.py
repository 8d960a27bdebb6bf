"""Find the groups of a network: trace its units, check each plan numerically, compare it with torch-pruning.

``glprune.pruning.verification`` checks every set before anything is trained or cut; a set that fails the
check is refused with the reason. Every set is compared with torch-pruning's plan of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.errors import ModelError, first_line
from glprune.model.standardize import StandardizedNetwork
from glprune.pruning.candidates import Candidate, find_candidates
from glprune.pruning.dependency_graph import dependency_plans
from glprune.pruning.groups import GroupSet, hidden_groups, input_groups
from glprune.pruning.own_norms import self_divided_weights
from glprune.pruning.trace import trace
from glprune.pruning.units import GroupKind, TensorAxis, UnitSet
from glprune.pruning.verification import EquivalenceChecker, random_copy

if TYPE_CHECKING:
    from glprune.data.records import Data
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import Recipe
    from glprune.tables.features import InputColumns, InputPosition

_EXAMPLES = 8  # real rows and as many random ones


def find_groups(network: nn.Module, recipe: Recipe, data: Data, probe: Inputs) -> list[GroupSet]:
    """Plan every group set of a network from a trace and verify it numerically.

    Args:
        network: The network, in evaluation mode.
        recipe: States the axes and names of the inputs and which inexact cuts are allowed.
        data: States the features; its columns are those the network takes.
        probe: Real and random rows to run the network on.

    Returns:
        The group sets of the inputs with an axis in their order, then those of the hidden units.
    """
    axes = [spec.axis for spec in recipe.model.inputs]
    names = [spec.name for spec in recipe.model.inputs]
    example = tuple(torch.stack([x[:_EXAMPLES], x[-_EXAMPLES:]], dim=1).flatten(0, 1) for x in probe)
    sets = _add_refused_inputs(plan_units(network, example, axes, names, recipe.allow_inexact), data)
    if isinstance(network, StandardizedNetwork):  # layers keep the names the user gave them
        sets = [_without_wrapper_name(s) for s in sets]
    features = _features_by_input(data)
    return [input_groups(s, features[s.name]) if s.kind == "input" else hidden_groups(s) for s in sets]


def _without_wrapper_name(units: UnitSet) -> UnitSet:
    """A unit set named as in the network behind the standardisation."""
    refused = units.refused and units.refused.replace("'network.", "'")
    return replace(units, name=units.name.removeprefix("network."), refused=refused)


def _add_refused_inputs(sets: list[UnitSet], data: Data) -> list[UnitSet]:
    """Add a refused set for each unplanned input with an axis; inputs come first, in order."""
    found = {s.name: s for s in sets if s.kind == "input"}
    inputs = [
        found.get(part.name)
        or UnitSet(part.name, "input", len(part.prunable_columns), (), _refusal_reason(part))
        for part in data.inputs
        if part.axis is not None
    ]
    return [*inputs, *(s for s in sets if s.kind == "hidden")]


def _refusal_reason(part: InputColumns) -> str:
    """Why the plan has no set for an input."""
    if len(part.prunable_columns) == 1:
        return "there is one only, and an input needs one"
    return "the plan has no layer that reads them"


def _features_by_input(data: Data) -> Mapping[str, list[tuple[str, tuple[InputPosition, ...]]]]:
    """Input name -> name and positions of each of its features."""
    features: dict[str, list[tuple[str, tuple[InputPosition, ...]]]] = {p.name: [] for p in data.inputs}
    for feature in data.features:
        features[data.inputs[data.input_of(feature)].name].append((feature.name, data.positions(feature)))
    return features


def plan_units(
    network: nn.Module,
    inputs: Inputs,
    axes: Sequence[int | None],
    names: Sequence[str],
    allow_inexact: bool = False,
) -> list[UnitSet]:
    """Find and check every set of units of a network and the weights that belong to each unit.

    Args:
        network: The network, in evaluation mode; it is copied, never changed.
        inputs: Example inputs, each (batch, ...), batch at least 2.
        axes: The axis of each input that holds its features; None where it has none.
        names: The name of each input.
        allow_inexact: Plan units that LayerNorm, RMSNorm, softmax or a mean mixes too; their plan is
            checked with that operation held neutral, and ``inexact`` names it.

    Returns:
        Unit sets, inputs first, then layers as they run. Sets that cannot be cut carry the
        reason in ``refused``. Output units are left out: they are the prediction.

    Raises:
        ModelError: The network does not run while it is traced.
    """
    randomized, probe, _ = random_copy(network, inputs)
    try:
        traced = trace(randomized, probe, axes)
    except Exception as error:  # scripted or compiled networks may fail anyhow under a dispatch mode
        raise ModelError(
            f"The network cannot be traced ({first_line(error)}); give the plain torch.nn.Module, neither "
            "scripted nor compiled."
        ) from error
    checker = EquivalenceChecker(network, inputs, axes, frozenset(traced.mixing_reductions))
    planner = _Planner(network, checker, self_divided_weights(randomized, probe), allow_inexact)
    sets = [
        s
        for cluster in _clusters(network, find_candidates(traced, names))
        for s in planner.plan_cluster(cluster)
    ]
    sets = planner.confirm(sets)
    graph_plans = dependency_plans(network, tuple(x[: len(probe[0])] for x in inputs), axes, names)
    return [replace(s, planner="both") if _plans_agree(s, graph_plans.get(s.name)) else s for s in sets]


class _Planner:
    """Choose the first variant of each candidate that passes the checks."""

    def __init__(
        self, network: nn.Module, checker: EquivalenceChecker, divided: frozenset[str], allow_inexact: bool
    ) -> None:
        self.checker, self.divided, self.allow_inexact = checker, divided, allow_inexact
        self.frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        self.buffers = {name for name, _ in network.named_buffers()}
        self.readers: dict[str, tuple[int, Tensor]] = {}
        self.clusters: list[list[UnitSet]] = []

    def plan_cluster(self, cluster: Sequence[Candidate]) -> list[UnitSet]:
        """Check a cluster of candidates that are cut together; refused sets carry the reason."""
        reason = self._own_norm(cluster) or next((d.refused for d in cluster if d.refused), None)
        if len(cluster) > 1 and reason is None and len({d.count for d in cluster}) > 1:
            reason = "its layers and directions do not hold the same units"
        if reason is not None:
            others = f"held in one width with a layer of which {reason}"
            return [_refused(d, self._own_norm([d]) or d.refused or others) for d in cluster]
        failure = "no layer reads these units through weights of its own"
        for variant in self._variants(cluster):
            failure = self._conflict(variant) or ""
            checked = failure or self.checker.check_half(variant)
            if isinstance(checked, str):
                failure = checked
                continue
            if cluster[0].source is not None and (reason := self.checker.check_each(checked)):
                failure = reason
                continue
            self._accept(checked)
            return checked
        mixed = next((f"{d.mixed} mixes the units" for d in cluster if d.mixed), None)
        return [_refused(d, mixed or failure) for d in cluster]

    def _own_norm(self, cluster: Sequence[Candidate]) -> str | None:
        """Return the reason where weights that read the units are divided by their own norm, or None."""
        readers = (slot.tensor for d in cluster for slot in d.slots if slot.role == "reader")
        name = next((tensor for tensor in readers if tensor in self.divided), None)
        return name and f"{name!r}, which reads them, is divided by its own norm and cannot be shrunk"

    def confirm(self, sets: Sequence[UnitSet]) -> list[UnitSet]:
        """Check all accepted sets together on every separating subset; one by one if that fails."""
        if self.checker.check_together(self.clusters):
            return list(sets)
        failures: dict[str, str] = {}
        for cluster in self.clusters:
            failure = self.checker.check_each(cluster)
            failures |= {s.name: failure for s in cluster if failure}
        if not failures:  # each holds alone: keep those that hold with all before them
            kept: list[list[UnitSet]] = []
            for cluster in self.clusters:
                if self.checker.check_together([*kept, cluster]):
                    kept.append(cluster)
                else:
                    failures |= {
                        s.name: "cutting them together with other units changes outputs" for s in cluster
                    }
        return [replace(s, slots=(), refused=failures[s.name]) if s.name in failures else s for s in sets]

    def _variants(self, cluster: Sequence[Candidate]) -> Iterator[list[UnitSet]]:
        mixed = [d.mixed for d in cluster if d.mixed]
        if not mixed:
            yield [_unit_set(d, d.slots) for d in cluster]
        if cluster[0].source is not None:
            for slots in (cluster[0].slots, cluster[0].scales):
                yield [replace(_unit_set(cluster[0], slots), removal="constant")]
        if mixed and self.allow_inexact:
            yield [replace(_unit_set(d, d.slots), inexact=mixed[0]) for d in cluster]

    def _conflict(self, sets: Sequence[UnitSet]) -> str | None:
        """Return why the penalty cannot act on these units, or None."""
        if not all(s.readers for s in sets):
            return "no layer reads these units through weights of its own"
        readers: dict[str, tuple[int, Tensor]] = dict(self.readers)
        for slot in (slot for s in sets for slot in s.readers):
            if slot.tensor in self.buffers:
                return f"{slot.tensor!r}, which reads them, is a buffer and not trained"
            if slot.tensor in self.frozen:
                return f"{slot.tensor!r} is frozen (requires_grad=False)"
            dim, taken = readers.get(slot.tensor, (slot.dim, torch.zeros(len(slot.unit), dtype=torch.bool)))
            if dim != slot.dim:
                return f"{slot.tensor!r} is tied: units leave it along two dimensions"
            if bool((taken & (slot.unit >= 0)).any()):
                return f"the weights of {slot.tensor!r} that leave them belong to other units already"
            readers[slot.tensor] = dim, taken | (slot.unit >= 0)
        return None

    def _accept(self, sets: Sequence[UnitSet]) -> None:
        self.clusters.append(list(sets))
        for slot in (slot for s in sets for slot in s.readers):
            _, taken = self.readers.get(
                slot.tensor, (slot.dim, torch.zeros(len(slot.unit), dtype=torch.bool))
            )
            self.readers[slot.tensor] = slot.dim, taken | (slot.unit >= 0)


def _unit_set(candidate: Candidate, slots: tuple[TensorAxis, ...]) -> UnitSet:
    kind: GroupKind = "hidden" if candidate.source is None else "input"
    return UnitSet(
        candidate.name, kind, candidate.count, slots, source=candidate.source, family=candidate.family
    )


def _refused(candidate: Candidate, reason: str) -> UnitSet:
    return replace(_unit_set(candidate, ()), refused=reason)


def _clusters(network: nn.Module, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Group the layers and directions of one recurrent module; every other candidate is alone."""
    stacked = {
        name
        for name, m in network.named_modules()
        if isinstance(m, nn.RNNBase) and (m.num_layers > 1 or m.bidirectional)
    }
    missing = _layers_without_candidate(network, stacked, candidates)
    clusters: dict[str, list[Candidate]] = {}
    for number, candidate in enumerate(candidates):
        modules = sorted(
            {
                path
                for path, _, leaf in (
                    slot.tensor.rpartition(".") for slot in candidate.slots if slot.role == "reader"
                )
                if path in stacked and leaf.startswith("weight_hh")
            }
        )
        family = modules[0] if modules else None
        if family in missing and not candidate.refused:
            candidate = replace(
                candidate, refused=f"held in one width with the outputs of {missing[family]!r}"
            )
        clusters.setdefault(family if family is not None else f"#{number}", []).append(
            replace(candidate, family=family)
        )
    return list(clusters.values())


def _layers_without_candidate(
    network: nn.Module, stacked: Collection[str], candidates: Sequence[Candidate]
) -> dict[str, str]:
    """Return the recurrent modules of which a layer has no candidate, as where its units are the output."""
    found = {slot.tensor for d in candidates for slot in d.slots if slot.role == "reader"}
    names = (name for name, _ in network.named_parameters())
    absent = (
        (n.rpartition(".")[0], n)
        for n in names
        if n.rpartition(".")[2].startswith("weight_hh") and n not in found
    )
    return {path: name for path, name in absent if path in stacked}


def _plans_agree(units: UnitSet, second: UnitSet | None) -> bool:
    """Return whether torch-pruning assigns every position of every parameter to the same unit."""
    if second is None or units.refused or second.refused or units.count != second.count:
        return False
    second_slots = {(slot.tensor, slot.dim): slot for slot in second.slots}
    first_slots = {(slot.tensor, slot.dim): slot for slot in units.slots}
    return all(
        key in first_slots and torch.equal(first_slots[key].unit, slot.unit)
        for key, slot in second_slots.items()
    ) and {(s.tensor, s.dim) for s in units.readers} == {(s.tensor, s.dim) for s in second.readers}
