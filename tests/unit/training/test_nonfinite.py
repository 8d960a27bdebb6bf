"""Numbers that stop being finite, on the path, in full-batch steps and in the refit; what halving the step does."""

import math

import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from glprune.data.synthetic import random_like
from glprune.errors import DataError, ModelError, NonFiniteError
from glprune.model.diagnostics import all_finite
from glprune.model.standardize import with_standardization
from glprune.model.task import Task
from glprune.pruning.groups import input_groups
from glprune.pruning.planner import plan_units
from glprune.schema.recipe import RefitSpec, TrainSpec
from glprune.training.objective import Objective, lambda_max
from glprune.training.proximal import AcceleratedProximalGradient
from glprune.training.refit import Refit
from glprune.training.solver import PointSolver
from tests.networks import split

pytestmark = pytest.mark.usefixtures("one_thread")
REGRESSION = Task("regression", "logits", 0)


class Exponential(nn.Module):
    def forward(self, x):
        return torch.exp(x)


class Root(nn.Module):
    """Its gradient at 0 is infinite, and times 0 it is NaN; its value is finite."""

    def forward(self, x):
        return torch.sqrt(x * x)


def network(act=None, inputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), act or nn.ReLU(), nn.Linear(5, 1)).eval()


def rows(count=64, inputs=4):
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(1))
    return x, x[:, 0] - x[:, 1]


def objective(net, x, y, weight=1.0):
    (units, *_) = plan_units(net, (x[:8],), [1], ["features"], False)
    groups = input_groups(units, [(str(n), (n,)) for n in range(x.shape[1])])
    weights = torch.full((x.shape[1],), weight, dtype=torch.float64)
    return Objective(net, REGRESSION, split(x, y), [(groups, weights)])


def solver(net, x, y, **spec):
    return PointSolver(objective(net, x, y), TrainSpec(**({"batch_size": 16, "epochs": 3} | spec)), 0)


def refitted(net, x, y, **spec):
    part = split(x, y)
    how = RefitSpec(**({"batch_size": 16, "epochs": 3, "distill": 0.0} | spec))
    return Refit(REGRESSION, part, part, lambda inputs: inputs, how, 0, net, "rmse").run(net)


# --- where it stops --------------------------------------------------------------------------


def test_an_overflow_names_lambda_epoch_batch_layer_rows_and_the_mend():
    x, y = rows()
    x[37] = 200.0  # exp of that is beyond float32
    net = network(Exponential())
    nn.init.ones_(net[0].weight)
    with pytest.raises(NonFiniteError) as caught:
        solver(net, x, y).solve(0.01)
    text = str(caught.value)
    assert text.startswith("lambda 0.01, epoch 1, batch ")
    assert "the output of layer '1' (Exponential) is not finite in row " in text
    assert text.endswith(" of its 16; lower train.lr (now 0.001) or allow train.max_lr_halvings.")
    assert "\n" not in text


def test_full_batch_steps_name_the_row_of_the_split():
    x, y = rows()
    x[37] = 200.0
    net = network(Exponential())
    nn.init.ones_(net[0].weight)
    with pytest.raises(
        NonFiniteError, match=r"lambda 0.01, all rows, batch 1: .*'1'.* in row 38 of the split"
    ):
        solver(net, x, y).polish(0.01)


def rooted():
    """An objective whose gradient is NaN behind layer 1, all of whose outputs are 0."""
    x, y = rows()
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), Root(), nn.Linear(5, 1)).eval()
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    (units, *_) = plan_units(network(), (x[:8],), [1], ["features"], False)
    groups = input_groups(units, [(str(n), (n,)) for n in range(4)])
    return Objective(net, REGRESSION, split(x, y), [(groups, torch.ones(4))])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_gradient_that_is_not_finite_names_the_parameter_nearest_to_the_loss(optimizer):
    tried = PointSolver(rooted(), TrainSpec(batch_size=16, optimizer=optimizer), 0)
    with pytest.raises(NonFiniteError, match=r"epoch 1, batch 1: the gradient of '1\.\w+' is not finite"):
        tried.solve(0.01)


def test_a_gradient_over_all_rows_is_looked_at_too():
    with pytest.raises(NonFiniteError, match=r"all rows, batch 1: the gradient of '1\.\w+' is not finite"):
        rooted().gradient()


def test_a_step_beyond_float32_is_noticed_at_once():
    x, y = rows()
    with pytest.raises(NonFiniteError, match=r"epoch 1, batch 1: the last step left '0.weight' not finite"):
        solver(network(), x, y, lr=1e30).solve(0.01)


def test_a_loss_that_overflows_alone_says_how_large_outputs_and_targets_are():
    x, y = rows()
    with pytest.raises(
        NonFiniteError, match=r"every layer's output is finite, the loss is not; .* targets \S+e\+25"
    ):
        objective(network(), x, y * 1e25).gradient("at the start")


