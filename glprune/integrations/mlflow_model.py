"""The pyfunc model that MLflow serves: it selects columns by name and ignores the others.

This file is copied next to the model, so it imports only NumPy, pandas and ONNX Runtime, and nothing of
glprune. It reads the inputs of the model from the input schema next to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd
from numpy.typing import NDArray


class NamedColumns:
    """A shipped ``model.onnx`` that takes its columns by name, listed in ``input_schema.json`` next to it."""

    def __init__(self, folder: str) -> None:
        path = Path(folder) / "model.onnx"
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = json.loads(path.with_name("input_schema.json").read_text(encoding="utf-8"))["inputs"]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def predict(self, given: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Predict from a frame of named columns, or from a mapping of input name -> array.

        Args:
            given: A DataFrame, shape (rows, any); or arrays by input, passed on unchanged.
            params: Part of MLflow's interface; unused.

        Returns:
            The output, shape (rows, ...); a dictionary by name if there are several outputs.

        Raises:
            ValueError: A column the model reads is missing.
        """
        if isinstance(given, pd.DataFrame):
            feeds = {part["name"]: _select_columns(given, part) for part in self.inputs}
        else:
            feeds = {part["name"]: np.asarray(given[part["name"]], part["dtype"]) for part in self.inputs}
        results = self.session.run(None, feeds)
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))


def _select_columns(frame: pd.DataFrame, part: Mapping[str, Any]) -> NDArray[Any]:
    """Return the columns of one input in its order; those that no output depends on may be missing."""
    read = [column["name"] for column in part["columns"] if column["read"]]
    missing = [name for name in read if name not in frame.columns]
    if missing:
        raise ValueError(f"columns the model reads are missing: {', '.join(map(repr, missing[:5]))}")
    chosen = np.zeros((len(frame), len(part["columns"])), part["dtype"])
    for position, column in enumerate(part["columns"]):
        if column["read"]:
            chosen[:, position] = frame[column["name"]].to_numpy()
    return chosen


def _load_pyfunc(path: str) -> NamedColumns:
    """Load the model; ``mlflow.pyfunc.load_model`` calls this."""
    return NamedColumns(path)
