"""The example server answers every bad request with 4xx, ends slow connections and bounds their number."""

import contextlib
import json
import socket
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
