"""Counts of units follow from plan and weights: on every network of the zoo, and no inflated size does."""

import pytest
import torch

from glprune.audit.checks.units import check_units
from glprune.audit.safetensors_reader import Tensors
from glprune.export.plan_writer import plan_axes, plan_units_of
from glprune.pruning.removal import remove
from glprune.schema.plan import Plan
from tests.architectures import ARCHITECTURES
from tests.unit.pruning.test_architectures import planned, zeroed
from tests.zeroing_helpers import grouped


class NoReport:
    """A report without hidden layers: only plan and weights are compared."""

    hidden = ()


def plan_and_weights(name, seed):
    architecture = ARCHITECTURES[name]
    network, sets = planned(name)
    dense, _ = zeroed(network, sets, seed)
    inputs = architecture.inputs(torch.Generator().manual_seed(3), 6)
    groups = grouped(sets)
    removed = remove(dense, groups, inputs, architecture.axes)
    units = [plan_units_of(g, removed.plan) for g in groups if g.units.slots]
    plan = Plan.model_construct(units=units, axes=plan_axes(dense, removed.plan), inputs=[])
    arrays = {key: value.numpy() for key, value in removed.network.state_dict().items()}
    return plan, Tensors(arrays, {})


def findings(plan, tensors):
    found = check_units(NoReport(), plan, tensors, ())
    # a plan without a report has neither hidden layers nor inputs
    return [f for f in found if f.where != "/hidden" and "is no input" not in f.what]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_plan_of_every_architecture_holds(name):
    plan, tensors = plan_and_weights(name, 0)
    assert findings(plan, tensors) == []


@pytest.mark.parametrize("name", ["mlp-batchnorm", "conv-flatten-mlp", "lstm-last"])
def test_an_inflated_size_and_a_unit_too_few_are_found(name):
    plan, tensors = plan_and_weights(name, 0)
    assert plan.axes
    for n, axis in enumerate(plan.axes):
        inflated = [*plan.axes]
        inflated[n] = axis.model_copy(update={"size": axis.size + 7})
        assert findings(plan.model_copy(update={"axes": inflated}), tensors)
    for n, units in enumerate(plan.units):
        for change in (
            {"before": units.before - 1},
            {"before": units.before + 3, "kind": "hidden"},
            {"kept": units.kept[1:]},
        ):
            changed = [*plan.units]
            changed[n] = units.model_copy(update=change)
            assert findings(plan.model_copy(update={"units": changed}), tensors)
