"""Export a bundle to model servers: a model repository for Triton, or for KServe with its manifest.

This needs no PyTorch. Shapes and types come from the ONNX file, which must match the manifest of the bundle;
the input schema is copied with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from glprune.audit.onnx_reader import parse
from glprune.audit.parsed_bundle import open_bundle
from glprune.audit.verify import integrity_findings
from glprune.errors import GlpruneError, UsageError
from glprune.schema import bundle as bundles

MAX_BATCH = 256
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
_TYPES: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT: ("TYPE_FP32", "FP32"),
    TensorProto.DOUBLE: ("TYPE_FP64", "FP64"),
    TensorProto.FLOAT16: ("TYPE_FP16", "FP16"),
    TensorProto.INT64: ("TYPE_INT64", "INT64"),
    TensorProto.INT32: ("TYPE_INT32", "INT32"),
    TensorProto.BOOL: ("TYPE_BOOL", "BOOL"),
}
_SERVICE = """\
# kubectl apply -f inferenceservice.yaml, after storageUri names where models/ was copied to
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    model:
      modelFormat:
        name: triton
      protocolVersion: v2
      storageUri: {uri}
"""


def write_triton(bundle: Path, repository: Path, name: str, max_batch: int = MAX_BATCH) -> Path:
    """Write ``<repository>/<name>``: ``config.pbtxt``, ``1/model.onnx`` and the input schema.

    Args:
        bundle: The folder a run wrote; its files must match its manifest.
        repository: Triton's ``--model-repository``; created if missing.
        name: Name of the model: lower-case letters, digits and dashes, as Kubernetes requires.
        max_batch: Largest batch the server builds from several requests, where every tensor has a batch axis.

    Returns:
        The folder of the model.

    Raises:
        UsageError: The bundle does not match its manifest, or the name exists or is invalid.
    """
    files = _verified_files(bundle)
    _check_name(name)
    folder = repository / name
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another name or remove it.")
    model = parse(files[bundles.ONNX])
    (folder / "1").mkdir(parents=True)
    (folder / "1" / bundles.ONNX).write_bytes(files[bundles.ONNX])
    (folder / bundles.INPUT_SCHEMA).write_bytes(files[bundles.INPUT_SCHEMA])
    (folder / "config.pbtxt").write_text(triton_config(model, name, max_batch), encoding="utf-8")
    return folder


def write_kserve(
    bundle: Path, folder: Path, name: str, uri: str = "pvc://models/models", max_batch: int = MAX_BATCH
) -> Path:
    """Write ``models/`` for KServe's Triton runtime, an InferenceService, and an example request.

    Args:
        bundle: As in ``write_triton``.
        folder: Where to write.
        name: Name of the model and of the InferenceService.
        uri: Location of ``models/`` for KServe: its ``storageUri``.
        max_batch: As in ``write_triton``.

    Returns:
        The file of the InferenceService.

    Raises:
        UsageError: As in ``write_triton``, or the URI is invalid.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s\"'#]+", uri):
        raise UsageError(f"--storage-uri {uri!r}: use a URI such as pvc://, s3:// or gs://, without spaces.")
    service = folder / "inferenceservice.yaml"
    if service.exists():
        raise UsageError(f"{service} exists; choose another folder.")
    model = write_triton(bundle, folder / "models", name, max_batch)
    service.write_text(_SERVICE.format(name=name, uri=uri), encoding="utf-8")
    request = v2_request(parse((model / "1" / bundles.ONNX).read_bytes()))
    bundles.write_json(folder / "request.json", request)
    return service


def triton_config(model: ModelProto, name: str, max_batch: int) -> str:
    """Format the ``config.pbtxt`` of an ONNX model (Triton's ``inference.ModelConfig`` in text format).

    If the first axis of every tensor has the same label, it is the batch axis: Triton then combines requests,
    and ``dims`` leaves that axis out. Otherwise ``max_batch_size`` is 0 and ``dims`` has all axes.
    """
    batched = _batched(model)
    lines = [f"name: {_quoted(name)}", 'backend: "onnxruntime"']
    lines += [f"max_batch_size: {max_batch if batched else 0}"]
    for side, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            lines.append(f"{side} {{")
            lines.append(f"  name: {_quoted(value.name)}")
            lines.append(f"  data_type: {_type(value)[0]}")
            lines += [f"  {line}" for line in _dims(_shape(value), batched)]
            lines.append("}")
    if batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def v2_request(model: ModelProto) -> dict[str, object]:
    """Build a request of the Open Inference Protocol with one row of zeros, as a template for clients."""
    inputs = []
    for value in model.graph.input:
        shape = [size if isinstance(size, int) else 1 for size in _shape(value)]
        datatype = _type(value)[1]
        zero = False if datatype == "BOOL" else 0
        data = [zero] * math.prod(shape)
        inputs.append({"name": value.name, "shape": shape, "datatype": datatype, "data": data})
    return {"inputs": inputs}


def _verified_files(bundle: Path) -> dict[str, bytes]:
    """Return the files of a bundle, which must match its manifest."""
    opened = open_bundle(bundle)
    findings = integrity_findings(opened)
    if findings:
        raise UsageError(
            f"{bundle} is not exported: {findings[0]}; `glprune verify` lists everything that does not match."
        )
    return opened.files.contents


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise UsageError(f"--name {name[:80]!r}: use lower-case letters, digits and dashes, at most 63.")


def _batched(model: ModelProto) -> bool:
    first = [_shape(value)[:1] for value in (*model.graph.input, *model.graph.output)]
    return all(axis and axis == first[0] and isinstance(axis[0], str) for axis in first)


def _dims(shape: Sequence[int | str], batched: bool) -> list[str]:
    sizes = [size if isinstance(size, int) else -1 for size in shape[1 if batched else 0 :]]
    if sizes:
        return [f"dims: [ {', '.join(map(str, sizes))} ]"]
    return ["dims: [ 1 ]", "reshape { shape: [ ] }"]  # Triton has no empty dims


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


def _type(value: onnx.ValueInfoProto) -> tuple[str, str]:
    known = _TYPES.get(value.type.tensor_type.elem_type)
    if known is None:
        raise GlpruneError(f"{value.name!r} has a data type that the Triton export does not support.")
    return known


def _quoted(text: str) -> str:
    return json.dumps(text)
