"""``glprune reproduce``: the same bundle to the byte, other results found, other inputs refused."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from glprune import pipeline
from glprune.cli.main import main
from glprune.cli.reproduce import data_files
from glprune.errors import UsageError
from glprune.rerun.reproduction import reproduce
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
    assert (wrong.what, "/performance/0/final" in wrong.found) == ("report.json", True)


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
