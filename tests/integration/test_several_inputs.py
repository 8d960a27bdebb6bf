"""Networks with several inputs and outputs, and runs without labels, end to end."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import glprune
from glprune.schema.recipe_loading import load_recipe

NETWORKS = """
from dataclasses import dataclass
import torch
from torch import nn

class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(4, 3)])
        self.first = nn.Linear(4 + 6, 8)
        self.out = nn.Linear(8, 1)
    def forward(self, numbers, codes):
        parts = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        return self.out(torch.relu(self.first(torch.cat([numbers, *parts], dim=1))))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 1)
    def forward(self, a, b):
        return self.out(torch.relu(self.a(a) + self.b(b)))

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b, self.out = nn.LayerNorm(3), nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 1)
    def forward(self, a, b):
        return self.out(torch.relu(self.a(self.norm(a)) + self.b(b)))

@dataclass
class Heads:
    aux: torch.Tensor
    logit: torch.Tensor
    unused: torch.Tensor | None = None

class Many(nn.Module):
    def __init__(self, form="dict"):
        super().__init__()
        self.form = form
        self.body, self.head, self.aux = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 3)
    def forward(self, x):
        h = torch.tanh(self.body(x))
        aux, logit = self.aux(h), self.head(h)
        return {"dict": {"aux": aux, "logit": logit, "none": None}, "tuple": (aux, [logit, None]),
                "dataclass": Heads(aux, logit)}[self.form]

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 10), nn.Linear(10, 4)
    def forward(self, ids, mask):
        h = self.down(torch.relu(self.up(self.table(ids))))
        return (h * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
"""
FAST = """
train: {epochs: 2, n_lambdas: 5, full_batch_steps: 2, lambda_min_ratio: 0.1}
refit: {epochs: 2}
"""
ROWS = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(ROWS, 6))
    columns = {f"n{i}": numbers[:, i] for i in range(6)}
    columns |= {"c0": rng.integers(0, 5, ROWS), "c1": rng.integers(0, 4, ROWS)}
    columns["y"] = np.where(numbers[:, 0] + 0.3 * columns["c0"] > 0.5, "yes", "no")
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "network.py").write_text(NETWORKS)
    (folder / "loader.py").write_text(LOADER)
    return folder


LOADER = """
import torch
def batches(split):
    g = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
    for _ in range(4):
        yield torch.randint(0, 11, (10, 7), generator=g), (torch.rand(10, 7, generator=g) > 0.3).long()
def with_first(mask):
    mask[:, 0] = 1
    return mask
def mappings(split):
    return [{"mask": with_first(m), "ids": i} for i, m in batches(split)]
def pairs(split):
    return [(i, with_first(m)) for i, m in batches(split)]
def labelled(split):
    return [((i, with_first(m)), "anything") for i, m in batches(split)]
"""


def network_of(name, **arguments):
    scope: dict = {"__name__": "networks"}
    import sys
    import types

    module = sys.modules.setdefault("networks", types.ModuleType("networks"))
    scope = module.__dict__
    exec(NETWORKS, scope)
    torch.manual_seed(0)
    return scope[name](**arguments)


def prepared(folder, name, text, **arguments):
    """A recipe file and saved weights of one of the networks above."""
    torch.save(network_of(name, **arguments).state_dict(), folder / f"{name}.pt")
    path = folder / f"{name}.yaml"
    path.write_text(text + FAST)
    return path, folder / f"{name}.pt"


def run(folder, name, text, out, events=None, **arguments):
    path, model = prepared(folder, name, text, **arguments)
    listener = events.append if events is not None else None
    untrained = {"accept_original": True}
    return glprune.run(path, model, folder / out, overwrite=True, on_event=listener, **untrained)


def rows_of(folder, names, dtype):
    table = pq.read_table(folder / "data.parquet")
    return np.stack([table[n].to_numpy() for n in names], axis=1).astype(dtype)


MIXED = """
task: binary
model:
  factory: "network.py:Mixed"
  inputs:
    - {name: numbers, columns: [n0, n1, n2, n3]}
    - {name: codes, columns: ["c*"], dtype: int}
data: {file: data.parquet, target: y, standardize: train}
target: {max_features: 4}
search: path
"""


@pytest.fixture(scope="module")
def mixed(folder):
    events = []
    return run(folder, "Mixed", MIXED, "mixed", events), events


def test_numbers_and_codes_run_end_to_end_and_the_file_takes_both(mixed, folder):
    result, _ = mixed
    numbers, codes = result.report.export.inputs
    assert (numbers.name, numbers.dtype, codes.name, codes.dtype) == ("numbers", "float32", "codes", "int64")
    kept = [f for f in result.report.features if f.status == "kept"]
    assert numbers.columns == [f.name for f in kept if f.input == "numbers"]
    assert codes.columns == [f.name for f in kept if f.input == "codes"]
    assert 0 < len(kept) <= 4
    network = glprune.load(result.bundle, lambda: network_of("Mixed"))
    feed = {
        "numbers": rows_of(folder, numbers.columns, np.float32),
        "codes": rows_of(folder, codes.columns, np.int64),
    }
    expected = ort.InferenceSession(result.bundle / "model.onnx").run(None, feed)[0]
    with torch.no_grad():
        found = network(*map(torch.from_numpy, feed.values()))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_onnx_file_names_the_features_of_every_input(mixed):
    result, _ = mixed
    model = onnx.load(result.bundle / "model.onnx")
    props = {p.key: p.value for p in model.metadata_props}
    assert [(i["name"], i["columns"]) for i in json.loads(props["glprune.inputs"])] == [
        (i.name, i.columns) for i in result.report.export.inputs
    ]


def test_the_page_lists_the_columns_of_every_input(mixed):
    page = (mixed[0].bundle / "report.html").read_text()
    assert "Columns of <code>numbers</code>" in page
    assert "Columns of <code>codes</code>" in page


PAIR = """
task: binary
model:
  factory: "network.py:{name}"
  inputs: [{{name: a, columns: [n3, n0, n1]}}, {{name: b, columns: [n4, n5]}}]
data: {{file: data.parquet, target: y, standardize: train, feature_groups: {{both: [n4, n5]}}}}
target: {target}
penalty: {{inputs: {{strength: 1}}, hidden: {{strength: 0.1}}}}
export: {{exporter: torchscript}}
"""


def test_features_of_two_inputs_share_one_path_and_one_numbering(folder):
    result = run(folder, "Pair", PAIR.format(name="Pair", target="{max_features: 2}"), "pair")
    report = result.report
    assert [(f.name, f.input, f.columns) for f in report.features] == [
        ("n3", "a", ["n3"]),
        ("n0", "a", ["n0"]),
        ("n1", "a", ["n1"]),
        ("both", "b", ["n4", "n5"]),
    ]
    assert sum(f.status == "kept" for f in report.features) <= 2
    a, b = report.export.inputs
    for feature in report.features:
        if feature.status == "kept":
            columns = (a if feature.input == "a" else b).columns
            assert [columns[n] for n in feature.input_columns] == feature.columns[
                : len(feature.input_columns)
            ]
    feed = {i.name: rows_of(folder, i.columns, np.float32) for i in (a, b)}
    network = glprune.load(result.bundle, lambda: network_of("Pair"))
    expected = ort.InferenceSession(result.bundle / "model.onnx").run(None, feed)[0]
    with torch.no_grad():
        np.testing.assert_allclose(network(*map(torch.from_numpy, feed.values())), expected, atol=1e-5)


def test_an_input_whose_features_all_die_keeps_one_column_and_the_report_says_so(folder):
    text = PAIR.format(name="Pair", target="{max_features: 2}").replace(
        ", feature_groups: {both: [n4, n5]}", ""
    )
    path, _ = prepared(folder, "Pair", text)
    network = network_of("Pair")
    torch.nn.init.zeros_(network.b.weight)
    torch.save(network.state_dict(), folder / "zero.pt")
    changes = [
        "target={lambda: 0.05}",
        "train.epochs=0",
        "train.full_batch_steps=1",
        "train.lambda_min_ratio=0.5",
    ]
    recipe = load_recipe(path, changes)
    result = glprune.run(recipe, folder / "zero.pt", folder / "idle", accept_original=True)
    assert all(f.norm_selected == 0 for f in result.report.features if f.input == "b")
    assert any(f.norm_selected > 0 for f in result.report.features if f.input == "a")
    assert result.report.export.inputs[1].columns == ["n4"]
    assert any(
        "All features of input 'b' became zero; its first column is kept" in w for w in result.report.warnings
    )


@pytest.mark.slow
def test_original_signature_takes_all_columns_of_every_input(folder):
    text = PAIR.format(name="Pair", target="{max_features: 2}").replace(
        "exporter: torchscript", "signature: original"
    )
    result = run(folder, "Pair", text, "wide")
    assert [i.columns for i in result.report.export.inputs] == [["n3", "n0", "n1"], ["n4", "n5"]]
    session = ort.InferenceSession(result.bundle / "model.onnx")
    assert [i.shape[1] for i in session.get_inputs()] == [3, 2]


def test_a_second_path_over_hidden_units_follows_with_several_inputs(folder):
    text = PAIR.format(name="Pair", target="{max_features: 2, max_hidden: 2}")
    result = run(folder, "Pair", text, "staged")
    assert result.report.stages[-1].penalised == ["hidden"]
    assert sum(h.after for h in result.report.hidden) <= 2


def test_an_input_that_cannot_be_cut_stays_with_a_note_and_the_other_is_pruned(folder):
    events = []
    text = PAIR.format(name="Half", target="{max_features: 4}").replace(
        ", feature_groups: {both: [n4, n5]}", ""
    )
    result = run(folder, "Half", text, "half", events)
    notes = [e.text for e in events if isinstance(e, glprune.runtime.events.Notice)]
    assert any("input 'a' cannot be removed" in n and "LayerNorm" in n for n in notes)
    assert any("input 'a' cannot be removed" in w for w in result.report.warnings)
    own = [f for f in result.report.features if f.input == "a"]
    assert [f.status for f in own] == ["kept"] * 3
    assert [f.lambda_exit for f in own] == [None] * 3


MANY = """
task: binary
model:
  factory: "network.py:Many"
  arguments: {{form: {form}}}
  prediction: {prediction}
data: {{file: data.parquet, target: y, features: ["n*"]}}
target: {{max_features: 3}}
search: path
penalty: {{inputs: {{strength: 1}}, hidden: {{strength: 0.1}}}}
"""


@pytest.mark.parametrize(
    ("form", "prediction", "names"),
    [
        ("dict", "logit", ["aux", "prediction"]),
        ("tuple", "1", ["output_0", "prediction"]),
        ("dataclass", "logit", ["aux", "prediction"]),
    ],
)
def test_all_outputs_are_shipped_and_the_predicted_one_is_trained(folder, form, prediction, names):
    text = MANY.format(form=form, prediction=prediction)
    result = run(folder, "Many", text, form, form=form)
    report = result.report
    assert [o.name for o in report.export.outputs] == names
    assert report.export.outputs[1].meaning == "logit of class 'yes'"
    session = ort.InferenceSession(result.bundle / "model.onnx")
    assert [o.name for o in session.get_outputs()] == names
    (other,) = report.agreement
    assert (other.name, other.trained_for) == (names[0], False)
    assert other.max_change > 0
    assert any(f"Output {names[0]!r} was not trained for" in w for w in report.warnings)
    # the network glprune.load gives back returns what the user's own does
    (columns,) = [i.columns for i in report.export.inputs]
    rows = rows_of(folder, columns, np.float32)
    with torch.no_grad():
        found = glprune.load(result.bundle, lambda form: network_of("Many", form=form))(
            torch.from_numpy(rows)
        )
    aux = found["aux"] if form == "dict" else found[0] if form == "tuple" else found.aux
    np.testing.assert_allclose(aux, session.run(None, {"features": rows})[0], atol=1e-5)


def test_agreement_of_other_outputs_is_that_of_the_files(folder):
    result = run(folder, "Many", MANY.format(form="dict", prediction=1), "agree")
    from sklearn.metrics import r2_score

    from glprune.data import load_data

    data = load_data(load_recipe(folder / "Many.yaml"))
    rows = data.test.inputs[0]
    columns = [data.columns.index(n) for n in result.report.export.inputs[0].columns]
    with torch.no_grad():
        before = network_of("Many")(rows)["aux"].numpy()
    after = ort.InferenceSession(result.bundle / "model.onnx").run(
        ["aux"], {"features": rows.numpy()[:, columns]}
    )[0]
    (found,) = result.report.agreement
    assert found.max_change == pytest.approx(np.abs(after - before).max(), abs=1e-5)
    assert found.r2 == pytest.approx(r2_score(before, after, multioutput="variance_weighted"), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("model.prediction=nope", "no output 'nope'; the network returns 2 outputs: 0 (aux), 1 (logit)"),
        ("model.prediction=2", "no output 2; the network returns 2 outputs"),
        ("model.outputs=[one]", "lists 1 name; the network returns 2 outputs"),
        ("model.prediction=aux", "a binary task needs"),
    ],
)
def test_wrong_outputs_are_refused_in_one_line(folder, change, fragment):
    path, model = prepared(folder, "Many", MANY.format(form="dict", prediction=1))
    with pytest.raises(glprune.GlpruneError) as caught:
        glprune.run(load_recipe(path, [change]), model, folder / "refused")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_outputs_take_the_names_of_the_recipe(folder):
    path, model = prepared(folder, "Many", MANY.format(form="dict", prediction=1))
    recipe = load_recipe(path, ["model.outputs=[side, score]", "model.prediction=score"])
    report = glprune.run(recipe, model, folder / "named").report
    assert [o.name for o in report.export.outputs] == ["side", "score"]
    assert [a.name for a in report.agreement] == ["side"]


def test_a_code_past_the_end_of_its_table_is_one_line(folder):
    path, model = prepared(folder, "Mixed", MIXED.replace('["c*"]', "[c1, c0]"))
    with pytest.raises(glprune.ModelError, match=r"does not run on the data from row .*IndexError") as caught:
        glprune.run(path, model, folder / "codes")
    assert "\n" not in str(caught.value)


FOLLOWED = """
task: distillation
model: {factory: "network.py:Many", outputs: [side, score]}
data: {file: data.parquet, features: ["n*"]}
target: {max_drop: {metric: r2, amount: 0.6}}
penalty: {inputs: {strength: 1}, hidden: {strength: 0.1}}
export: {exporter: torchscript}
"""


@pytest.fixture(scope="module")
def followed(folder):
    return run(folder, "Many", FOLLOWED, "followed")


@pytest.mark.slow
def test_without_labels_the_original_network_is_the_reference(followed, folder):
    report = followed.report
    assert report.task == "distillation"
    assert [m.name for m in report.performance] == ["r2", "rmse", "cosine"]
    assert [m.original for m in report.performance] == pytest.approx([1, 0, 1], abs=1e-4)
    assert report.selection.reference == pytest.approx(1.0, abs=1e-6)
    selected = next(p for p in report.path if p.selected)
    assert selected.refit_metric >= 0.4
    assert [(a.name, a.trained_for) for a in report.agreement] == [("side", True), ("score", True)]
    assert not any("not trained for" in w for w in report.warnings)


def test_agreement_without_labels_is_that_of_the_files(followed, folder):
    """R2 over both outputs, each divided by its spread over the training rows, outputs weighing alike."""
    from glprune.data import load_data

    data = load_data(load_recipe(folder / "Many.yaml"))
    columns = [data.columns.index(n) for n in followed.report.export.inputs[0].columns]
    session = ort.InferenceSession(followed.bundle / "model.onnx")
    rows = data.test.inputs[0]
    after = session.run(None, {"features": rows.numpy()[:, columns]})
    with torch.no_grad():
        teacher = network_of("Many")
        train, before = teacher(data.train.inputs[0]), teacher(rows)
    error = total = 0.0
    for key, found in zip(("aux", "logit"), after, strict=True):
        spread = train[key].var(0, unbiased=False).mean().item() * found.shape[1]
        truth = before[key].numpy()
        error += ((found - truth) ** 2).sum() / spread
        total += ((truth - truth.mean(0)) ** 2).sum() / spread
    r2 = next(m for m in followed.report.performance if m.name == "r2")
    assert r2.final == pytest.approx(1 - error / total, abs=1e-4)


def test_the_report_speaks_of_agreement_never_of_accuracy_reached(followed):
    page = (followed.bundle / "report.html").read_text()
    assert "Agreement with the original network" in page
    assert "Performance on the test split" not in page
    assert "There were no labels" in page


TOKENS = """
task: distillation
model:
  factory: "network.py:Tokens"
  inputs: [{{name: ids, axis: null}}, {{name: mask, axis: null}}]
data: {{loader: "loader.py:{loader}"}}
penalty: {{inputs: null, hidden: {{strength: 1}}}}
target: {{max_drop: {{metric: cosine, amount: 0.2}}}}
export: {{dynamic_axes: {{ids: {{1: length}}, mask: {{1: length}}}}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loader", "exporter"),
    [
        ("mappings", "auto"),
        ("pairs", "torchscript"),
        ("labelled", "torchscript"),
    ],
)
def test_a_loader_without_labels_and_axes_of_any_length(folder, loader, exporter):
    text = TOKENS.format(loader=loader).replace("export: {", f"export: {{exporter: {exporter}, ")
    result = run(folder, "Tokens", text, loader)
    report = result.report
    assert report.features == []
    assert sum(h.after for h in report.hidden) < sum(h.before for h in report.hidden)
    assert [(i.name, i.dtype, i.axis, i.columns) for i in report.export.inputs] == [
        ("ids", "int64", None, []),
        ("mask", "int64", None, []),
    ]
    session = ort.InferenceSession(result.bundle / "model.onnx")
    assert [d for i in session.get_inputs() for d in i.shape] == ["batch", "length"] * 2
    network = glprune.load(result.bundle, lambda: network_of("Tokens"))
    for rows, length in ((1, 3), (5, 12)):
        ids, mask = torch.randint(0, 11, (rows, length)), torch.ones(rows, length, dtype=torch.int64)
        found = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0]
        with torch.no_grad():
            np.testing.assert_allclose(found, network(ids, mask).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("{ids: {2: length}}", "ids.2: input 'ids' has no axis 2; besides the rows it has 1."),
        ("{ids: {-3: length}}", "ids.-3: input 'ids' has no axis -3; besides the rows it has 1."),
        (
            "{ids: {0: length}}",
            "ids.0: axis 0 of 'ids' counts the rows and is of any length anyway; remove it.",
        ),
        (
            "{ids: {-2: length}}",
            "ids.-2: axis -2 of 'ids' counts the rows and is of any length anyway; remove",
        ),
        ("{ids: {1: length, -1: n}}", "ids.-1: axis -1 of 'ids' is named twice; remove it."),
        ("{ids: {1: batch}}", "ids.1: 'batch' is the number of rows; give the axis another label."),
        ("{words: {1: length}}", "no input 'words'; the inputs are ids, mask"),
    ],
)
def test_axes_that_are_not_there_or_not_free_are_refused_with_the_line(folder, axes, message):
    recipe = TOKENS.format(loader="pairs").replace("{ids: {1: length}, mask: {1: length}}", axes)
    with pytest.raises(glprune.RecipeError) as caught:
        run(folder, "Tokens", recipe, "axes")
    assert ".yaml:9: export.dynamic_axes" in str(caught.value)
    assert message in str(caught.value)


