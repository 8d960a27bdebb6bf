"""The scikit-learn selector: its conventions, its choice, frames, pipelines and networks of others."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from glprune.integrations.sklearn import GroupLassoPruner
from tests.integration_packages import need
from tests.networks import fit_binary

QUICK = {
    "train": {"epochs": 2, "n_lambdas": 3, "full_batch_steps": 2, "n_stages": 1, "lr": 0.02},
    "refit": {"epochs": 2},
}
NAMES = ["age", "income", "noise_a", "noise_b", "noise_c", "noise_d"]


def perceptron(n_features, n_outputs):
    return nn.Sequential(nn.Linear(n_features, 8), nn.ReLU(), nn.Linear(8, n_outputs))


def selector(network=perceptron, **more):
    return GroupLassoPruner(
        network, pretrain={"epochs": 30, "lr": 0.02}, random_state=0, **(QUICK | {"max_features": 2} | more)
    )


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    return x, x[:, 0] + x[:, 1]


@pytest.fixture(scope="module")
def fitted(rows):
    x, z = rows
    return selector().fit(x, z > 0)


class Perceptron:
    """A maker whose name says no address: test processes compare the names of their tests."""

    def __call__(self, n_features, n_outputs):
        return perceptron(n_features, n_outputs)

    def __repr__(self):
        return "Perceptron()"


@parametrize_with_checks(
    [
        GroupLassoPruner(
            Perceptron(),
            standardize=True,
            train={"epochs": 2, "n_lambdas": 3, "full_batch_steps": 10, "n_stages": 1, "lr": 0.1},
            refit={"epochs": 0},
            pretrain={"epochs": 2},
        )
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_the_two_columns_that_matter_stay_and_zeros_are_certified(fitted, rows):
    x, _ = rows
    assert fitted.get_support(indices=True).tolist() == [0, 1]
    assert fitted.kkt_zero_ < 0.05
    assert fitted.kkt_active_ == max(p.kkt_active for p in fitted.path_ if p.selected) > 0
    assert fitted.difference_ <= 1e-5
    slim = fitted.transform(x)
    assert slim.shape == (300, 2)
    with torch.no_grad():
        assert fitted.network_(torch.from_numpy(slim)).shape == (300, 1)
    back = fitted.inverse_transform(slim)
    np.testing.assert_array_equal(back[:, :2], x[:, :2])
    assert not back[:, 2:].any()


def test_the_path_is_the_one_of_a_run(fitted):
    lams = [p.lam for p in fitted.path_]
    assert lams == sorted(lams)
    assert sum(p.selected for p in fitted.path_) == 1
    assert next(p.features for p in fitted.path_ if p.selected) == 2


def test_a_network_trained_on_scaled_columns_is_refused_on_raw_ones(rows):
    x, z = rows
    network = nn.Linear(x.shape[1], 1)
    fit_binary(network, (torch.from_numpy(x),), torch.from_numpy(z > 0).float(), 100)
    raw = 100 * x[:, ::-1].copy() + 30
    with pytest.raises(
        ValueError, match=r"does not look like the one that was trained: .* accept_original=True"
    ):
        selector(network).fit(raw, z > 0)
    accepted = selector(network).set_params(accept_original=True).fit(raw, z > 0)
    assert accepted.get_support().sum() == 2
    assert selector(network).fit(x, z > 0).get_support(indices=True).tolist() == [0, 1]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_keep_their_names(rows, fitted, library):
    x, z = rows
    table = need(library).DataFrame(dict(zip(NAMES, x.T, strict=True)))
    made = selector().fit(table, z > 0)
    assert made.get_feature_names_out().tolist() == ["age", "income"]
    assert made.get_support().tolist() == fitted.get_support().tolist()
    need("polars")
    for kind in ("pandas", "polars"):
        assert list(made.set_output(transform=kind).transform(table).columns) == ["age", "income"]


def test_columns_of_a_group_live_and_die_together(rows):
    x, z = rows
    groups = {"first": [0, 5], "rest": ["x2", "x3"]}
    made = selector(groups=groups, max_features=2).fit(x, z > 0)
    assert made.get_support().tolist() == [True, True, False, False, False, True]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"g": ["absent"]}, "not a column"),
        ({"g": [9]}, "not a column"),
        ({"g": [0], "h": ["x0"]}, "in 'g' and in"),
    ],
)
def test_groups_that_do_not_fit_are_refused(rows, groups, said):
    x, z = rows
    with pytest.raises(ValueError, match=said):
        selector(groups=groups).fit(x, z > 0)


def test_a_trained_network_is_used_as_it_is_and_left_as_it_is(rows, fitted):
    x, z = rows
    torch.manual_seed(0)
    network = perceptron(6, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(torch.from_numpy(x))[:, 0], torch.from_numpy(z)).backward()
        optimizer.step()
    before = [p.detach().clone() for p in network.parameters()]
    made = selector(network).fit(x, z)
    assert made.get_support(indices=True).tolist() == [0, 1]
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


class Skorchlike(BaseEstimator):
    """Duck-typed: fit leaves module_."""

    def __init__(self, epochs=40):
        self.epochs = epochs

    def fit(self, x, y):
        torch.manual_seed(0)
        self.module_ = perceptron(x.shape[1], 2)
        optimizer = torch.optim.Adam(self.module_.parameters(), lr=0.05)
        for _ in range(self.epochs):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.module_(torch.from_numpy(x)), torch.from_numpy(y))
            loss.backward()
            optimizer.step()
        return self


def test_an_estimator_with_a_module_is_fitted_where_it_is_not_yet(rows):
    x, z = rows
    unfitted = Skorchlike()
    assert selector(unfitted).fit(x, z > 0).get_support(indices=True).tolist() == [0, 1]
    assert not hasattr(unfitted, "module_")
    already = Skorchlike().fit(x, (z > 0).astype(np.int64))
    already.fit = None  # it must not be asked again
    assert selector(already).fit(x, z > 0).get_support(indices=True).tolist() == [0, 1]


def test_a_classifier_of_skorch_is_pruned(rows):
    skorch = need("skorch")
    x, z = rows
    torch.manual_seed(0)
    net = skorch.NeuralNetClassifier(
        perceptron(6, 2), criterion=nn.CrossEntropyLoss, max_epochs=15, lr=0.2, verbose=0, train_split=None
    )
    assert selector(net).fit(x, z > 0).get_support(indices=True).tolist() == [0, 1]


def test_it_works_in_a_pipeline_that_is_cloned(rows):
    x, z = rows
    pipeline = clone(make_pipeline(StandardScaler(), selector(), LogisticRegression()))
    assert pipeline.fit(x, z > 0).score(x, z > 0) > 0.95
    assert pipeline[:-1].get_feature_names_out().tolist() == ["x0", "x1"]


@pytest.mark.parametrize(
    "more", [{"max_drop": 0.05}, {"lam": 1e-9}, {"max_features": 0.5}, {"max_features": None}]
)
def test_other_targets(rows, more):
    x, z = rows
    count = int(selector(**({"max_features": None} | more)).fit(x, z > 0).get_support().sum())
    assert count == {"max_drop": count, "lam": 6}.get(next(iter(more)), 3)
    assert count <= 6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"network": 3}, "pass a torch"),
        ({"network": lambda n, m: "net"}, "pass a torch"),
        ({"network": nn.Linear(5, 1)}, "does not run"),
        ({"max_features": 1, "lam": 0.1}, "exactly one of"),
        ({"train": {"epoch": 1}}, "epoch"),
        ({"task": "ranking"}, "task"),
    ],
)
def test_what_does_not_fit_is_a_value_error(rows, more, said):
    x, z = rows
    with pytest.raises(ValueError, match=said):
        selector(**({"network": perceptron} | more)).fit(x, z > 0)


def test_the_same_seed_selects_the_same_whatever_the_caller_drew(rows, fitted):
    x, z = rows
    torch.manual_seed(99)
    again = selector().fit(x, z > 0)
    assert [p.norms for p in again.path_] == [p.norms for p in fitted.path_]
