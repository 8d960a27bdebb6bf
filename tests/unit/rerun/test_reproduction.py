"""``glprune reproduce``: the same bundle to the byte, other results found, other inputs refused."""

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from safetensors.numpy import load_file, save_file

from glprune import pipeline
from glprune.audit.parsed_bundle import open_bundle, read_report
from glprune.cli.main import main
from glprune.cli.reproduce import data_files, print_reproduction
from glprune.errors import UsageError
from glprune.rerun.comparison import Difference, compare_bundles
from glprune.rerun.reproduction import Reproduction, reproduce
from tests.bundle_fixtures import copied, follow, seal

ALLOWED = {"allow_factory": ["networks.py"]}


@pytest.fixture(autouse=True)
def few_batches(monkeypatch):
    monkeypatch.setattr(pipeline, "LATENCY_BATCHES", (1,))


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    from glprune.audit import signing

    path = tmp_path_factory.mktemp("keys") / "key"
    signing.make_key(path)
    return signing.read_private_key(path)


@pytest.fixture
def problem(audited):
    return audited.folder


def run_again(audited, bundle, **options):
    data = {"file": audited.folder / "data.parquet"}
    return reproduce(bundle, audited.folder / "plain.pt", data, folder=audited.folder, **ALLOWED, **options)


def changed(audited, place, key, change):
    copy = copied(audited["kept"], place)
    change(copy)
    follow(copy)
    seal(copy, key)
    return copy.folder


def test_the_same_machine_gives_the_same_bytes(audited, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_again(audited, audited["kept"])
    assert (found.exit_code, found.to_the_byte, found.rule, found.environment) == (0, True, "bytes", ())
    compared = {d.what for d in found.differences}
    assert compared >= {"model.onnx", "model.int8.onnx", "original.onnx", "model.safetensors", "report.json"}
    assert list(tmp_path.iterdir()) == []  # the second bundle is gone


def test_a_changed_metric_is_not_reproduced(audited, tmp_path, key):
    def better(copy):
        copy.edit(lambda report: report["performance"][0].update(final=0.999))

    found = run_again(audited, changed(audited, tmp_path / "b", key, better))
    assert found.exit_code == 1
    (wrong,) = [d for d in found.differences if not d.agrees]
    name = read_report(audited["kept"]).performance[0].name
    assert (wrong.what, wrong.stated) == (f"{name} of the shipped model", "0.9990")
    assert wrong.found != wrong.stated


def test_figures_of_the_report_that_differ_are_listed_with_both_values(audited):
    def change(report):
        metrics = [m.model_copy(update={"original": 0.123456789}) for m in report.performance]
        outputs = report.digests.outputs | {"model.onnx": "sha256:" + "0" * 64}
        digests = report.digests.model_copy(update={"outputs": outputs})
        return report.model_copy(update={"performance": metrics, "digests": digests})

    old, new = open_bundle(audited["kept"]), open_bundle(audited["kept"])
    new.report = change(new.report)
    wrong = [d for d in compare_bundles(old, new, "bytes") if not d.agrees]
    name = old.report.performance[0].name
    assert wrong[0].what == f"report.json /performance/{name}/original"
    assert (wrong[0].stated, wrong[0].found) == (repr(old.report.performance[0].original), "0.123456789")
    assert not any("/digests/outputs" in d.what for d in wrong)  # files are compared by themselves


def test_more_figures_than_fit_are_counted(audited):
    old, new = open_bundle(audited["kept"]), open_bundle(audited["kept"])
    features = [f.model_copy(update={n: 7.5 for n in ("norm_original",)}) for f in new.report.features]
    path = [p.model_copy(update={"lam": p.lam + 1}) for p in new.report.path]
    new.report = new.report.model_copy(update={"features": features, "path": path})
    wrong = [d for d in compare_bundles(old, new, "bytes") if not d.agrees]
    changed = len(features) + len(path)
    assert len(wrong) == min(changed, 21)
    assert changed <= 20 or wrong[-1].found == f"{changed - 20} more figures differ"


def test_nothing_is_cut_at_80_columns(audited):
    digests = [f"sha256:{c * 64}" for c in "ab"]
    names = ", ".join(f"mean_concave_points_{n}" for n in range(9))
    found = Reproduction(
        "bundle",
        (),
        "bytes",
        False,
        (
            Difference("kept features", names, names, "the same features", True),
            Difference("auroc of the shipped model", "0.9742", "0.9311", "the same figure", False),
            Difference("model.onnx", *digests, "the same bytes", False),
            Difference("plan.json", digests[0], digests[0], "the same bytes", True),
        ),
    )
    out = io.StringIO()
    print_reproduction(Console(file=out, width=80), found)
    lines = out.getvalue().splitlines()
    assert f"agrees   kept features: {names}" in lines
    assert "DIFFERS  auroc of the shipped model: 0.9742 there, 0.9311 here; the same figure" in lines
    assert "DIFFERS  model.onnx: sha256:aaaaaaaaaaaa there, sha256:bbbbbbbbbbbb here; the same bytes" in lines
    assert "agrees   plan.json: sha256:aaaaaaaaaaaa" in lines


def test_changed_weights_are_not_reproduced(audited, tmp_path, key):
    def nudge(copy):
        arrays = load_file(copy / "model.safetensors")
        name = sorted(arrays)[0]
        save_file(arrays | {name: arrays[name] * np.float32(1.001)}, copy / "model.safetensors")

    found = run_again(audited, changed(audited, tmp_path / "b", key, nudge))
    assert {d.what for d in found.differences if not d.agrees} >= {"model.safetensors"}


@pytest.mark.parametrize(("scale", "agrees"), [(1.001, True), (1.05, False)])
def test_elsewhere_tolerances_decide(audited, tmp_path, key, scale, agrees):
    def other_version(copy):
        copy.edit(lambda report: report["run"]["versions"].update(torch="2.12.0"))
        arrays = load_file(copy / "model.safetensors")
        save_file({n: a * np.float32(scale) for n, a in arrays.items()}, copy / "model.safetensors")

    found = run_again(audited, changed(audited, tmp_path / "b", key, other_version))
    assert (found.rule, found.to_the_byte) == ("tolerances", False)
    assert "torch: 2.12.0 there" in found.environment[0]
    weights = next(d for d in found.differences if d.what == "weights")
    assert (weights.agrees, found.exit_code == 0) == (agrees, agrees)


def test_other_features_are_not_reproduced_anywhere(audited, tmp_path, key):
    def swap(copy):
        def change(report):
            kept = next(f for f in report["features"] if f["name"] == "c")
            kept["status"] = "removed"

        copy.edit(change)

    found = run_again(audited, changed(audited, tmp_path / "b", key, swap), other_machine=True)
    assert found.exit_code == 1
    assert not next(d for d in found.differences if d.what == "kept features").agrees


def test_other_models_and_data_are_refused_before_training(audited, problem, tmp_path):
    data = {"file": problem / "data.parquet"}
    with pytest.raises(UsageError, match="not the model that the bundle was made from"):
        reproduce(audited["kept"], problem / "Mixed.pt", data, folder=problem, **ALLOWED)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"not the data\.file that the bundle was made from"):
        reproduce(audited["kept"], problem / "plain.pt", {"file": other}, folder=problem, **ALLOWED)
    with pytest.raises(UsageError, match=r"reads no data\.test; give --data FILE"):
        reproduce(audited["kept"], problem / "plain.pt", {"test": other}, folder=problem, **ALLOWED)