def test_names_are_the_users_behind_a_standardisation_layer():
    x, y = rows()
    net = with_standardization(network(Exponential()), torch.zeros(4), torch.full((4,), 1e-4))
    with pytest.raises(NonFiniteError, match=r"layer '1' \(Exponential\)"):
        solver(net, x, y).solve(0.01)


def test_nan_in_a_batch_is_an_error_of_the_data():
    x, y = rows()
    tried = solver(network(), x, y)
    x[5, 2] = math.nan
    with pytest.raises(DataError, match="input 1 holds NaN or Inf in row 6 of the split; correct the data"):
        tried.polish(0.01)
    x[5, 2], y[9] = 0.0, math.inf
    with pytest.raises(DataError, match="the target is NaN or Inf in row 10 of the split"):
        tried.polish(0.01)


def test_the_refit_stops_with_its_own_mend():
    x, y = rows()
    with pytest.raises(
        NonFiniteError, match=r"refit, epoch \d, batch \d: .*; lower refit.lr \(now 1e\+15\) or allow"
    ):
        refitted(network(), x, y, lr=1e15)


def test_finite_numbers_whose_norm_overflows_are_finite():
    assert all_finite([torch.full((3,), 1e30), None])
    assert not all_finite([torch.tensor([1.0, math.inf])])
    assert not all_finite([torch.zeros(2), torch.tensor(math.nan)])
    assert all_finite([])


# --- halving ---------------------------------------------------------------------------------


def test_a_point_that_overflows_begins_anew_with_half_the_step():
    x, y = rows()
    net = network(Exponential())
    tried = solver(net, x, y, optimizer="sgd", lr=10.0, max_lr_halvings=20)
    before = tried.objective.loss()
    assert 1 <= tried.solve(1e-4) <= 20
    assert all_finite(net.parameters())
    assert tried.objective.loss() < before


def test_halvings_run_out_and_the_error_says_so():
    x, y = rows()
    with pytest.raises(
        NonFiniteError, match=r"or allow train.max_lr_halvings\. The step size was halved 2 times\.$"
    ):
        solver(network(), x, y, lr=1e30, max_lr_halvings=2).solve(0.01)


def test_a_refit_that_diverges_goes_on_with_half_the_step():
    x, y = rows()
    result = refitted(network(), x, y, lr=1e15, max_lr_halvings=80, epochs=2)
    assert 1 <= result.halvings <= 80
    assert all_finite(result.network.parameters())


def test_a_point_that_begins_anew_ends_as_one_with_half_the_step():
    x, y = rows()
    one, other = network(), network()
    halved = solver(one, x, y, lr=1e30, max_lr_halvings=100).solve(0.01)
    assert halved > 0
    assert solver(other, x, y, lr=1e30 * 0.5**halved).solve(0.01) == 0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_full_batch_steps_go_back_where_an_extrapolated_point_is_not_finite():
    """Minimise w**2 where beyond |w| = 3 nothing is finite, from a start whose momentum would carry it there."""
    x, y = rows()
    target = objective(network(), x, y)
    (weight, *_), steps = target.blocks.values, []

    def gradient():
        steps.append(weight.clone())
        if len(steps) == 4:  # once, as an extrapolation would
            raise NonFiniteError("here.")
        return target.gradient()

    AcceleratedProximalGradient(target.at(0.01), gradient, target.loss).run(8)
    assert len(steps) == 9
    assert not torch.equal(steps[3], steps[4])  # from the last step, not from beyond it
    assert all_finite(target.network.parameters())


# --- lambda_max, metrics, probes -------------------------------------------------------------


def test_units_dead_at_zero_still_give_a_lambda_max():
    x, y = rows()
    net = network()
    nn.init.constant_(net[0].bias, -0.1)  # with its inputs at zero every unit is dead
    net[0].weight.data.mul_(3)
    target = objective(net, x, y)
    assert lambda_max(target) > 0


def test_a_network_that_reads_nothing_is_refused():
    x, y = rows()
    target = objective(network(), x, y)
    nn.init.zeros_(target.network[2].weight)
    with pytest.raises(ModelError, match="No gradient reaches a group under the penalty"):
        lambda_max(target)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_r2_does_not_depend_on_the_unit_of_the_target(unit):
    g = torch.Generator().manual_seed(0)
    target = torch.randn(30, generator=g) * unit
    output = target + 0.3 * unit * torch.randn(30, generator=g)
    expected = r2_score(target.double().numpy(), output.double().numpy())
    assert REGRESSION.metric("r2", output, target) == pytest.approx(expected, rel=1e-9)


def test_probes_are_of_the_columns_scale_and_finite():
    x = torch.stack([torch.randn(50) * s for s in (1e-30, 1.0, 1e37)] + [torch.full((50,), 0.1)], dim=1)
    (noise,) = random_like([x], [1], 200, 0)
    assert bool(torch.isfinite(noise).all())
    spread = noise.double().std(dim=0)
    assert 1e-30 < float(spread[0]) < 1e-29
    assert 1e-3 < float(spread[3]) < 1e-2
