"""Every network of the zoo: what must be cuttable is, what must not is refused, and no cut is wrong."""

from __future__ import annotations

import copy
import functools
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from glprune.model.weights.reparametrization import fold_
from glprune.pruning.groups import zero_units_
from glprune.pruning.planner import plan_units
from glprune.pruning.removal import RemovalResult, difference, outputs, remove
from glprune.pruning.units import UnitSet
from tests.architectures import ARCHITECTURES, Architecture, Inputs
from tests.zeroing_helpers import cuttable, dead_units, grouped

TOLERANCE = 1e-5
SEEDS = range(3)

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@functools.cache
def planned(name: str) -> tuple[nn.Module, list[UnitSet]]:
    """A network of the zoo, as it is loaded, and its plan, made once; no test may change either."""
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    network = architecture.build()
    fold_(network)
    inputs = architecture.inputs(torch.Generator().manual_seed(1), 6)
    return network, plan_units(network, inputs, architecture.axes, architecture.names)


def matching(sets: list[UnitSet], pattern: str) -> list[UnitSet]:
    return [s for s in sets if any(fnmatchcase(s.name, part) for part in pattern.split("|"))]


def zeroed(network: nn.Module, sets: list[UnitSet], seed: int) -> tuple[nn.Module, dict[str, int]]:
    """A copy with a random part of every plan at zero, and the dead units of each set."""
    generator = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(network)
    for s in sets:
        if s.refused or s.count < 2:
            continue
        marked = torch.rand(s.count, generator=generator) < 0.5
        marked[int(torch.randint(s.count, (1,), generator=generator))] = True
        marked[int(torch.randint(s.count, (1,), generator=generator))] = False
        zero_units_(dict(twin.state_dict()), s, marked)
    return twin, dead_units(twin, sets)


def narrowed(architecture: Architecture, inputs: Inputs, removed: RemovalResult) -> Inputs:
    return tuple(
        x if axis is None else x.index_select(axis, columns)
        for x, axis, columns in zip(inputs, architecture.axes, removed.columns, strict=True)
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_can_be_cut_exactly_is_planned_and_the_rest_is_refused_by_name(name):
    architecture = ARCHITECTURES[name]
    _, sets = planned(name)
    for s in sets:
        print(f"| {name} | {s.name} | {s.kind} | {s.count} | {s.refused or 'cut'} |")
    names = [s.name for s in sets]
    assert len(set(names)) == len(names)
    for s in sets:
        assert s.refused is None or (s.refused.strip() and "\n" not in s.refused)
    for pattern in architecture.cut:
        found = matching(sets, pattern)
        assert found, f"no unit set {pattern!r} among {names}"
        assert not [(s.name, s.refused) for s in found if s.refused]
    for pattern, word in architecture.refused.items():
        found = matching(sets, pattern.removeprefix("?"))
        assert found, f"no unit set {pattern!r} among {names}"
        for s in found:
            assert s.refused is not None or pattern.startswith("?"), f"{s.name} mixes units and was planned"
            assert s.refused is None or word.lower() in s.refused.lower()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slim_equals_zeroed_dense_on_fresh_inputs(name, seed):
    architecture = ARCHITECTURES[name]
    network, sets = planned(name)
    dense, dead = zeroed(network, sets, seed)
    before = copy.deepcopy(dense.state_dict())
    inputs = architecture.inputs(torch.Generator().manual_seed(100 + seed), 9)
    removed = remove(dense, grouped(sets), inputs, architecture.axes, tolerance=TOLERANCE)

    assert {cut.name: cut.units for cut in removed.cuts} == cuttable(sets, dead)
    families = {s.name for s in sets if s.family}
    assert not [
        (r.name, r.reason) for r in removed.refused if r.name in cuttable(sets, dead).keys() - families
    ]
    assert removed.difference <= TOLERANCE
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())
    for batch in (1, 2, 7):
        fresh = architecture.inputs(torch.Generator().manual_seed(1000 * batch + seed), batch)
        gap = difference(
            outputs(dense, fresh), outputs(removed.network, narrowed(architecture, fresh, removed))
        )
        assert gap <= TOLERANCE, f"batch {batch}"
    if any(cut.kind == "hidden" for cut in removed.cuts):
        assert parameters(removed.network) < parameters(dense)
    else:
        assert parameters(removed.network) <= parameters(dense)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_planning_leaves_the_network_alone(name):
    architecture = ARCHITECTURES[name]
    network, _ = planned(name)
    torch.manual_seed(0)
    fresh = architecture.build()
    fold_(fresh)
    state = fresh.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in fresh.parameters()]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert not any(m.training for m in network.modules())
