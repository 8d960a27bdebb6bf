"""Layouts for Triton and KServe, the contract as a JSON Schema, and the example server over loopback."""

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from onnx import TensorProto, helper
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from examples.serve import make_server
from glprune.cli.main import main
from glprune.errors import UsageError
from glprune.integrations.triton_kserve import triton_config, v2_request, write_kserve, write_triton
from glprune.schema import bundle as bundles
from tests.bundle_fixtures import NAMES, copied
from tests.integration_packages import need


@pytest.fixture(scope="module")
def triton():
    """Triton's own model_config.proto, without the rest of its client."""
    package = need("tritonclient")
    path = Path(package.__file__).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def served(audited):
    """The example server on a free port of the loopback, and how to ask it."""
    server = make_server(audited["slim"])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def ask(body, path="/predict"):
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", raw)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


def contract_of(bundle):
    return json.loads((bundle / bundles.INPUT_SCHEMA).read_text())


def a_model(*values):
    """A model of inputs and outputs given by name, type and shape; outputs begin with ``out``."""
    made = [helper.make_tensor_value_info(*value) for value in values]
    inputs = [v for v in made if not v.name.startswith("out")]
    outputs = [v for v in made if v.name.startswith("out")]
    return helper.make_model(helper.make_graph([], "g", inputs, outputs))


def test_triton_reads_names_types_and_dims_of_the_shipped_file(audited, tmp_path, triton):
    folder = write_triton(audited["slim"], tmp_path / "models", "credit", max_batch=32)
    config = text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())
    (column_input,) = contract_of(audited["slim"])["inputs"]
    assert (config.name, config.backend, config.max_batch_size) == ("credit", "onnxruntime", 32)
    assert config.HasField("dynamic_batching")
    (given,) = config.input
    assert (given.name, given.data_type) == (column_input["name"], triton.TYPE_FP32)
    assert list(given.dims) == [len(column_input["columns"])]
    assert [o.name for o in config.output] == ["prediction"]
    assert (folder / "1" / "model.onnx").read_bytes() == (audited["slim"] / "model.onnx").read_bytes()


def test_triton_of_several_inputs_and_codes(audited, tmp_path, triton):
    folder = write_triton(audited["mixed"], tmp_path, "mixed")
    config = text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("numbers", triton.TYPE_FP32, [8]),
        ("codes", triton.TYPE_INT64, [2]),
    ]


@pytest.mark.parametrize(
    ("values", "batch", "dims", "reshaped"),
    [
        ([("x", 1, ["n", 3]), ("out", 1, ["n"])], 8, [[3], [1]], [False, True]),
        ([("x", 1, ["n", "t", 3]), ("out", 1, ["n", 2])], 8, [[-1, 3], [2]], [False, False]),
        ([("x", 1, [4, 3]), ("out", 1, [4])], 0, [[4, 3], [4]], [False, False]),
        ([("x", 1, ["n", 3]), ("out", 1, ["m", 3])], 0, [[-1, 3], [-1, 3]], [False, False]),
    ],
    ids=["scalar output", "any length", "fixed batch", "two labels"],
)
def test_dims_leave_out_the_batch_where_all_share_one(triton, values, batch, dims, reshaped):
    config = text_format.Parse(triton_config(a_model(*values), "m", 8), triton.ModelConfig())
    tensors = [*config.input, *config.output]
    assert config.max_batch_size == batch
    assert config.HasField("dynamic_batching") == (batch > 0)
    assert [list(t.dims) for t in tensors] == dims
    assert [t.HasField("reshape") and not t.reshape.shape for t in tensors] == reshaped


def test_a_name_from_outside_cannot_add_to_the_configuration(triton):
    name = 'x" } max_batch_size: 9 # \n é'
    config = text_format.Parse(
        triton_config(a_model((name, 1, ["n", 3]), ("out", 1, ["n", 3])), "m", 8), triton.ModelConfig()
    )
    assert config.input[0].name == name
    assert config.max_batch_size == 8


def test_a_request_of_the_open_inference_protocol_fits_the_model():
    request = v2_request(a_model(("x", TensorProto.FLOAT, ["n", 2]), ("mask", TensorProto.BOOL, ["n", 1])))
    assert request["inputs"] == [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]},
        {"name": "mask", "shape": [1, 1], "datatype": "BOOL", "data": [False]},
    ]


