"""Whole runs on degenerate networks, data and recipes: a right result, or one line that says what is wrong."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

import glprune
from glprune.errors import DataError, GlpruneError, ModelError, NonFiniteError, RecipeError, TargetError

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Exponential(nn.Module):
    def forward(self, x):
        return torch.exp(x)


def build(inputs=4, hidden=6, outputs=1):
    body = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(hidden, outputs))


def exponential(inputs=4):
    return nn.Sequential(nn.Linear(inputs, 6), Exponential(), nn.Linear(6, 1))


def rows(split):
    g = torch.Generator().manual_seed(("train", "valid", "test").index(split))
    x = torch.randn(40, 4, generator=g)
    return x, x[:, 0] - x[:, 1]


def loader_of(label):
    def load(split):
        x, z = rows(split)
        return DataLoader(TensorDataset(x, label(x, z, split)), batch_size=16)
    return load


plain = loader_of(lambda x, z, split: (z > 0).long())
one_class_in_valid = loader_of(lambda x, z, split: (z > 0).long() * (split != "valid"))
below_zero = loader_of(lambda x, z, split: (z > 0).long() - 1)
beyond_two = loader_of(lambda x, z, split: (z > 0).long() * 2)
seven = loader_of(lambda x, z, split: (z > 0).long() * 7)
fractions = loader_of(lambda x, z, split: z.sigmoid())
constant = loader_of(lambda x, z, split: z * 0 + 3 if split == "test" else z)
huge = loader_of(lambda x, z, split: z * 1e25)


class Spoilt:
    # finite when it is first read, later not
    def __init__(self, split):
        self.split, self.reads = split, 0

    def __iter__(self):
        self.reads += 1
        for number, (x, y) in enumerate(plain(self.split)):
            if self.reads > 4 and self.split == "train" and number == 1:
                x[5, 1] = float("nan")
            yield x, y


def spoilt(split):
    return Spoilt(split)
"""
RECIPE = {
    "task": "binary",
    "model": {"factory": "net.py:build", "arguments": {}},
    "data": {"file": "data.parquet", "target": "y"},
    "penalty": {"inputs": {"strength": 1.0}, "hidden": {"strength": 0.3}},
    "target": {"max_features": 2},
    "train": {
        "epochs": 2,
        "n_lambdas": 3,
        "batch_size": 32,
        "n_stages": 1,
        "full_batch_steps": 5,
        "lr": 0.01,
    },
    "refit": {"epochs": 2},
    "export": {"exporter": "torchscript"},
}
REGRESSION = {"task": "regression"}


