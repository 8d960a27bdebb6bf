"""Simpler selections of the shipped size: what they keep, and that their figures are those of their files."""

import json
import shutil

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jsonschema import Draft202012Validator
from sklearn.metrics import roc_auc_score

import glprune
from glprune.data import LoaderSplit, load_data
from glprune.data.dataloader import Fingerprint
from glprune.evaluation import baselines
from glprune.evaluation.permutation_importance import permutation_importance, split_in_memory
from glprune.pruning.groups import group_norms
from glprune.report.html import render_html
from glprune.report.sentences import headline
from glprune.runtime.events import Progress, silent
from glprune.schema.recipe import InputSpec
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Report, report_schema
from glprune.search.prepare import prepare
from glprune.training.refit import Refit
from tests.integration.test_several_inputs import FOLLOWED, PAIR, TOKENS, run
from tests.integration.test_several_inputs import folder as several  # noqa: F401

NETWORK = """
import torch
from torch import nn
def build():
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 1))
class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 5), nn.Linear(5, 2)
    def forward(self, x):
        return self.out(torch.tanh(self.first(x)).mean(1))
def ragged(split):
    g = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
    lengths = (5, 5) if split == "test" else (5, 7)
    return [torch.randn(20, length, 4, generator=g) for length in lengths]
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
target: {max_features: 3}
train: {epochs: 10, n_lambdas: 10, batch_size: all, lambda_min_ratio: 0.05, full_batch_steps: 10}
refit: {epochs: 15, start: trained}
export: {exporter: torchscript}
report: {baselines: true}
seed: 3
"""
HIDDEN = "penalty={inputs: {strength: 1}, hidden: {strength: 2}}"
NAMES = [f"x{i}" for i in range(10)]
PLANTED = {"x0", "x1", "x2"}
DEAD = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target of three features out of ten, and a network that reads some of the others no less; one is dead."""
    folder = tmp_path_factory.mktemp("planted")
    x = np.random.default_rng(0).normal(size=(900, 10))
    z = x[:, 0] + x[:, 1] * x[:, 2]
    columns = {n: x[:, i] for i, n in enumerate(NAMES)} | {"y": np.where(z > 0, "yes", "no")}
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    network = build()
    inputs, target = torch.tensor(x, dtype=torch.float32), torch.tensor(z > 0).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(inputs)[:, 0], target).backward()
        optimizer.step()
        network[0].weight.data[:, DEAD] = 0
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def build():
    scope: dict = {}
    exec(NETWORK, scope)
    return scope["build"]()


def trained(folder):
    network = build()
    network.load_state_dict(torch.load(folder / "model.pt"))
    return network.eval()


def planted(folder, out, *changes, events=None):
    recipe = load_recipe(folder / "recipe.yaml", changes)
    listener = events.append if events is not None else None
    return glprune.run(recipe, folder / "model.pt", folder / out, overwrite=True, on_event=listener)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(folder, told):
    return planted(folder, "out", events=told)


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(baselines, "RANDOM_DRAWS", 2)


def by_name(report):
    return {b.name: b for b in report.baselines.results}


def mean(baseline, metric):
    return next(s.mean for s in baseline.test if s.name == metric)


def sizes_alike(report):
    """Every selection keeps as many features of each input and as many units as the shipped model."""
    owner = {f.name: f.input for f in report.features}
    shipped = [f.input for f in report.features if f.status == "kept"]
    runs = [run for b in report.baselines.results for run in b.runs]
    return bool(runs) and all(
        sorted(owner[n] for n in run.kept) == sorted(shipped)
        and run.hidden == sum(h.after for h in report.hidden)
        for run in runs
    )


def test_permutation_importance_finds_the_planted_features_and_random_is_worse_in_the_mean(result):
    report = result.report
    assert {f.name for f in report.features if f.status == "kept"} == PLANTED
    found = by_name(report)
    assert list(found) == ["random", "magnitude", "permutation"]
    (permutation,) = found["permutation"].runs
    assert set(permutation.kept) == PLANTED
    assert permutation.common == 3
    assert len(found["random"].runs) == baselines.RANDOM_DRAWS
    shipped = next(m for m in report.performance if m.name == "auroc")
    assert mean(found["random"], "auroc") < shipped.final - 0.1
    assert mean(found["random"], "log_loss") > mean(found["permutation"], "log_loss") + 0.1
    assert found["random"].valid.std > 0
    assert found["magnitude"].valid.std is None


def test_the_same_selection_gives_the_same_figures_as_group_lasso(result):
    """Permutation importance picks the shipped features here, and nothing else differs between the two."""
    report = result.report
    permutation = by_name(report)["permutation"]
    assert [s.mean for s in permutation.test] == [m.final for m in report.performance]
    assert permutation.valid.mean == report.baselines.valid == report.refit.metric


def test_sizes_are_the_shipped_ones_and_a_dead_feature_is_not_drawn(result):
    assert sizes_alike(result.report)
    assert result.report.baselines.notes == []
    kept = {n for b in result.report.baselines.results for run in b.runs for n in run.kept}
    assert NAMES[DEAD] not in kept


def test_spreads_are_those_of_the_draws(result):
    random = by_name(result.report)["random"]
    for spread in random.test:
        values = [run.test[spread.name] for run in random.runs]
        assert spread.mean == pytest.approx(np.mean(values))
        assert spread.std == pytest.approx(np.std(values, ddof=1))


def test_figures_are_those_of_a_network_sliced_refitted_and_exported_by_hand(result, folder):
    recipe = load_recipe(folder / "recipe.yaml")
    job = prepare(recipe, folder / "model.pt", False, silent)
    for baseline in result.report.baselines.results:
        for record in baseline.runs[:2]:
            columns = [NAMES.index(n) for n in record.kept]
            slim, dense = build(), trained(folder)
            slim[0] = torch.nn.Linear(len(columns), 12)
            slim.load_state_dict(dense.state_dict() | {"0.weight": dense[0].weight.data[:, columns]})
            with torch.random.fork_rng():
                refit = Refit(
                    job.task,
                    job.data.train,
                    job.data.valid,
                    lambda inputs, columns=columns: (inputs[0][:, columns],),
                    recipe.refit,
                    recipe.seed,
                    teacher=dense,
                    metric="auroc",
                )
                fitted = refit.run(slim.eval()).network
            rows, target = job.data.test.inputs[0][:, columns], job.data.test.target.numpy()
            torch.onnx.export(fitted, (rows,), folder / "hand.onnx", dynamo=False, input_names=["x"])
            scores = ort.InferenceSession(folder / "hand.onnx").run(None, {"x": rows.numpy()})[0].ravel()
            assert record.test["auroc"] == pytest.approx(roc_auc_score(target, scores), abs=1e-6)
            assert record.test["accuracy"] == pytest.approx(np.mean((scores > 0) == target), abs=1e-6)


def test_recorded_features_are_those_the_measured_files_read(folder, monkeypatch, few_draws):
    files, write = [], baselines.write_shipped

    def keeping(job, removed, network, path):
        exported = write(job, removed, network, path)
        files.append(shutil.copy(path, folder / f"measured_{len(files)}.onnx"))
        return exported

    monkeypatch.setattr(baselines, "write_shipped", keeping)
    report = planted(folder, "wide", HIDDEN, "export.signature=original").report
    runs = [run for b in report.baselines.results for run in b.runs]
    assert len(files) == len(runs) == 4
    rows = load_data(load_recipe(folder / "recipe.yaml")).test.inputs[0].numpy()
    for file, record in zip(files, runs, strict=True):
        session = ort.InferenceSession(file)
        (scores,) = session.run(None, {"features": rows})
        for number, name in enumerate(NAMES):
            changed = rows.copy()
            changed[:, number] = 7
            same = np.array_equal(session.run(None, {"features": changed})[0], scores)
            assert same == (name not in record.kept)
    assert not list((folder / "wide").glob("*baseline*"))


def test_hidden_units_are_cut_to_the_same_widths(folder, few_draws):
    report = planted(folder, "hidden", HIDDEN).report
    assert sum(h.after for h in report.hidden) < 18
    assert sizes_alike(report)
    for baseline in report.baselines.results:
        assert all(run.common_hidden <= run.hidden for run in baseline.runs)


@pytest.mark.slow
def test_a_second_path_is_matched_by_a_second_cut(folder, few_draws):
    report = planted(folder, "staged", HIDDEN, "target.max_hidden=7").report
    assert report.stages[-1].penalised == ["hidden"]
    assert 0 < sum(h.after for h in report.hidden) <= 7
    assert sizes_alike(report)
    assert "remove features, refit, remove hidden units, refit" in render_html(report)


@pytest.mark.slow
def test_hidden_units_alone_leave_permutation_importance_out(folder, few_draws):
    changes = ["penalty={inputs: null, hidden: {strength: 1}}", "target={max_hidden: 8}"]
    report = planted(folder, "alone", *changes).report
    assert list(by_name(report)) == ["random", "magnitude"]
    assert any("none of them was removed" in note for note in report.baselines.notes)
    assert all(run.hidden <= 8 for b in report.baselines.results for run in b.runs)
    page = render_html(report)
    assert "Units in common" in page
    assert "Features in common" not in page


def test_where_nothing_was_cut_the_report_says_so(folder):
    alive = trained(folder)
    torch.nn.init.ones_(alive[0].weight)
    torch.save(alive.state_dict(), folder / "alive.pt")
    recipe = load_recipe(folder / "recipe.yaml", ["target={lambda: 0}"])
    report = glprune.run(recipe, folder / "alive.pt", folder / "zero", accept_original=True).report
    assert report.baselines.results == []
    assert report.baselines.notes == ["Nothing was removed, so there is no selection to compare."]
    assert any("No simpler selection was compared. Nothing was removed" in s for s in headline(report))
    assert "Nothing was removed, so" in render_html(report)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["refit.epochs=0", "refit.start=best"])
def test_weights_of_the_path_are_named_as_an_unequal_start(folder, few_draws, change):
    report = planted(folder, "unequal", change).report
    assert any("may start its refit from the weights of the path" in note for note in report.baselines.notes)


@pytest.mark.slow
def test_asking_changes_neither_the_file_nor_its_figures_and_repeats(result, folder):
    plain = planted(folder, "plain", "report.baselines=false")
    assert plain.report.baselines is None
    assert (plain.bundle / "model.onnx").read_bytes() == (result.bundle / "model.onnx").read_bytes()
    assert plain.report.performance == result.report.performance
    assert "Comparison with simpler selections" not in (plain.bundle / "report.html").read_text()
    assert not any("simpler" in s for s in headline(plain.report))
    assert planted(folder, "again").report.baselines == result.report.baselines


def test_the_report_fits_its_schema_and_reads_back(result):
    text = (result.bundle / "report.json").read_text()
    Draft202012Validator(report_schema()).validate(json.loads(text))
    assert Report.model_validate_json(text) == result.report


def test_page_and_command_show_the_comparison(result, capsys):
    from rich.console import Console

    from glprune.cli.console import print_report

    page = (result.bundle / "report.html").read_text()
    assert "Comparison with simpler selections</h2>" in page
    print_report(Console(width=80), result.report, "bundle")
    printed = capsys.readouterr().out
    for baseline in result.report.baselines.results:
        figure = f"{mean(baseline, 'auroc'):.4f}"
        assert f'<td class="n">{figure}</td>' in page
        assert figure in printed
    assert "random selection, mean of 5" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("metric", "shipped", "other", "words"),
    [
        ("auroc", 0.9, 0.8, "better than"),
        ("auroc", 0.8, 0.9, "worse than"),
        ("auroc", 0.8, 0.80001, "equal to"),
        ("log_loss", 0.3, 0.4, "better than"),
        ("log_loss", 0.4, 0.3, "worse than"),
    ],
)
def test_the_summary_says_who_was_better(result, metric, shipped, other, words):
    def changed(records, key, value):
        return [r.model_copy(update={key: value}) if r.name == metric else r for r in records]

    report = result.report
    (magnitude,) = [b for b in report.baselines.results if b.name == "magnitude"]
    magnitude = magnitude.model_copy(update={"test": changed(magnitude.test, "mean", other)})
    report = report.model_copy(
        update={
            "performance": changed(report.performance, "final", shipped),
            "baselines": report.baselines.model_copy(update={"results": [magnitude]}),
            "selection": report.selection.model_copy(update={"metric": metric}),
        }
    )
    (sentence,) = [s for s in headline(report) if "simpler" in s]
    assert f"of {shipped:.4f} is {words} magnitude ({other:.4f})" in sentence


def test_a_selection_that_cannot_be_measured_is_a_note_and_the_run_stands(folder, monkeypatch, few_draws):
    def failing(*arguments):
        raise glprune.ModelError("The network cannot be exported to ONNX (no).")

    monkeypatch.setattr(baselines, "write_shipped", failing)
    report = planted(folder, "failing").report
    assert report.baselines.results == []
    assert report.baselines.notes == [
        f"{name}: a selection could not be measured: The network cannot be exported to ONNX (no)."
        for name in ("random", "magnitude", "permutation")
    ]
    (sentence,) = [s for s in headline(report) if "simpler" in s]
    assert sentence.startswith("No simpler selection was compared.")


def test_a_file_that_computes_something_else_is_not_compared(folder, monkeypatch, few_draws):
    class Wrong(baselines.OnnxFile):
        def __call__(self, inputs):
            return tuple(y + 0.01 for y in super().__call__(inputs))

    monkeypatch.setattr(baselines, "OnnxFile", Wrong)
    report = planted(folder, "wrong").report
    assert report.baselines.results == []
    assert all("ONNX Runtime and PyTorch differ" in note for note in report.baselines.notes)


def test_progress_is_told(result, told):
    selections = sum(len(b.runs) for b in result.report.baselines.results)
    parts = [(e.done, e.of) for e in told if isinstance(e, Progress)]
    assert parts == [(n, selections) for n in range(1, selections + 1)]


def test_baselines_is_true_or_false(folder):
    with pytest.raises(glprune.RecipeError, match=r"report\.baselines should be true or false") as caught:
        load_recipe(folder / "recipe.yaml", ["report.baselines=3"])
    assert "\n" not in str(caught.value)


# --- several inputs, no labels -----------------------------------------------------------------


def test_every_input_keeps_as_many_features(several, few_draws):  # noqa: F811
    text = PAIR.format(name="Pair", target="{max_features: 3}").replace(
        ", feature_groups: {both: [n4, n5]}", ""
    )
    report = run(several, "Pair", text + "report: {baselines: true}\n", "pairs").report
    assert sizes_alike(report)


def test_an_input_that_cannot_be_cut_is_kept_whole(several, few_draws):  # noqa: F811
    text = PAIR.format(name="Half", target="{max_features: 4}").replace(
        ", feature_groups: {both: [n4, n5]}", ""
    )
    report = run(several, "Half", text + "report: {baselines: true}\n", "halves").report
    own = {f.name for f in report.features if f.input == "a"}
    assert sizes_alike(report)
    assert all(own <= set(r.kept) for b in report.baselines.results for r in b.runs)


@pytest.mark.slow
def test_without_labels_the_metric_is_agreement(several, few_draws):  # noqa: F811
    report = run(several, "Many", FOLLOWED + "report: {baselines: true}\n", "agreeing").report
    found = by_name(report)
    assert list(found) == ["random", "magnitude", "permutation"]
    assert [s.name for s in found["magnitude"].test] == ["r2", "rmse", "cosine"]
    assert sizes_alike(report)


@pytest.mark.slow
def test_inputs_without_features_leave_hidden_units_to_compare(several, few_draws):  # noqa: F811
    text = TOKENS.format(loader="mappings") + "report: {baselines: true}\n"
    report = run(several, "Tokens", text, "tokens").report
    assert list(by_name(report)) == ["random", "magnitude"]
    assert sizes_alike(report)


RAGGED = """
task: distillation
model: {factory: "network.py:Pooled", inputs: [{name: x, axis: 2}]}
data: {loader: "network.py:ragged"}
target: {max_features: 2}
export: {dynamic_axes: {x: {1: length}}}
train: {epochs: 2, n_lambdas: 5, full_batch_steps: 2}
refit: {epochs: 2, start: trained}
report: {baselines: true}
"""


@pytest.mark.slow
def test_rows_of_several_lengths_leave_permutation_importance_out_in_one_line(folder, few_draws):
    (folder / "ragged.yaml").write_text(RAGGED)
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(1)
    torch.save(scope["Pooled"]().state_dict(), folder / "pooled.pt")
    report = glprune.run(folder / "ragged.yaml", folder / "pooled.pt", folder / "ragged").report
    assert list(by_name(report)) == ["random", "magnitude"]
    (note,) = report.baselines.notes
    assert note.startswith("permutation: a selection could not be measured: rows of the validation split")
    assert "\n" not in note


# --- permutation importance --------------------------------------------------------------------


def test_columns_of_a_feature_are_permuted_together(tmp_path):
    """The target is a difference of two equal columns: permuted together it stays 0, alone it does not."""
    (tmp_path / "network.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 1)\n")
    x = np.random.default_rng(0).normal(size=(300, 2))
    pq.write_table(
        pa.table({"a": x[:, 0], "b": x[:, 0], "c": x[:, 1], "y": x[:, 1]}), tmp_path / "data.parquet"
    )
    network = torch.nn.Linear(3, 1)
    network.load_state_dict({"weight": torch.tensor([[5.0, -5.0, 1.0]]), "bias": torch.zeros(1)})
    torch.save(network.state_dict(), tmp_path / "model.pt")
    text = (
        'task: regression\nmodel: {factory: "network.py:build"}\n'
        "data: {file: data.parquet, target: y}\ntarget: {max_features: 1}\n"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    for changes, expected in (([], [1, 1, 1]), (["data.feature_groups={ab: [a, b]}"], [0, 1])):
        job = prepare(load_recipe(tmp_path / "recipe.yaml", changes), tmp_path / "model.pt", False, silent)
        found = permutation_importance(job, job.input_groups[0], 3)
        assert (found > 0.5).long().tolist() == expected
        assert found.tolist() == permutation_importance(job, job.input_groups[0], 3).tolist()
    assert float(found[0]) == pytest.approx(0, abs=1e-6)


def test_batches_of_a_loader_are_laid_together():
    batches = [(torch.randn(n, 2), torch.arange(n).float()) for n in (3, 4)]
    first = Fingerprint()
    for batch in batches:
        first.add(batch)
    split = LoaderSplit(batches, (InputSpec(),), "regression", first, False, "train")
    whole = split_in_memory(split)
    assert whole.rows == 7
    torch.testing.assert_close(whole.inputs[0], torch.cat([x for x, _ in batches]))


def test_the_weakest_go_by_score_then_by_norm_and_dead_ones_first(folder):
    job = prepare(load_recipe(folder / "recipe.yaml"), folder / "model.pt", False, silent)
    (groups,) = job.input_groups
    norms = group_norms(job.network.state_dict(), groups)
    score = torch.zeros(10)
    score[DEAD], score[4] = 1.0, -1.0
    gone = baselines._weakest(job, groups, score, 3)
    strongest = sorted((n for n in range(9) if n != 4), key=lambda n: -norms[n])[:3]
    assert torch.nonzero(~gone).flatten().tolist() == sorted(strongest)
    gone = baselines._weakest(job, groups, score, 9)
    assert torch.nonzero(gone).flatten().tolist() == [DEAD]
