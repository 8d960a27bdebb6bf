"""On random networks with random zeros, slim equals zeroed dense.

``GLPRUNE_CASES=5000`` runs more and other networks than the 200 of every session; a failure prints
the choices from which ``tests.generated.rebuild`` makes the network again.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import nn

from glprune.pruning.groups import zero_units_
from glprune.pruning.planner import plan_units
from glprune.pruning.removal import difference, outputs, remove
from glprune.pruning.units import UnitSet
from tests.generated import TALLY, Generated, networks
from tests.zeroing_helpers import cuttable, dead_units, grouped

TOLERANCE = 1e-5
CASES = int(os.environ.get("GLPRUNE_CASES", "200"))
CUTTABLE_SHARE = 0.6

pytestmark = pytest.mark.usefixtures("one_thread")


def zeroed(
    network: nn.Module, sets: list[UnitSet], generator: torch.Generator
) -> tuple[nn.Module, dict[str, int]]:
    """A copy with a random part of every plan at zero, from none to all but one unit, and its dead units."""
    twin = copy.deepcopy(network)
    for s in sets:
        if s.refused:
            continue
        marked = torch.rand(s.count, generator=generator) < torch.rand((), generator=generator)
        marked[int(torch.randint(s.count, (1,), generator=generator))] = False
        zero_units_(dict(twin.state_dict()), s, marked)
    return twin, dead_units(twin, sets)


@pytest.mark.slow
@settings(
    max_examples=CASES,
    derandomize="GLPRUNE_CASES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(case=networks(), seed=st.integers(0, 2**16))
def test_slim_equals_zeroed_dense_on_random_networks(case: Generated, seed: int) -> None:
    note(f"seed {seed}, rebuild({list(case.choices)})")
    generator = torch.Generator().manual_seed(seed)
    batches = [case.inputs(generator, batch) for batch in (1, 2, 7)]
    for batch in batches:  # a network that does not run would be refused whole and prove nothing
        assert all(bool(torch.isfinite(y).all()) for y in outputs(case.network, batch))

    inputs = case.inputs(generator, 6)
    sets = plan_units(case.network, inputs, case.axes, case.names)
    dense, dead = zeroed(case.network, sets, generator)
    before = copy.deepcopy(dense.state_dict())
    removed = remove(dense, grouped(sets), inputs, case.axes, tolerance=TOLERANCE)

    cut = {c.name: c.units for c in removed.cuts}
    assert cut == cuttable(sets, dead)
    families = {s.name for s in sets if s.family}
    assert not [
        (r.name, r.reason) for r in removed.refused if r.name in cuttable(sets, dead).keys() - families
    ]
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())
    worst = removed.difference
    for batch in batches:
        narrow = tuple(
            x if axis is None else x.index_select(axis, columns)
            for x, axis, columns in zip(batch, case.axes, removed.columns, strict=True)
        )
        worst = max(worst, difference(outputs(dense, batch), outputs(removed.network, narrow)))
    assert worst <= TOLERANCE
    _count(sets, cut, worst)


def _count(sets: list[UnitSet], cut: dict[str, int], worst: float) -> None:
    TALLY.cases += 1
    TALLY.sets += len(sets)
    TALLY.refused += sum(s.refused is not None for s in sets)
    TALLY.reasons.update(s.refused for s in sets if s.refused)
    TALLY.units_cut += sum(cut.values())
    TALLY.difference = max(TALLY.difference, worst)


@pytest.mark.slow
def test_enough_random_networks_were_run_and_most_sets_could_be_cut() -> None:
    if not TALLY.cases:
        pytest.skip("the random networks were not run in this session")
    for reason, times in TALLY.reasons.most_common(40):
        print(f"{times:5d}  {reason}")
    assert TALLY.cases >= min(CASES, 200)
    assert TALLY.sets - TALLY.refused > CUTTABLE_SHARE * TALLY.sets
    assert TALLY.units_cut > TALLY.cases
