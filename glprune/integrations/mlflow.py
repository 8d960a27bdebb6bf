"""Log a run to MLflow: the recipe as parameters, the path by step, the bundle, and a model to serve."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from glprune.errors import UsageError
from glprune.integrations.ci import dvc
from glprune.schema import bundle as bundles
from glprune.schema.strict_yaml import parse, read_text

if TYPE_CHECKING:
    from glprune.result import Result
    from glprune.schema.report import Report

_BATCH = 100  # parameters in one request; the server's limit
_MAX_VALUE = 6000  # characters of a parameter's value; the server's limit
_RECIPE_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_POINT = ("lam", "features", "hidden", "metric", "loss", "penalty")


@contextlib.contextmanager
def tracked(
    name: str, model: str | None = None, alias: str | None = None
) -> Iterator[Callable[[Result], str]]:
    """Open an MLflow run before the work starts, so that a later failure marks the run as failed.

    Uses the active run, or the one ``MLFLOW_RUN_ID`` names, or starts a new one as ``MLFLOW_TRACKING_URI``
    and ``MLFLOW_EXPERIMENT_NAME`` configure.

    Args:
        name: Name of a new run.
        model: Register the model under this name.
        alias: Point this alias of the registered model at the new version.

    Yields:
        A function that logs a result and returns the id of the MLflow run.

    Raises:
        UsageError: MLflow is not installed, cannot be reached or refuses something.
    """
    if alias is not None and model is None:
        raise UsageError("--mlflow-alias needs --mlflow-model: an alias belongs to a registered model.")
    mlflow = _mlflow()
    try:
        active = mlflow.active_run()
        with contextlib.nullcontext(active) if active is not None else mlflow.start_run(run_name=name) as run:
            yield lambda result: _log(mlflow, run.info.run_id, result, model, alias)
    except mlflow.exceptions.MlflowException as error:
        raise UsageError(f"MLflow: {error}") from None


def log_result(result: Result, model: str | None = None, alias: str | None = None) -> str:
    """Log what ``glprune.run`` returned into the active MLflow run, or into a new one.

    Args:
        result: The run's result.
        model: Register the model under this name.
        alias: Point this alias of the registered model at the new version.

    Returns:
        The MLflow run's id.

    Raises:
        UsageError: MLflow is not installed, cannot be reached or refuses something.
    """
    with tracked(result.bundle.name, model, alias) as log:
        return log(result)


def parameters(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a recipe to dotted keys; a mapping with keys chosen by the user stays one value, as JSON.

    MLflow rejects most characters in names, so the name of a column must not become one.
    """
    found: dict[str, str] = {}

    def visit(key: str, value: Any) -> None:
        if isinstance(value, Mapping) and value and all(_RECIPE_KEY.fullmatch(inner) for inner in value):
            for inner, below in value.items():
                visit(f"{key}.{inner}" if key else inner, below)
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[key] = text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."

    visit("", recipe)
    return found


def final_metrics(report: Report) -> dict[str, float]:
    """Flatten the metrics of ``metrics.json`` to dotted keys."""
    return {
        f"{section}.{name}" if isinstance(values, Mapping) else section: float(value)
        for section, values in dvc.metrics(report).items()
        for name, value in (values.items() if isinstance(values, Mapping) else [("", values)])
    }


def _mlflow() -> Any:
    """Import MLflow, which is optional and takes seconds."""
    try:
        importlib.import_module("mlflow.onnx")
        return importlib.import_module("mlflow")
    except ImportError as error:
        raise UsageError(f"--mlflow needs {error.name}; pip install 'glprune[mlflow]'.") from None