def test_data_that_are_not_there_are_asked_for_by_their_option(audited, problem, tmp_path):
    with pytest.raises(
        UsageError, match=r"data\.parquet: no such file, .* give --data FILE, or with --folder"
    ):
        reproduce(audited["kept"], problem / "plain.pt", folder=tmp_path, **ALLOWED)


def test_nothing_in_the_bundle_is_imported(audited, problem):
    with pytest.raises(UsageError, match="nothing in a bundle is imported"):
        reproduce(audited["kept"], problem / "plain.pt", folder=audited["kept"])


def test_the_factory_must_be_allowed(audited):
    arguments = ["reproduce", str(audited["kept"]), "--model", str(audited.folder / "plain.pt")]
    arguments += ["--folder", str(audited.folder), "--allow-factory", "other.py", "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--allow-factory" in result.output


def test_code_that_the_bundle_names_needs_consent(audited, problem, tmp_path):
    """The caller allows it, or has a recipe that names the same code with the same arguments."""
    model, recipe = problem / "plain.pt", tmp_path / "recipe.yaml"
    with pytest.raises(
        UsageError, match=r"names the code 'networks\.py:plain', .*--allow-factory networks\.py"
    ):
        reproduce(audited["kept"], model, folder=problem)
    text = (audited["kept"] / "recipe.resolved.yaml").read_text()
    for old, new, key in (
        ("networks.py:plain", "networks.py:other", "model.factory"),
        ("arguments: {}", "arguments: {width: 3}", "model.arguments"),
    ):
        assert old in text
        recipe.write_text(text.replace(old, new, 1))
        with pytest.raises(UsageError, match=f"has {key}: "):
            reproduce(audited["kept"], model, recipe=recipe, folder=problem)
    with pytest.raises(UsageError, match="decides on no code that runs"):
        reproduce(audited["kept"], model, recipe=audited["kept"] / "recipe.resolved.yaml", folder=problem)
    recipe.write_text(text)
    with pytest.raises(UsageError, match="not the model"):  # the next check
        reproduce(audited["kept"], problem / "Mixed.pt", recipe=recipe, folder=problem)


def test_the_command_needs_a_model_and_prints_json(audited, problem):
    assert CliRunner().invoke(main, ["reproduce", str(audited["recurrent"])]).exit_code == 2
    arguments = ["reproduce", str(audited["recurrent"]), "--model", str(problem / "Recurrent.pt")]
    arguments += ["--folder", str(problem), "--allow-factory", "networks.py", "--quiet", "--json"]
    result = CliRunner().invoke(main, arguments)
    record = json.loads(result.stdout)
    assert (result.exit_code, record["result"], record["to_the_byte"]) == (0, "reproduced", True)


def test_data_is_one_file_or_one_for_each_split():
    assert {k: str(v) for k, v in data_files(["a=b.csv"]).items()} == {"file": "a=b.csv"}
    assert {k: str(v) for k, v in data_files(["train=x", "test=y"]).items()} == {"train": "x", "test": "y"}
    with pytest.raises(UsageError, match="two files for test"):
        data_files(["test=x", "test=y"])
