"""Serve a bundle over HTTP: rows of named fields in, predictions out.

Needs onnxruntime, numpy and jsonschema, and neither glprune nor PyTorch.

    python examples/serve.py glprune-out/german_credit --port 8000
    curl -d '[{"age": 35, ...}]' http://127.0.0.1:8000/predict

A row is a JSON object with the names the network was trained on. What the slim model has no input for may
still be sent, and is ignored and named in the answer. Rows are held against the bundle's input_schema.json.
The files must have the SHA-256 of the bundle's MANIFEST.json; who made that, `glprune verify --trust` says.
"""

import argparse
import contextlib
import hashlib
import heapq
import json
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime

LARGEST = 16 << 20  # bytes of a request
ROWS, VALUES = 10_000, 250_000  # of a request; 250,000 values take some 4 s to validate
NAMES, CHARACTERS = 100, 100  # ignored names in an answer, and of a name
SECONDS, LONGEST = 10, 60  # of silence or of sending a body; of a whole connection
CONNECTIONS = 32  # at a time


KEYWORDS = {"type", "minimum", "maximum", "items", "minItems", "maxItems"}  # what glprune says of a value
TENSORS = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}


class BundleError(Exception):
    """Why a bundle is not served, in one line."""


class BadRequestError(ValueError):
    """What the caller got wrong, in one line, and the status that says it."""

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


