import io
import json
import pickle
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from click.testing import CliRunner

from glprune.cli.main import main
from glprune.errors import UsageError
from glprune.schema.recipe_loading import load_recipe, recipe_schema
from glprune.schema.report import report_schema
from tests.paths import ROOT

CREDIT = str(ROOT / "recipes" / "german_credit.yaml")
MODEL = str(ROOT / "examples" / "german_credit" / "model.pt")
QUICK = [
    "--set",
    "train.epochs=2",
    "--set",
    "train.n_lambdas=6",
    "--set",
    "train.full_batch_steps=2",
    "--set",
    "refit.epochs=2",
    "--set",
    "export.exporter=torchscript",
]


def invoke(*args):
    return CliRunner().invoke(main, list(args))


def saved(content, **how):
    """Return the bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def test_run_prints_findings_and_leaves_a_bundle(tmp_path):
    out = tmp_path / "out"
    done = invoke("run", CREDIT, MODEL, "--out", str(out), *QUICK)
    assert done.exit_code == 0, done.output
    assert "of 20 features" in done.stdout
    assert f"bundle: {out}" in done.stdout
    assert "path" in done.stderr
    assert (out / "model.onnx").exists()


def test_json_on_stdout_is_json_alone(tmp_path):
    done = invoke("run", CREDIT, MODEL, "--out", str(tmp_path / "o"), "--json", "--quiet", *QUICK)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["report"]["schema"] == "glprune.report/2"


def test_quiet_prints_nothing(tmp_path):
    done = invoke("run", CREDIT, MODEL, "--out", str(tmp_path / "o"), "--quiet", *QUICK)
    assert done.exit_code == 0
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "code", "fragment"),
    [
        (["run", "absent.yaml", MODEL], 2, "absent.yaml"),
        (["run", CREDIT, "absent.pt"], 3, "absent.pt"),
        (["run", CREDIT, MODEL, "--set", "train.lrr=1"], 2, "Did you mean 'lr'"),
        (["run", CREDIT, MODEL, "--set", "data.file=absent.csv"], 4, "absent.csv"),
        (["run", CREDIT, MODEL, "--set", "target={lambda: 1e6}", *QUICK], 5, "removes every input"),
        (["run", CREDIT], 2, "MODEL"),
        (["rum"], 2, "rum"),
        (["init", "absent.csv"], 4, "absent.csv"),
        (["run", CREDIT, str(ROOT / "examples/mnist/model.pt")], 3, "does not fit"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(args, code, fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = invoke(*args)
    assert failed.exit_code == code, failed.output
    assert fragment in failed.stderr
    assert "Traceback" not in failed.output
    assert not list(tmp_path.rglob("*.onnx"))
    if code != 2:
        assert len([line for line in failed.stderr.splitlines() if line.startswith("glprune: ")]) == 1


def test_inspect_lists_groups_as_text_and_json():
    text = invoke("inspect", CREDIT, MODEL)
    assert text.exit_code == 0, text.output
    assert "lambda_max" in text.stdout
    facts = json.loads(invoke("inspect", CREDIT, MODEL, "--json").stdout)
    assert facts["sets"][0]["groups"] == 20
    assert facts["sets"][0]["units"] == 61


def test_init_writes_a_recipe_that_loads_and_finds_the_one_hot_features(tmp_path):
    out = tmp_path / "credit.yaml"
    data = ROOT / "examples" / "german_credit" / "data.csv"
    assert invoke("init", str(data), "--out", str(out)).exit_code == 0
    recipe = load_recipe(out)
    assert recipe.task == "binary"
    assert recipe.data.target == "credit"
    assert recipe.data.split.column == "split"
    assert len(recipe.data.feature_groups) == 13
    assert recipe.path(recipe.data.file).resolve() == data
    again = invoke("init", str(data), "--out", str(out))
    assert again.exit_code == 2
    assert "exists" in again.stderr


def test_schemas_in_the_package_are_those_of_the_code():
    schemas = ROOT / "glprune" / "schema" / "schemas"
    for name, schema in (("recipe", recipe_schema()), ("report", report_schema())):
        assert json.loads(invoke("schema", name).stdout) == schema
        assert json.loads((schemas / f"{name}.schema.json").read_text()) == schema


def test_importing_glprune_loads_no_torch():
    code = "import glprune, glprune.schema.recipe, sys; assert 'torch' not in sys.modules; glprune.load"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", ["run", "inspect"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.pt", None),
        ("model.onnx", b"\x08\x08pytorch"),
        ("model.safetensors", b"weights"),
        ("pipeline.joblib", pickle.dumps({"coefficients": [1.0]})),
        ("sheet.xlsx", None),
        ("module.pt", saved(torch.nn.Linear(3, 1))),
        ("module_of_old.pt", saved(torch.nn.Linear(3, 1), _use_new_zipfile_serialization=False)),
        ("checkpoint.pt", saved({"model": torch.nn.Linear(3, 1), "epoch": 3})),
    ],
)
def test_a_missing_or_foreign_model_file_is_reported_before_data_and_pytorch(
    tmp_path, command, name, content
):
    if name == "sheet.xlsx":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("xl/workbook.xml", "<workbook/>")
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys\n"
        "from glprune.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    arguments = [command, CREDIT, str(tmp_path / name), "--set", "data.file=absent.csv"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "3 False False\n"
    assert done.stderr.startswith(f"glprune: {tmp_path / name}")
    assert done.stderr.count("\n") == 1


def test_the_first_line_of_progress_comes_before_pytorch_is_read(monkeypatch, tmp_path):
    told = []

    def stop(*arguments: object, **options: object) -> None:
        told.append(sys.stderr.getvalue())
        raise UsageError("stopped here.")

    monkeypatch.setattr("glprune.cli.main._process_group", stop)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(SystemExit):
        main(["run", CREDIT, MODEL, "--out", str(tmp_path / "o")])
    assert told == ["start: loading PyTorch\n"]


def test_a_network_near_chance_stops_inspect_and_run_after_its_metrics(tmp_path):
    raw = ("--set", "data.standardize=none")
    stopped = invoke("inspect", CREDIT, MODEL, *raw)
    assert stopped.exit_code == 3
    assert [line.split(":")[0] for line in stopped.stdout.splitlines()] == [
        f"original network on {split}"
        for split in ("train (600 rows)", "valid (200 rows)", "test (200 rows)")
    ]
    assert "--accept-original" in stopped.stderr
    assert "With data.standardize: train AUROC on all rows would be 0.85" in stopped.stderr
    accepted = invoke("inspect", CREDIT, MODEL, *raw, "--accept-original")
    assert accepted.exit_code == 0, accepted.stderr
    assert "note: log loss" in accepted.stdout
    refused = invoke("run", CREDIT, MODEL, *raw, "--out", str(tmp_path / "o"), "--quiet")
    assert refused.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_anything_was_done_leaves_nothing_and_exits_130(tmp_path):
    command = [sys.executable, "-m", "glprune.cli", "run", CREDIT, MODEL, "--out", str(tmp_path / "o")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("data:"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