def test_axes_of_one_label_must_be_of_one_length(folder):
    from glprune.search.prepare import _check_dynamic_axes

    text = TOKENS.format(loader="pairs")
    (folder / "lengths.yaml").write_text(text)
    recipe = load_recipe(folder / "lengths.yaml")
    with pytest.raises(
        glprune.RecipeError, match="axis 1 of 'mask' is 8 long and axis 1 of 'ids', also 'length', 7;"
    ):
        _check_dynamic_axes(recipe, (torch.zeros(2, 7), torch.zeros(2, 8)))


def test_a_cut_beside_an_input_without_an_axis_is_lossless():
    from glprune.pruning.groups import hidden_groups, input_groups, zero_units_
    from glprune.pruning.planner import plan_units
    from glprune.pruning.removal import remove
    from glprune.pruning.verification import difference, outputs

    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)

        def forward(self, mask, x):
            return self.out(torch.relu(self.first(x))) * mask

    torch.manual_seed(0)
    network, axes = Masked().eval(), (None, -1)
    inputs = (torch.randint(0, 2, (9, 1)), torch.randn(9, 6))
    sets = plan_units(network, inputs, axes, ("mask", "x"))
    assert [(s.name, s.refused) for s in sets] == [("x", None), ("first", None)]
    zero_units_(dict(network.state_dict()), sets[0], torch.tensor([0, 1, 0, 0, 1, 0]).bool())
    groups = [input_groups(sets[0], [(str(i), (i,)) for i in range(6)]), hidden_groups(sets[1])]
    removed = remove(network, groups, inputs, axes)
    assert [c.tolist() for c in removed.columns] == [[], [0, 2, 3, 5]]
    slim = (inputs[0], inputs[1][:, removed.columns[1]])
    assert difference(outputs(network, inputs), outputs(removed.network, slim)) < 1e-5