def test_kserve_gets_an_inference_service_that_names_the_storage(audited, tmp_path):
    service = write_kserve(audited["slim"], tmp_path, "credit", "s3://bucket/models")
    loaded = YAML(typ="safe").load(service)
    model = loaded["spec"]["predictor"]["model"]
    assert (loaded["apiVersion"], loaded["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert (model["storageUri"], model["protocolVersion"]) == ("s3://bucket/models", "v2")
    assert (tmp_path / "models" / "credit" / "config.pbtxt").is_file()
    assert json.loads((tmp_path / "request.json").read_text())["inputs"][0]["datatype"] == "FP32"


@pytest.mark.parametrize("name", ["Über", "a/b", "..", "-x", ""])
def test_a_name_that_servers_refuse_is_refused_here(audited, tmp_path, name):
    with pytest.raises(UsageError, match="lower-case letters"):
        write_triton(audited["slim"], tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_uri_cannot_add_to_the_yaml(audited, tmp_path):
    with pytest.raises(UsageError, match="storage-uri"):
        write_kserve(audited["slim"], tmp_path, "credit", "s3://x\nmore: yes")


def test_a_bundle_that_was_changed_is_not_served(audited, tmp_path):
    changed = copied(audited["slim"], tmp_path / "changed")
    model = changed.model()
    model.producer_name = "somebody"
    changed.put(model)
    with pytest.raises(UsageError, match=r"not exported: model\.onnx"):
        write_triton(changed.folder, tmp_path / "models", "credit")


def test_the_command_writes_both_and_wants_one(audited, tmp_path):
    bundle = str(audited["slim"])
    done = CliRunner().invoke(
        main, ["export-server", bundle, "--triton", str(tmp_path / "t"), "--kserve", str(tmp_path / "k")]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "t" / "slim" / "config.pbtxt").is_file()
    assert (tmp_path / "k" / "inferenceservice.yaml").is_file()
    bare = CliRunner().invoke(main, ["export-server", bundle])
    assert (bare.exit_code, bare.output.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["slim", "wide", "mixed", "recurrent"])
def test_the_contract_is_a_json_schema_and_golden_rows_keep_it(audited, name):
    contract = contract_of(audited[name])
    jsonschema.Draft202012Validator.check_schema(contract)
    golden = load_file(audited[name] / bundles.GOLDEN)
    row = {}
    for given in contract["inputs"]:
        values = golden[f"input.{given['name']}"][0]
        if given["name"] in contract["properties"]:
            row[given["name"]] = values.tolist()
        else:
            row |= {c["name"]: values.tolist()[c["position"]] for c in given["columns"]}
    validator = jsonschema.Draft202012Validator(contract)
    assert validator.is_valid(row)
    for key in contract["required"]:
        assert not validator.is_valid({k: v for k, v in row.items() if k != key})
        assert not validator.is_valid(row | {key: "text"})


def test_columns_that_are_not_read_may_be_left_out(audited):
    contract = contract_of(audited["wide"])
    unread = {c["name"] for c in contract["inputs"][0]["columns"] if not c["read"]}
    assert unread
    assert set(contract["required"]) == set(contract["properties"]) - unread


def rows_of(bundle):
    contract = contract_of(bundle)
    golden = load_file(bundle / bundles.GOLDEN)
    names = [c["name"] for c in contract["inputs"][0]["columns"]]
    values = golden[f"input.{contract['inputs'][0]['name']}"]
    return [dict(zip(names, row, strict=True)) for row in values.tolist()], golden["output.prediction"]


def test_the_server_gives_what_the_golden_vectors_say_and_ignores_removed_features(audited, served):
    rows, expected = rows_of(audited["slim"])
    removed = sorted(set(NAMES) - rows[0].keys())
    assert removed
    status, answer = served([row | dict.fromkeys(removed, 1e300) | {removed[0]: None} for row in rows])
    assert status == 200
    assert answer["ignored"] == removed
    np.testing.assert_allclose(answer["outputs"]["prediction"], expected, atol=1e-6)
    np.testing.assert_allclose(served(rows[0])[1]["outputs"]["prediction"], expected[:1], atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda row: row.pop("a"), "row 1: 'a' is a required property"),
        (lambda row: row.update(a="much"), "row 1['a']: 'much' is not of type 'number'"),
        (lambda row: row.update(a=True), "row 1['a']: True is not of type 'number'"),
        (lambda row: row.update(a=1e39), "row 1['a']: 1e+39 is greater than"),
    ],
    ids=["missing", "text", "boolean", "beyond float32"],
)
def test_a_row_against_the_contract_is_refused_in_one_line(audited, served, spoil, message):
    rows, _ = rows_of(audited["slim"])
    rows = [dict(row, a=1.0) for row in rows[:2]]
    spoil(rows[1])
    status, answer = served(rows)
    assert status == 400
    assert answer["error"].startswith(message)
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"[]", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_row_is_refused_in_one_line(served, body):
    status, answer = served(body)
    assert status == 400
    assert "\n" not in answer["error"]


def test_the_server_says_what_it_takes(audited, served):
    assert served(None, "/schema") == (200, contract_of(audited["slim"]))
    assert served(None, "/health")[0] == 200
    assert served(None, "/else")[0] == 404
    assert served({}, "/else")[0] == 400
