"""Plan which weights belong to which unit: trace, check numerically, compare with torch-pruning.

:mod:`glprune.pruning.verification` checks every set before anything is trained or cut; a set that fails the
check is refused with the reason. Every set is compared with torch-pruning's plan of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.errors import ModelError
from glprune.pruning.candidates import Candidate, find_candidates
from glprune.pruning.dependency_graph import dependency_plans
from glprune.pruning.trace import trace
from glprune.pruning.units import Kind, TensorAxis, UnitSet
from glprune.pruning.verification import EquivalenceChecker, first_line, random_copy

if TYPE_CHECKING:
    from glprune.data.splits import Inputs


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
    planner = _Planner(network, checker, allow_inexact)
    sets = [
        s
        for cluster in _clusters(network, find_candidates(traced, names))
        for s in planner.plan_cluster(cluster)
    ]
    sets = planner.confirm(sets)
    graph_plans = dependency_plans(network, inputs, axes, names)
    return [replace(s, planner="both") if _plans_agree(s, graph_plans.get(s.name)) else s for s in sets]


class _Planner:
    """Choose the first variant of each candidate that passes the checks."""

    def __init__(self, network: nn.Module, checker: EquivalenceChecker, allow_inexact: bool) -> None:
        self.checker, self.allow_inexact = checker, allow_inexact
        self.frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        self.buffers = {name for name, _ in network.named_buffers()}
        self.readers: dict[str, tuple[int, Tensor]] = {}
        self.clusters: list[list[UnitSet]] = []

    def plan_cluster(self, cluster: Sequence[Candidate]) -> list[UnitSet]:
        """Check a cluster of candidates that are cut together; refused sets carry the reason."""
        reason = next((d.refused for d in cluster if d.refused), None)
        if len(cluster) > 1 and reason is None and len({d.count for d in cluster}) > 1:
            reason = "its layers and directions do not hold the same units"
        if reason is not None:
            return [
                _refused(d, d.refused or f"held in one width with a layer of which {reason}") for d in cluster
            ]
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
    kind: Kind = "hidden" if candidate.source is None else "input"
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