def _log(mlflow: Any, run: str, result: Result, model: str | None, alias: str | None) -> str:
    client = mlflow.MlflowClient()
    recipe, _ = parse(read_text(result.bundle / bundles.RECIPE), bundles.RECIPE)
    entities = mlflow.entities
    listed = [entities.Param(key, value) for key, value in parameters(recipe).items()]
    for start in range(0, len(listed), _BATCH):
        client.log_batch(run, params=listed[start : start + _BATCH])
    now = int(time.time() * 1000)
    for step, point in enumerate(result.report.path, 1):
        values = {f"path.{name}": float(getattr(point, name)) for name in _POINT}
        client.log_batch(
            run, metrics=[entities.Metric(key, value, now, step) for key, value in values.items()]
        )
    final = final_metrics(result.report)
    client.log_batch(run, metrics=[entities.Metric(key, value, now, 0) for key, value in final.items()])
    client.log_artifacts(run, str(result.bundle), "bundle")
    version = _log_model(mlflow, run, result, model)
    if model is not None and alias is not None:
        client.set_registered_model_alias(model, alias, version)
    return run


def _log_model(mlflow: Any, run: str, result: Result, model: str | None) -> str | None:
    """Log the shipped file in the ONNX flavour, with a pyfunc that selects columns by name."""
    with _quiet():
        logged = mlflow.models.Model.log(
            artifact_path=None,
            name="model",
            flavor=sys.modules[__name__],
            registered_model_name=model,
            run_id=run,
            bundle=result.bundle,
            signature=signature(result.bundle),
        )
    version: str | None = logged.registered_model_version
    return version


def save_model(path: str, mlflow_model: Any, bundle: Path, signature: Any = None, **others: Any) -> None:
    """Save the model of a bundle; the flavour interface of ``mlflow.models.Model.log``."""
    mlflow, pandas = _mlflow(), importlib.import_module("pandas")
    required = [f"{package.__name__}=={package.__version__}" for package in (np, onnx, onnxruntime, pandas)]
    loader = Path(__file__).with_name("mlflow_model.py")
    mlflow.onnx.save_model(
        onnx.load(bundle / bundles.ONNX),
        path,
        mlflow_model=mlflow_model,
        signature=signature,
        code_paths=[str(loader)],
        pip_requirements=[f"mlflow=={mlflow.__version__}", *required],
        save_as_external_data=False,
    )
    shutil.copy(bundle / bundles.INPUT_SCHEMA, path)
    # only the loader differs from the flavour MLflow wrote
    mlflow_model.flavors["python_function"] |= {"loader_module": loader.stem, "data": "."}
    mlflow_model.metadata = {"glprune.model_sha256": bundles.digest(bundle / bundles.ONNX)}
    mlflow_model.save(str(Path(path) / "MLmodel"))


def signature(bundle: Path) -> Any:
    """Build the model signature: the columns the file reads, or whole arrays where inputs are not tables."""
    models, types, schema = (
        importlib.import_module(f"mlflow.{name}") for name in ("models", "types", "types.schema")
    )
    contract = json.loads((bundle / bundles.INPUT_SCHEMA).read_text(encoding="utf-8"))
    tables = all(
        part["axis"] == 1 and len(part["shape"]) == 2 and part["columns"] for part in contract["inputs"]
    )
    # MLflow rejects 64-bit integers for a column of type "double", and frames read from files have many
    column_types: dict[str, Any] = {"float32": schema.AnyType(), "int64": "long", "bool": "boolean"}
    if tables:
        columns = {
            c["name"]: column_types[part["dtype"]]
            for part in contract["inputs"]
            for c in part["columns"]
            if c["read"]
        }
        specs = [types.ColSpec(kind, name) for name, kind in columns.items()]
        return models.ModelSignature(inputs=types.Schema(specs))
    specs = [
        types.TensorSpec(
            np.dtype(part["dtype"]), [n if isinstance(n, int) else -1 for n in part["shape"]], part["name"]
        )
        for part in contract["inputs"]
    ]
    return models.ModelSignature(inputs=types.Schema(specs))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress MLflow's links to the run: standard output may be JSON."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
