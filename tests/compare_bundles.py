"""Compare two bundles by meaning: ``python -m tests.compare_bundles OLD NEW``.

A bundle of an older report schema is compared too: its keys are renamed first. Times, versions, digests and
sentences may differ; supports, weights, metrics and every other number must be equal to the bit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file

_RENAMED = {  # key of glprune.report/1 -> key of glprune.report/2
    "fields": "features",
    "field": "feature",
    "balance": "input_strength",
    "multiple": "round_to",
    "within": "l1_ratio",
    "concavity": "gamma",
    "halvings": "lr_halvings",
    "share": "subsample",
}
_FREE = {
    "timing",
    "latency",
    "digests",
    "digest",
    "run",
    "schema",
    "warnings",
    "not_measured",
    "widths",
    "recipe",
}
_SENTENCES = {"rule", "reason", "note", "notes"}
_FILE_SIZES = {"onnx_bytes_before", "onnx_bytes_after"}  # the file's metadata holds names and a version


def _facts(value: Any, old: bool) -> Any:
    if isinstance(value, dict):
        return {
            _RENAMED.get(key, key) if old else key: _facts(item, old)
            for key, item in value.items()
            if key not in _FREE | _SENTENCES | _FILE_SIZES
        }
    return [_facts(item, old) for item in value] if isinstance(value, list) else value


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in old or key not in new:
                yield f"{where}/{key}: only in the {'old' if key in old else 'new'} bundle"
            else:
                yield from _differences(old[key], new[key], f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{where}/{number}")
    elif old != new:
        yield f"{where}: {old!r} became {new!r}"


def _tensor_differences(old: dict[str, np.ndarray], new: dict[str, np.ndarray], where: str) -> Iterator[str]:
    if list(old) != list(new):
        yield f"{where}: tensors {sorted(old)} became {sorted(new)}"
        return
    for name in old:
        if old[name].dtype != new[name].dtype or old[name].tobytes() != new[name].tobytes():
            yield f"{where}: tensor {name!r} differs"


def _initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def _operators(path: Path) -> list[list[Any]]:
    return [[n.op_type, list(n.input), list(n.output)] for n in onnx.load(path).graph.node]


def compare(old: Path, new: Path) -> list[str]:
    """List what differs in meaning between two bundles; empty where they are the same."""
    reports = [json.loads((bundle / "report.json").read_text(encoding="utf-8")) for bundle in (old, new)]
    plans = [json.loads((bundle / "plan.json").read_text(encoding="utf-8")) for bundle in (old, new)]
    older = reports[0]["schema"] != reports[1]["schema"]
    models = [bundle / "model.onnx" for bundle in (old, new)]
    weights = [load_file(bundle / "model.safetensors") for bundle in (old, new)]
    return [
        *_differences(_facts(reports[0], older), _facts(reports[1], False), "report.json"),
        *_differences(*plans, "plan.json"),
        *_tensor_differences(*weights, "model.safetensors"),
        *_tensor_differences(*(_initializers(m) for m in models), "model.onnx"),
        *_differences(*(_operators(m) for m in models), "model.onnx: nodes"),
    ]


def main() -> None:
    """Print the differences; exit with 1 where there are any."""
    old, new = (Path(argument) for argument in sys.argv[1:])
    found = compare(old, new)
    print(
        "\n".join(found) or f"{old} and {new} are equal in supports, weights, metrics and every other number"
    )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
