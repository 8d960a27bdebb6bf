"""Serve a bundle over HTTP: rows of named fields in, predictions out.

Needs onnxruntime, numpy and jsonschema, and neither glprune nor PyTorch.

    python examples/serve.py glprune-out/german_credit --port 8000
    curl -d '[{"age": 35, ...}]' http://127.0.0.1:8000/predict

A row is a JSON object with the names the network was trained on. What the slim model has no input for may
still be sent, and is ignored and named in the answer. Rows are held against the bundle's input_schema.json.
"""

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime

LARGEST = 16 << 20  # bytes of a request
ROWS = 10_000  # of a request
SECONDS, LONGEST = 10, 60  # of silence or of sending a body; of a whole connection
CONNECTIONS = 32  # at a time


class BadRequestError(ValueError):
    """What the caller got wrong, in one line, and the status that says it."""

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


class Model:
    """The shipped file behind its contract."""

    def __init__(self, bundle):
        self.contract = json.loads((Path(bundle) / "input_schema.json").read_text(encoding="utf-8"))
        self.validator = jsonschema.Draft202012Validator(self.contract)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(Path(bundle) / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def predict(self, body):
        """Predictions for one row or a list of rows, as lists by the name of the output."""
        rows = body if isinstance(body, list) else [body]
        if not rows:
            raise BadRequestError("no rows; send an object or a list of objects")
        if len(rows) > ROWS:
            raise BadRequestError(f"{len(rows)} rows; a request has at most {ROWS}", 413)
        for number, row in enumerate(rows):
            fault = jsonschema.exceptions.best_match(self.validator.iter_errors(row))
            if fault is not None:
                where = "".join(f"[{part!r}]" for part in fault.absolute_path)
                raise BadRequestError(f"row {number}{where}: {fault.message[:200]}")
        given = {i["name"]: self.tensor(i, rows) for i in self.contract["inputs"]}
        try:
            outputs = self.session.run(None, given)
        except Exception as error:  # the runtime has errors of its own
            raise BadRequestError("the model does not run on these rows", 422) from error
        if not all(np.isfinite(values).all() for values in outputs if values.dtype.kind == "f"):
            raise BadRequestError("the model gives NaN or infinity for these rows", 422)
        names = [output.name for output in self.session.get_outputs()]
        known = self.contract["properties"]
        return {
            "outputs": {name: values.tolist() for name, values in zip(names, outputs, strict=True)},
            "ignored": sorted({key for row in rows for key in row} - known.keys()),
        }

    def tensor(self, given, rows):
        """One input's tensor; a column that cannot reach an output may be left out and is then 0."""
        names = [column["name"] for column in given["columns"]]
        if given["name"] in self.contract["properties"]:
            cells = [row[given["name"]] for row in rows]
        else:
            cells = [[row.get(name, 0) for name in names] for row in rows]
        try:
            with np.errstate(over="ignore"):
                values = np.array(cells, dtype=given["dtype"])
        except (ValueError, OverflowError, TypeError) as error:
            problem = (
                "a number is too large" if isinstance(error, OverflowError) else "rows of different lengths"
            )
            raise BadRequestError(f"{given['name']}: {problem}") from error
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadRequestError(f"{given['name']}: a number is too large for {given['dtype']}")
        return values


class Handler(BaseHTTPRequestHandler):
    """GET /schema and /health, POST /predict. What a caller gets wrong is 4xx, with one line that says it."""

    timeout = SECONDS  # of silence: a caller that sends nothing more does not keep a thread
    server_version, sys_version = "glprune", ""

    def do_GET(self):
        answers = {"/schema": self.server.model.contract, "/health": {"status": "ready"}}
        found = answers.get(self.path)
        self.answer(200 if found else 404, found or {"error": "GET /schema or /health, POST /predict"})

    def do_POST(self):
        try:
            self.answer(200, self.server.model.predict(self.body()))
        except BadRequestError as error:
            self.close_connection = True  # what is left of the body is not read
            self.answer(error.status, {"error": " ".join(str(error).split())})

    def body(self):
        """The request's JSON."""
        if self.path != "/predict":
            raise BadRequestError("POST /predict")
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit()):
            raise BadRequestError("send the body with its Content-Length", 411)
        if len(length) > 12 or int(length) > LARGEST:
            raise BadRequestError(f"a request has at most {LARGEST} bytes", 413)
        raw = self.received(int(length))
        try:
            return json.loads(raw.decode("utf-8"), parse_constant=self.refuse)
        except (ValueError, RecursionError) as error:
            raise BadRequestError(f"the body is not JSON ({str(error)[:200]})") from error

    def received(self, length):
        """Read the body within the time limit, however slowly its bytes come."""
        end, parts = time.monotonic() + SECONDS, []
        while length:
            part = b""
            with contextlib.suppress(TimeoutError):
                part = self.rfile.read1(min(length, 1 << 16)) if time.monotonic() < end else b""
            if not part:
                raise BadRequestError("the body ends, or takes too long, before its Content-Length", 408)
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    @staticmethod
    def refuse(word):
        raise ValueError(f"{word} is not a JSON number")

    def send_error(self, code, message=None, explain=None):
        """Answer what the standard library refuses, such as methods (501) and versions of HTTP (505)."""
        self.close_connection, self.request_version = True, "HTTP/1.0"
        self.answer(
            {501: 405, 505: 400}.get(code, code), {"error": message or "not a request of this server"}
        )

    def answer(self, status, value):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        """Rows may be personal: nothing is logged."""


class Server(ThreadingHTTPServer):
    """One thread for each connection, and a bound on their number: more wait, then get 503."""

    daemon_threads = True

    def __init__(self, address, handler):
        self.free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request, client_address):
        if self.free.acquire(timeout=1):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.sendall(
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
            )
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        timer = threading.Timer(LONGEST, cut, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self.free.release()

    def handle_error(self, request, client_address):
        """A caller that hangs up is no error of the server; others are printed without the rows."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"error: {type(error).__name__}", file=sys.stderr)


def cut(connection):
    """End a connection that lasts too long."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def make_server(bundle, host="127.0.0.1", port=0):
    """A server that is not running yet; port 0 takes a free one."""
    server = Server((host, port), Handler)
    server.model = Model(bundle)
    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a bundle over HTTP.")
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    make_server(chosen.bundle, chosen.host, chosen.port).serve_forever()
