"""The example server answers every bad request with 4xx, ends slow connections and bounds their number."""

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from examples import serve


@pytest.fixture
def server(audited, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS", 1)
    monkeypatch.setattr(serve.Handler, "timeout", 1)
    monkeypatch.setattr(serve, "LONGEST", 3)
    monkeypatch.setattr(serve, "CONNECTIONS", 3)
    running = serve.make_server(audited["slim"])
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def row(server):
    return dict.fromkeys(server.model.contract["required"], 1.0)


def sent(server, raw, finish=True):
    """Send bytes and return status and body of the answer."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(raw)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else None, body


def post(server, body, length=None, path="/predict", more=""):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(raw) if length is None else length
    return sent(server, f"POST {path} HTTP/1.0\r\nContent-Length: {size}\r\n{more}\r\n".encode() + raw)


def test_good_rows_are_answered(server, row):
    status, body = post(server, [row, row])
    assert status == 200
    assert len(json.loads(body)["outputs"]["prediction"]) == 2


BAD = {
    "no JSON": (b"{", 400),
    "bytes that are no text": (b"\xff\xfe", 400),
    "a key twice": (b'[{"a": 1, "b": 2, "a": 3}]', 400),
    "a key twice in a value": (b'[{"a": {"b": 1, "b": 2}}]', 400),
    "more values than the limit": (b"[" + b"1," * 250_000 + b"1]", 413),
    "a number": (3, 400),
    "a text": ("x", 400),
    "null": (None, 400),
    "rows that are lists": ([[1, 2]], 400),
    "no rows": ([], 400),
    "a row without columns": ({}, 400),
    "NaN": (b'[{"a": NaN}]', 400),
    "nested too deeply": (b"[" * 100_000, 400),
    "too many digits": (b"9" * 10_000, 400),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_4xx_with_one_line(name, server):
    body, expected = BAD[name]
    status, answer = post(server, body)
    assert status == expected, answer
    assert "\n" not in json.loads(answer)["error"]


@pytest.mark.parametrize("value", ["x", None, [1], {"a": 1}, True, 10**400])
def test_a_bad_value_is_4xx(value, server, row):
    status, answer = post(server, [row | {next(iter(row)): value}])
    assert status == 400, answer


@pytest.mark.parametrize("text", [b"1e400", b"1e39", b"-1e39"])
def test_a_number_that_does_not_fit_is_4xx(text, server, row):
    raw = json.dumps([row]).encode().replace(b"1.0", text, 1)
    status, answer = post(server, raw)
    assert status in (400, 422), answer


def test_a_column_given_twice_is_named(server, row):
    name = next(iter(row))
    status, answer = post(server, json.dumps(row).replace("{", f'{{"{name}": 5, ', 1).encode())
    assert (status, f"key '{name}' is given twice" in json.loads(answer)["error"]) == (400, True)


def test_a_row_of_very_many_unknown_names_is_answered_at_once_and_in_short(server, row):
    more = {f"{'k' * 200}{n}": n for n in range(40_000)}
    started = time.monotonic()
    status, answer = post(server, [row | more])
    assert (status, time.monotonic() - started < 3) == (200, True)
    found = json.loads(answer)
    assert (len(found["ignored"]), found["ignored_more"], len(answer) < 20_000) == (100, 39_900, True)
    assert "ignored_more" not in json.loads(post(server, [row | {"other": 1}])[1])


@pytest.mark.parametrize("finish", [True, False])
def test_a_body_beyond_the_limit_is_read_so_that_the_caller_sees_413(finish, server):
    status, answer = sent(
        server, b"POST /predict HTTP/1.0\r\nContent-Length: 16777217\r\n\r\n" + b" " * 16777217, finish
    )
    assert (status, json.loads(answer)["error"]) == (413, "a request has at most 16777216 bytes")


def changed(bundle, place, name, change, seal=False):
    """A copy of a bundle with another file; with its digest in the manifest where it is sealed again."""
    shutil.copytree(bundle, place)
    raw = change((place / name).read_bytes())
    (place / name).unlink() if raw is None else (place / name).write_bytes(raw)
    if seal:
        manifest = json.loads((place / "MANIFEST.json").read_text())
        next(s for s in manifest["subject"] if s["name"] == name)["digest"]["sha256"] = hashlib.sha256(
            raw
        ).hexdigest()
        (place / "MANIFEST.json").write_text(json.dumps(manifest))
    return place


def with_schema(**value):
    """The input schema whose first column has another schema."""

    def change(raw):
        schema = json.loads(raw)
        schema["properties"][next(iter(schema["properties"]))] = value
        return json.dumps(schema).encode()

    return change


def without(key):
    return lambda raw: json.dumps({k: v for k, v in json.loads(raw).items() if k != key}).encode()


def twice(raw):
    return raw.replace(b"{", b'{"title": "a", ', 1)


REFUSED = {
    "a missing schema": ("input_schema.json", lambda raw: None, False, "cannot be read"),
    "a missing model": ("model.onnx", lambda raw: None, False, "cannot be read"),
    "a missing manifest": ("MANIFEST.json", lambda raw: None, False, "cannot be read"),
    "a broken manifest": ("MANIFEST.json", lambda raw: b"[" * 100_000, False, "not a manifest"),
    "a changed model": ("model.onnx", lambda raw: raw + b"x", False, "is not the file of MANIFEST"),
    "a changed schema": (
        "input_schema.json",
        with_schema(type="number"),
        False,
        "is not the file of MANIFEST",
    ),
    "a changed report": ("report.json", lambda raw: raw + b" ", False, "is not the file of MANIFEST"),
    "a broken model": ("model.onnx", lambda raw: raw[:500], True, "ONNX Runtime cannot load it"),
    "an empty model": ("model.onnx", lambda raw: b"", True, "ONNX Runtime cannot load it"),
    "a schema that is no JSON": ("input_schema.json", lambda raw: b"{", True, "not an input schema"),
    "a schema with a key twice": ("input_schema.json", twice, True, "key 'title' is given twice"),
    "a schema without inputs": ("input_schema.json", without("inputs"), True, "not an input schema"),
    "a schema without required": ("input_schema.json", without("required"), True, "not an input schema"),
    "a slow pattern": ("input_schema.json", with_schema(type="string", pattern="^(a+)+$"), True, "'pattern'"),
    "a slow pattern inside": (
        "input_schema.json",
        with_schema(items={"pattern": "^(a+)+$"}),
        True,
        "'pattern'",
    ),
    "a reference": ("input_schema.json", with_schema(**{"$ref": "http://127.0.0.1:9/x"}), True, "'$ref'"),
    "an unknown type": ("input_schema.json", with_schema(type="nothing"), True, "not an input schema"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bundle_that_is_not_whole_is_refused_in_one_line(name, audited, tmp_path):
    file, change, seal, words = REFUSED[name]
    bundle = changed(audited["slim"], tmp_path / "bundle", file, change, seal)
    with pytest.raises(serve.BundleError) as caught:
        serve.make_server(bundle)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_model_and_schema_of_two_bundles_are_refused(audited, tmp_path):
    model = (audited["recurrent"] / "model.onnx").read_bytes()
    bundle = changed(audited["slim"], tmp_path / "bundle", "model.onnx", lambda raw: model, seal=True)
    with pytest.raises(serve.BundleError, match="have other inputs"):
        serve.make_server(bundle)


def test_model_schema_and_manifest_are_all_that_a_server_needs(audited, tmp_path):
    for name in ("model.onnx", "input_schema.json", "MANIFEST.json"):
        shutil.copy(audited["slim"] / name, tmp_path / name)
    serve.make_server(tmp_path).server_close()


def test_the_script_ends_with_one_line_for_a_bundle_and_for_a_port_in_use(audited, tmp_path, server):
    bundle = changed(audited["slim"], tmp_path / "bundle", "model.onnx", lambda raw: b"x")
    for place, port, words in (
        (bundle, 0, "is not the file"),
        (audited["slim"], server.server_port, "in use"),
    ):
        command = [sys.executable, serve.__file__, str(place), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert done.stderr.startswith("error: ")
        assert words in done.stderr


def test_rows_beyond_the_limit_are_413(server, row):
    assert post(server, [row] * 10_001)[0] == 413


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"POST /predict HTTP/1.0\r\n\r\n", 411),
        (b"POST /predict HTTP/1.0\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST /predict HTTP/1.0\r\nContent-Length: 1e3\r\n\r\n", 411),
        ("POST /predict HTTP/1.0\r\nContent-Length: \u00b2\r\n\r\n".encode("latin-1"), 411),
        (b"POST /predict HTTP/1.0\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST /predict HTTP/1.0\r\nContent-Length: 20000000\r\n\r\n", 413),
        (b"POST /predict HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0", 411),
        (b"POST /predict HTTP/1.0\r\nContent-Length: 50\r\n\r\n{}", 408),
        (b"POST /other HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"GET /other HTTP/1.0\r\n\r\n", 404),
        (b"GET /predict HTTP/1.0\r\n\r\n", 404),
        (b"PUT /predict HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", 405),
        (b"DELETE /schema HTTP/1.0\r\n\r\n", 405),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n", 414),
        (b"GET /schema HTTP/9.0\r\n\r\n", 400),
        (b"GET /schema HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_a_bad_request_is_4xx(raw, expected, server):
    assert sent(server, raw)[0] == expected


def test_a_caller_that_sends_nothing_more_is_ended(server):
    started = time.monotonic()
    raw = b"POST /predict HTTP/1.0\r\nContent-Length: 50\r\n\r\n{"
    assert sent(server, raw, finish=False)[0] == 408
    sent(server, b"POST /predict HTTP/1.0\r\nA", finish=False)
    assert time.monotonic() - started < 10


def test_a_caller_that_sends_a_byte_now_and_then_is_ended(server):
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.0\r\nA: ")
        with contextlib.suppress(OSError):  # a reset or a broken pipe
            while time.monotonic() - started < 15:
                connection.sendall(b"x")
                time.sleep(0.3)
    assert time.monotonic() - started < 10


def test_connections_beyond_the_bound_get_503_and_others_go_on(server, row):
    idle = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(3)]
    try:
        statuses = {sent(server, b"GET /health HTTP/1.0\r\n\r\n")[0] for _ in range(2)}
        assert 503 in statuses or threading.active_count() < 12
    finally:
        for connection in idle:
            connection.close()
    deadline = time.monotonic() + 10
    while post(server, [row])[0] != 200:
        assert time.monotonic() < deadline


def test_errors_name_no_values(server, row, capfd):
    secret = "Anna"
    status, _ = post(server, [row | {next(iter(row)): secret}])
    assert status == 400
    assert secret not in capfd.readouterr().err
