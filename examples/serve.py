"""Serve a bundle over HTTP: rows of named fields in, predictions out.

Needs onnxruntime, numpy and jsonschema, and neither glprune nor PyTorch.

    python examples/serve.py glprune-out/german_credit --port 8000
    curl -d '[{"age": 35, ...}]' http://127.0.0.1:8000/predict

A row is a JSON object with the names the network was trained on. What the slim model has no input for may
still be sent, and is ignored and named in the answer. Rows are held against the bundle's input_schema.json.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime

LARGEST = 16 << 20  # bytes of a request


class BadRequestError(ValueError):
    """What the caller got wrong, in one line."""


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
        for number, row in enumerate(rows):
            fault = jsonschema.exceptions.best_match(self.validator.iter_errors(row))
            if fault is not None:
                where = "".join(f"[{part!r}]" for part in fault.absolute_path)
                raise BadRequestError(f"row {number}{where}: {fault.message[:200]}")
        outputs = self.session.run(None, {i["name"]: self.tensor(i, rows) for i in self.contract["inputs"]})
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
            return np.array(cells, dtype=given["dtype"])
        except ValueError as error:
            raise BadRequestError(f"{given['name']}: rows of different lengths") from error


class Handler(BaseHTTPRequestHandler):
    """GET /schema and /health, POST /predict."""

    def do_GET(self):
        answers = {"/schema": self.server.model.contract, "/health": {"status": "ready"}}
        found = answers.get(self.path)
        self.answer(200 if found else 404, found or {"error": "GET /schema or /health, POST /predict"})

    def do_POST(self):
        try:
            self.answer(200, self.server.model.predict(self.body()))
        except BadRequestError as error:
            self.answer(400, {"error": " ".join(str(error).split())})

    def body(self):
        """The request's JSON."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/predict" or not length.isdigit() or int(length) > LARGEST:
            raise BadRequestError(f"POST /predict with a Content-Length of at most {LARGEST} bytes")
        try:
            return json.loads(self.rfile.read(int(length)), parse_constant=self.refuse)
        except (ValueError, RecursionError) as error:
            raise BadRequestError(f"the body is not JSON ({error})") from error

    @staticmethod
    def refuse(word):
        raise ValueError(f"{word} is not a JSON number")

    def answer(self, status, value):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        """Rows may be personal: nothing is logged."""


def make_server(bundle, host="127.0.0.1", port=0):
    """A server that is not running yet; port 0 takes a free one."""
    server = ThreadingHTTPServer((host, port), Handler)
    server.model = Model(bundle)
    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a bundle over HTTP.")
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    make_server(chosen.bundle, chosen.host, chosen.port).serve_forever()
