"""What MLflow runs to serve a shipped model: columns are chosen by name, the others are ignored.

This file is copied beside the model it serves and must need no more than NumPy, pandas and ONNX Runtime:
nothing of glprune. Names, order and types of the columns are read from the ONNX file itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd


class NamedColumns:
    """A shipped ``model.onnx`` that takes its columns by name."""

    def __init__(self, path: str) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map
        self.inputs = json.loads(facts["glprune.inputs"])
        read = json.loads(facts["glprune.features_read"]) if "glprune.features_read" in facts else None
        self.read = [set(read if read is not None else given["features"]) for given in self.inputs]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def predict(self, given: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Outputs for a frame of named columns, or for a mapping of input name -> array.

        Args:
            given: A DataFrame, shape (rows, any); or arrays by input, passed on as they are.
            params: Of MLflow; unused.

        Returns:
            The output, shape (rows, ...); of several outputs a dictionary by their names.

        Raises:
            ValueError: A column the model reads is missing.
        """
        if isinstance(given, pd.DataFrame):
            feeds = {part["name"]: self._chosen(given, n) for n, part in enumerate(self.inputs)}
        else:
            feeds = {part["name"]: np.asarray(given[part["name"]], part["dtype"]) for part in self.inputs}
        results = self.session.run(None, feeds)
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))

    def _chosen(self, frame: pd.DataFrame, number: int) -> np.ndarray:
        """One input's columns in its order; those that no output depends on may be missing."""
        part, read = self.inputs[number], self.read[number]
        missing = [name for name in part["features"] if name in read and name not in frame.columns]
        if missing:
            raise ValueError(f"columns the model reads are missing: {', '.join(map(repr, missing[:5]))}")
        chosen = np.zeros((len(frame), len(part["features"])), part["dtype"])
        for position, name in enumerate(part["features"]):
            if name in read:
                chosen[:, position] = frame[name].to_numpy()
        return chosen


def _load_pyfunc(path: str) -> NamedColumns:
    """What ``mlflow.pyfunc.load_model`` calls."""
    return NamedColumns(path)