class Model:
    """The shipped file behind its contract."""

    def __init__(self, bundle):
        """Read the files once, so that what runs is what was compared with the manifest.

        Raises:
            BundleError: A file is missing, broken, or another than the manifest states.
        """
        digests = manifest(Path(bundle))
        for name in digests:  # those of the bundle that were deployed
            if ".." not in Path(name).parts and (Path(bundle) / name).is_file():
                listed(Path(bundle), name, digests)
        schema = listed(Path(bundle), "input_schema.json", digests)
        try:
            self.contract = strict_json(schema)
            self.inputs = [
                (i["name"], i["dtype"], [column["name"] for column in i["columns"]])
                for i in self.contract["inputs"]
            ]
            self.validator = row_validator(self.contract)
        except (KeyError, TypeError, ValueError, RecursionError, jsonschema.SchemaError) as error:
            what = one_line(error)
            raise BundleError(
                f"{bundle}/input_schema.json: not an input schema of glprune ({what})"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = listed(Path(bundle), "model.onnx", digests)
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has errors of its own
            what = one_line(error)
            raise BundleError(f"{bundle}/model.onnx: ONNX Runtime cannot load it ({what})") from error
        stated = {(name, dtype) for name, dtype, _ in self.inputs}
        if stated != {(i.name, TENSORS.get(i.type)) for i in self.session.get_inputs()}:
            raise BundleError(f"{bundle}: input_schema.json and model.onnx have other inputs")

    def predict(self, body):
        """Predictions for one row or a list of rows, as lists by the name of the output."""
        rows = body if isinstance(body, list) else [body]
        if not rows:
            raise BadRequestError("no rows; send an object or a list of objects")
        if len(rows) > ROWS:
            raise BadRequestError(f"{len(rows)} rows; a request has at most {ROWS}", 413)
        known, ignored = self.contract["properties"], set()
        for number, row in enumerate(rows):
            read = row
            if isinstance(row, dict):
                read = {name: value for name, value in row.items() if name in known}
                ignored |= row.keys() - read.keys()
            fault = next(self.validator.iter_errors(read), None)  # the first: there may be millions
            if fault is not None:
                where = "".join(f"[{part!r}]" for part in fault.absolute_path)
                raise BadRequestError(f"row {number}{where}: {fault.message[:200]}")
        given = {name: self.tensor(name, dtype, columns, rows) for name, dtype, columns in self.inputs}
        try:
            outputs = self.session.run(None, given)
        except Exception as error:  # the runtime has errors of its own
            raise BadRequestError("the model does not run on these rows", 422) from error
        if not all(np.isfinite(values).all() for values in outputs if values.dtype.kind == "f"):
            raise BadRequestError("the model gives NaN or infinity for these rows", 422)
        names = [output.name for output in self.session.get_outputs()]
        answer = {
            "outputs": {name: values.tolist() for name, values in zip(names, outputs, strict=True)},
            "ignored": [name[:CHARACTERS] for name in heapq.nsmallest(NAMES, ignored)],
        }
        return answer | ({"ignored_more": len(ignored) - NAMES} if len(ignored) > NAMES else {})

    def tensor(self, given, dtype, columns, rows):
        """One input's tensor; a column that cannot reach an output may be left out and is then 0."""
        if given in self.contract["properties"]:
            cells = [row[given] for row in rows]
        else:
            cells = [[row.get(name, 0) for name in columns] for row in rows]
        try:
            with np.errstate(over="ignore"):
                values = np.array(cells, dtype=dtype)
        except (ValueError, OverflowError, TypeError) as error:
            problem = (
                "a number is too large" if isinstance(error, OverflowError) else "rows of different lengths"
            )
            raise BadRequestError(f"{given}: {problem}") from error
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadRequestError(f"{given}: a number is too large for {dtype}")
        return values


def manifest(bundle):
    """SHA-256 of the files of a bundle, by name."""
    try:
        stated = strict_json((bundle / "MANIFEST.json").read_bytes())
        return {subject["name"]: subject["digest"]["sha256"] for subject in stated["subject"]}
    except OSError as error:
        raise BundleError(f"{bundle}/MANIFEST.json: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"{bundle}/MANIFEST.json: not a manifest ({one_line(error)})") from error


def listed(bundle, name, digests):
    """A file's bytes, which must be those of the manifest."""
    path = bundle / name
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(raw).hexdigest() != digests.get(name):
        raise BundleError(f"{path}: is not the file of MANIFEST.json; glprune verify lists what differs")
    return raw


def row_validator(contract):
    """The validator of a row, from the keywords that glprune writes: others can be slow or load files."""
    parts = list(contract["properties"].values())
    while parts:
        part = parts.pop()
        if part.keys() - KEYWORDS:
            raise ValueError(f"keyword {min(part.keys() - KEYWORDS)!r}")
        parts += [part["items"]] if "items" in part else []
    schema = {key: contract[key] for key in ("type", "properties", "required")}
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def strict_json(raw):
    """Parse JSON, but no NaN and no key twice: other readers take another of the two values."""
    return json.loads(raw.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)


def refuse(word):
    raise ValueError(f"{word} is not a JSON number")


def unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"key {twice[:CHARACTERS]!r} is given twice")
    return found


def one_line(error):
    return " ".join(str(error).split())[:200]


class Handler(BaseHTTPRequestHandler):
    """GET /schema and /health, POST /predict. What a caller gets wrong is 4xx, with one line that says it."""

    timeout = SECONDS  # of silence: a caller that sends nothing more does not keep a thread
    server_version, sys_version = "glprune", ""
    unread = 0  # bytes of a refused body to read before the connection ends

    def do_GET(self):
        answers = {"/schema": self.server.model.contract, "/health": {"status": "ready"}}
        found = answers.get(self.path)
        self.answer(200 if found else 404, found or {"error": "GET /schema or /health, POST /predict"})

    def do_POST(self):
        try:
            self.answer(200, self.server.model.predict(self.body()))
        except BadRequestError as error:
            self.close_connection = True
            self.answer(error.status, {"error": " ".join(str(error).split())})
            self.drain()

    def body(self):
        """The request's JSON."""
        if self.path != "/predict":
            raise BadRequestError("POST /predict")
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not (length.isascii() and length.isdigit()):
            raise BadRequestError("send the body with its Content-Length", 411)
        if len(length) > 12 or int(length) > LARGEST:
            self.unread = 4 * LARGEST
            raise BadRequestError(f"a request has at most {LARGEST} bytes", 413)
        raw = self.received(int(length))
        if raw.count(b",") >= VALUES:
            raise BadRequestError(f"a request has at most {VALUES} values", 413)
        try:
            return strict_json(raw)
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

    def drain(self):
        """Read the rest of a refused body, within limits: a caller that still sends sees no answer."""
        end = time.monotonic() + SECONDS
        with contextlib.suppress(OSError):
            while self.unread > 0 and time.monotonic() < end and (part := self.rfile.read1(1 << 16)):
                self.unread -= len(part)

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
    model = Model(bundle)
    server = Server((host, port), Handler)
    server.model = model
    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a bundle over HTTP.")
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    try:
        server = make_server(chosen.bundle, chosen.host, chosen.port)
    except BundleError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {chosen.host}:{chosen.port}: {error.strerror}")
    server.serve_forever()