def merged(base, changes):
    """Nested mappings as one; a loader stands alone in ``data``."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(result.get(key), dict) and isinstance(value, dict) and "loader" not in value
        result[key] = merged(result[key], value) if both else value
    return result


def table(rows=120, columns=4):
    """Standard normal columns x0, x1 and so on, whose first two decide the class."""
    x = np.random.default_rng(0).normal(size=(rows, columns))
    z = x[:, 0] - x[:, 1 % columns]
    return x, z, np.where(z > 0, "yes", "no")


def thirds(rows):
    return np.resize(["train", "valid", "test"], rows)


class Problem:
    """A run of its own: recipe, data and network changed from the plain ones."""

    def __init__(self, folder, recipe=None, x=None, y=None, division=None, spoil=None):
        self.folder = folder
        plain_x, _, plain_y = table()
        x, y = plain_x if x is None else x, plain_y if y is None else y
        columns = {f"x{n}": pa.array(x[:, n]) for n in range(x.shape[1])} | {"y": pa.array(y)}
        recipe = merged(RECIPE, recipe or {})
        if division is not None:
            columns["part"] = pa.array(division)
            recipe = merged(recipe, {"data": {"split": {"column": "part"}}})
        recipe = merged(
            recipe, {"model": {"arguments": {"inputs": x.shape[1]} | recipe["model"]["arguments"]}}
        )
        pq.write_table(pa.table(columns), folder / "data.parquet")
        (folder / "net.py").write_text(CODE)
        with (folder / "recipe.yaml").open("w") as stream:
            YAML(typ="safe", pure=True).dump(recipe, stream)
        scope: dict = {}
        exec(CODE, scope)
        torch.manual_seed(0)
        network = scope[recipe["model"]["factory"].partition(":")[2]](**recipe["model"]["arguments"])
        if spoil is not None:
            with torch.no_grad():
                spoil(network)
        torch.save(network.state_dict(), folder / "model.pt")

    def run(self):
        files = (self.folder / name for name in ("recipe.yaml", "model.pt", "out"))
        return glprune.run(*files, accept_original=True).report  # its networks are not trained


def zero(*layers):
    def spoil(network):
        for layer in layers:
            for parameter in network[layer].parameters():
                parameter.zero_()

    return spoil


def dead_at_zero(network):
    network[0].bias.fill_(-0.3)


def overflowing(network):
    network[2].weight.mul_(1e30)
    network[4].weight.mul_(1e30)


def scaled_column(factor):
    x, _, y = table()
    x[:, 1] *= factor
    return {"x": x, "y": y}


def constant_columns(*columns):
    x, _, y = table()
    x[:, list(columns)] = 3.0
    return {"x": x, "y": y}


def class_missing(part):
    x, _, y = table()
    division = thirds(120)
    y[division == part] = "no"
    return {"x": x, "y": y, "division": division}


def values(factor=1.0):
    x, z, _ = table()
    return {"x": x, "y": z * factor, "recipe": REGRESSION}


def loaded(name, **changes):
    return {"recipe": {"data": {"loader": f"net.py:{name}"}} | changes}


UNREAD = "No gradient reaches a group under the penalty"
REFUSED = {
    "all weights zero": (ModelError, UNREAD, {"spoil": zero(0, 2, 4)}),
    "first layer zero": (ModelError, UNREAD, {"spoil": zero(0)}),
    "hidden layer zero": (ModelError, UNREAD, {"spoil": zero(2)}),
    "constant output": (ModelError, UNREAD, {"spoil": zero(4)}),
    "constant output, sparse group LASSO": (
        ModelError,
        UNREAD,
        {"spoil": zero(4), "recipe": {"penalty": {"kind": "sparse_group_lasso"}}},
    ),
    "constant output, group MCP": (
        ModelError,
        UNREAD,
        {"spoil": zero(4), "recipe": {"penalty": {"kind": "group_mcp"}}},
    ),
    "constant output to follow": (
        ModelError,
        "The network's output is the same for all training rows",
        {
            "spoil": zero(4),
            "recipe": {"task": "distillation", "data": {"target": None, "exclude": ["y"]}},
        },
    ),
    "weights whose products overflow": (
        ModelError,
        r"NaN or Inf on the \w+.*: the output of layer '4' \(Linear\) is not finite in row 1, ",
        {"spoil": overflowing},
    ),
    "weights that are NaN": (ModelError, "NaN", {"spoil": lambda network: network[0].weight.fill_(np.nan)}),
    "one column": (
        ModelError,
        "The input columns cannot be removed: there is one only, and an input needs one",
        {"x": table(columns=1)[0], "recipe": {"target": {"max_features": 1}}},
    ),
    "one class in a split": (DataError, "the valid split holds only class 'no'", class_missing("valid")),
    "no validation rows": (
        DataError,
        "the valid split has 0 rows; it needs at least 2",
        {"division": np.where(thirds(120) == "valid", "train", thirds(120))},
    ),
    "one row in all": (DataError, "target 'y' has 1 value", {"x": table(1)[0], "y": table(1)[2]}),
    "two rows in all": (DataError, "split has 0 rows", {"x": table(2)[0], "y": np.array(["yes", "no"])}),
    "three labels of two": (
        DataError,
        r"has 3 values \('a', 'b', 'c'\); task: binary needs two",
        {"y": np.resize(["a", "b", "c"], 120)},
    ),
    "one target value": (
        DataError,
        "the train split holds the target 3 only",
        values() | {"y": np.full(120, 3.0)},
    ),
    "one target value in a split": (
        DataError,
        "test split holds the target 3 only",
        loaded("constant", **REGRESSION),
    ),
    "targets whose squares overflow": (
        NonFiniteError,
        r"path 1: .*every layer's output is finite, the loss is not; .* targets \S+e\+30",
        values(1e30),
    ),
    "targets whose squares overflow, from a loader": (
        NonFiniteError,
        "the loss is not",
        loaded("huge", **REGRESSION),
    ),
    "a target that is NaN": (DataError, "target 'y' is empty in 120 rows, first in row 1", values(np.nan)),
    "a column that is NaN": (DataError, "'x1' is not finite: 120 empty, NaN or Inf", scaled_column(np.nan)),
    "a constant column, standardised": (
        DataError,
        "column 'x2' is constant on the training rows, so it cannot be standardised",
        constant_columns(2) | {"recipe": {"data": {"standardize": "train"}}},
    ),
    "a column of denormal spread, standardised": (
        DataError,
        "column 'x1' has a standard deviation of 1e-44 on the training rows, which float32 cannot divide by",
        scaled_column(1e-44) | {"recipe": {"data": {"standardize": "train"}}},
    ),
    "loader: one class in a split": (
        DataError,
        "the valid split holds class '0' only",
        loaded("one_class_in_valid"),
    ),
    "loader: class -1": (DataError, "class -1 is below 0", loaded("below_zero")),
    "loader: a third class": (
        DataError,
        "the loader yields class 2, data.classes lists 2",
        loaded("beyond_two"),
    ),
    "loader: classes in fractions": (
        DataError,
        "class label .* in row 1 is not a whole number",
        loaded("fractions"),
    ),
    "a target beyond float32": (DataError, "float32", values(1e39)),
    "loader: class 7 of 3": (
        ModelError,
        r"shape \(16, 3\); a multiclass task of 8 classes needs \(rows, 8\)",
        loaded("seven", task="multiclass", model={"arguments": {"outputs": 3}}),
    ),
    "loader: NaN once training began": (
        DataError,
        r"lambda \S+, epoch 1, batch 2: input 1 holds NaN or Inf in row 6 of its 16; correct the data",
        loaded("spoilt"),
    ),
    "no feature": (
        RecipeError,
        "target.max_features should be at least 1",
        {"recipe": {"target": {"max_features": 0}}},
    ),
    "strength beyond single precision": (
        RecipeError,
        "penalty.inputs.strength should be at most",
        {"recipe": {"penalty": {"inputs": {"strength": 1e300}}}},
    ),
    "strength lost in single precision": (
        RecipeError,
        "penalty.inputs.strength should be at least",
        {"recipe": {"penalty": {"inputs": {"strength": 1e-300}}}},
    ),
    "a lambda beyond all": (
        TargetError,
        "removes every input",
        {"recipe": {"target": {"max_features": None, "lambda": 1e9}}},
    ),
    "a step of the path too large": (
        NonFiniteError,
        r"path 1: lambda \S+, epoch 1, batch \d: .*'0.weight' not finite; lower train.lr \(now 1e\+30\)",
        {"recipe": {"train": {"lr": 1e30}}},
    ),
    "a step of sgd too large": (
        NonFiniteError,
        r"path 1: lambda \S+, epoch 1, batch \d: ",
        {"recipe": {"train": {"lr": 1e6, "optimizer": "sgd"}}},
    ),
    "activations that overflow": (
        NonFiniteError,
        r"path 1: lambda \S+, epoch \d, batch \d: the output of layer '1' \(Exponential\) is not finite in row",
        {"recipe": {"model": {"factory": "net.py:exponential"}, "train": {"lr": 30.0}}},
    ),
    "a refit too large": (
        NonFiniteError,
        r"refit 1: refit, epoch \d, batch \d: the output of layer '4'",
        values() | {"recipe": {"task": "regression", "refit": {"lr": 1e15, "epochs": 5}}},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_refused_in_one_line(name, tmp_path):
    kind, message, changes = REFUSED[name]
    problem = Problem(tmp_path, **changes)
    with pytest.raises(GlpruneError, match=message) as caught:
        problem.run()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert str(caught.value).endswith((".", ")"))


def kept(report):
    return [f.name for f in report.features if f.status == "kept"]


PRUNED = {
    "units dead at zero": {"spoil": dead_at_zero},
    "weights of the first layer zero, its biases not": {"spoil": lambda network: network[0].weight.zero_()},
    "a constant group": constant_columns(2, 3)
    | {"recipe": {"data": {"feature_groups": {"g": ["x2", "x3"]}}}},
    "columns of 1e38 and 1e-30, standardised": {
        "x": table()[0] * [1.0, 1e38, 1e-30, 1.0],
        "recipe": {"data": {"standardize": "train"}},
    },
    "two rows in each split": {"x": table(6)[0], "y": np.repeat(["a", "b"], 3), "division": thirds(6)},
}


@pytest.mark.parametrize("name", PRUNED)
def test_what_is_merely_odd_is_pruned_and_certified(name, tmp_path):
    report = Problem(tmp_path, **PRUNED[name]).run()
    assert len(kept(report)) <= 2
    assert report.removal.difference <= report.removal.tolerance
    assert report.path[0].lam > 0
    assert all(p.kkt_zero >= 0 for p in report.path)
    assert all(m.name != "auroc" or 0 <= m.final <= 1 for m in report.performance)


def test_tiny_targets_are_measured_in_their_own_unit(tmp_path):
    """The sums of squares are near 1e-58; the untrained network, off by all of that, explains nothing."""
    report = Problem(tmp_path, **values(1e-30)).run()
    r2 = next(m for m in report.performance if m.name == "r2")
    assert r2.original < -1e50


def test_the_report_says_how_often_steps_were_halved(tmp_path):
    steps = {"train": {"lr": 30.0, "max_lr_halvings": 20}, "refit": {"lr": 1e3, "max_lr_halvings": 30}}
    target = {"target": {"max_features": None, "lambda": 1e-5}}
    changes = {"model": {"factory": "net.py:exponential"}, "penalty": {"hidden": None}} | target | steps
    report = Problem(tmp_path, recipe=changes).run()
    assert report.lr_halvings is not None
    assert report.lr_halvings.path >= 1
    assert report.lr_halvings.refit >= 1
    said = [w for w in report.warnings if f"was halved {report.lr_halvings.path} times on the path" in w]
    assert len(said) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"halved {report.lr_halvings.path} times" in page
