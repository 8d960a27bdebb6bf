"""A run is logged to a real MLflow server with SQLite behind it, and served from there."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pandas as pd
import pytest

from glprune.errors import UsageError
from glprune.export.onnx_runtime import OnnxFile
from glprune.integrations import mlflow as integration
from glprune.integrations import mlflow_model
from glprune.integrations.ci import dvc
from glprune.pipeline import Result
from glprune.schema import bundle as bundles
from glprune.schema.report import Report
from tests.integration_packages import need

mlflow = need("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server on a free port of this machine; it and its workers are ended by their process group."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(address):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address):
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def tracking_server(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server)
    mlflow.set_registry_uri(server)
    yield server
    mlflow.set_tracking_uri(before)
    mlflow.set_registry_uri(before)


def result_of(bundle):
    return Result(bundle, Report.model_validate_json((bundle / bundles.REPORT).read_text()))


def frame(result, rows=7):
    """All the old columns, in another order, and one nobody knows."""
    names = [c for f in result.report.features for c in f.columns]
    values = pd.DataFrame(np.random.default_rng(1).normal(size=(rows, len(names))), columns=names)
    return values[names[::-1]].assign(unknown="text")


def expected(bundle, given):
    contract = json.loads((bundle / bundles.INPUT_SCHEMA).read_text())
    columns = [c["name"] for c in contract["inputs"][0]["columns"]]
    return OnnxFile(bundle / bundles.ONNX, 1).session.run(
        None, {contract["inputs"][0]["name"]: given[columns].to_numpy(np.float32)}
    )[0]


@pytest.mark.slow
def test_a_run_is_logged_whole_and_serves_frames_that_still_have_all_columns(tracking_server, audited):
    result = result_of(audited["slim"])
    report = result.report
    with mlflow.start_run() as active:
        assert integration.log_result(result, "credit", "champion") == active.info.run_id
        assert mlflow.active_run() is not None
    client = mlflow.MlflowClient()
    run = client.get_run(active.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["task"] == "binary"
    features = client.get_metric_history(run.info.run_id, "path.features")
    assert [(m.step, m.value) for m in features] == [(n, p.features) for n, p in enumerate(report.path, 1)]
    lam = client.get_metric_history(run.info.run_id, "path.lam")
    assert [m.value for m in lam] == pytest.approx([p.lam for p in report.path])
    assert run.data.metrics["test.auroc"] == pytest.approx(dvc.metrics(report)["test"]["auroc"])
    stored = {item.path for item in client.list_artifacts(run.info.run_id, "bundle")}
    assert stored == {f"bundle/{p.name}" for p in result.bundle.iterdir()}
    model = mlflow.pyfunc.load_model("models:/credit@champion")
    assert model.metadata.signature.inputs.input_names() == [c for f in kept(report) for c in f.columns]
    given = frame(result)
    np.testing.assert_array_equal(model.predict(given), expected(result.bundle, given))
    gaps = given.drop(columns="unknown")
    gaps.iloc[2] = np.nan
    np.testing.assert_array_equal(model.predict(gaps), expected(result.bundle, gaps))
    whole_numbers = given.drop(columns="unknown").round().astype("int64")
    np.testing.assert_array_equal(model.predict(whole_numbers), expected(result.bundle, whole_numbers))
    whole = mlflow.onnx.load_model("models:/credit@champion")
    assert [i.name for i in whole.graph.input] == [i.name for i in report.export.inputs]
    read = kept(report)[0].columns[0]
    with pytest.raises(mlflow.exceptions.MlflowException, match=read):
        model.predict(given.drop(columns=read))


def kept(report):
    return [f for f in report.features if f.status == "kept"]


@pytest.mark.slow
def test_the_served_model_needs_neither_glprune_nor_torch(tracking_server, audited, tmp_path):
    result = result_of(audited["slim"])
    with mlflow.start_run():
        integration.log_result(result, "alone")
    path = mlflow.artifacts.download_artifacts("models:/alone/1", dst_path=str(tmp_path / "m"))
    given = frame(result)
    given.drop(columns="unknown").to_csv(tmp_path / "rows.csv", index=False)
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("glprune", "torch"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import mlflow, numpy, pandas
model = mlflow.pyfunc.load_model({str(path)!r})
numpy.save({str(tmp_path / "out.npy")!r}, model.predict(pandas.read_csv({str(tmp_path / "rows.csv")!r})))
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}
    )
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected(result.bundle, given), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide", "mixed", "recurrent"])
def test_files_of_other_shapes_are_fed_by_name_too(audited, name):
    result = result_of(audited[name])
    model = mlflow_model.NamedColumns(str(result.bundle))
    contract = json.loads((result.bundle / bundles.INPUT_SCHEMA).read_text())
    rng = np.random.default_rng(0)
    columns = {c["name"]: c["read"] for part in contract["inputs"] for c in part["columns"]}
    if name == "recurrent":
        [part] = contract["inputs"]
        x = rng.normal(size=(3, 5, len(part["columns"]))).astype(np.float32)
        assert model.predict({part["name"]: x}).shape[0] == 3
        inputs = integration.signature(result.bundle).inputs
        assert inputs.input_names() == [part["name"]]
        return
    given = pd.DataFrame({c: rng.integers(0, 3, 4) for c in columns})
    out = model.predict(given)
    removed = [c for c, read in columns.items() if not read]
    assert removed
    np.testing.assert_array_equal(model.predict(given.drop(columns=removed)), out)
    feeds = {
        p["name"]: given[[c["name"] for c in p["columns"]]].to_numpy().astype(p["dtype"])
        for p in contract["inputs"]
    }
    np.testing.assert_array_equal(OnnxFile(result.bundle / bundles.ONNX, 1).session.run(None, feeds)[0], out)
    names = integration.signature(result.bundle).inputs.input_names()
    assert names == [c for c, read in columns.items() if read]


@pytest.mark.slow
def test_names_of_columns_never_become_names_of_parameters():
    recipe = {"train": {"lr": 0.1}, "data": {"feature_groups": {"a=b/../c": ["x"]}}, "notes": "y" * 7000}
    found = integration.parameters(recipe)
    assert found["train.lr"] == "0.1"
    assert json.loads(found["data.feature_groups"]) == {"a=b/../c": ["x"]}
    assert len(found["notes"]) == 6000


@pytest.mark.slow
def test_a_run_that_fails_is_logged_as_failed_and_an_unknown_run_is_one_line(tracking_server, monkeypatch):
    names = []

    def break_off():
        with integration.tracked("broken"):
            names.append(mlflow.active_run().info.run_id)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert mlflow.get_run(names[0]).info.status == "FAILED"
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with pytest.raises(UsageError, match=r"^MLflow: .*f{32}"), integration.tracked("x"):
        pass
