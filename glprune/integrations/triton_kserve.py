"""Lay a bundle out for model servers: a Triton model repository, and the same for KServe.

No PyTorch here. Shapes and types are read from the ONNX file that is copied, which the bundle's manifest
must vouch for; names and column order from its contract.
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
from glprune.audit.verify import integrity_findings, open_bundle
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
    """Write ``<repository>/<name>``: ``config.pbtxt``, ``1/model.onnx`` and the input contract.

    Args:
        bundle: The folder a run wrote; its files must be what its manifest says.
        repository: Triton's ``--model-repository``; made if need be.
        name: The model's name; small letters, digits and dashes, which Kubernetes takes too.
        max_batch: Largest batch the server makes of several requests, where every tensor has a batch axis.

    Returns:
        The model's folder.

    Raises:
        UsageError: The bundle is not whole, or the name is taken or no name.
    """
    files = _whole(bundle)
    _check_name(name)
    folder = repository / name
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another name or remove it.")
    model = parse(files[bundles.ONNX])
    (folder / "1").mkdir(parents=True)
    (folder / "1" / bundles.ONNX).write_bytes(files[bundles.ONNX])
    (folder / bundles.CONTRACT).write_bytes(files[bundles.CONTRACT])
    (folder / "config.pbtxt").write_text(triton_config(model, name, max_batch), encoding="utf-8")
    return folder


def write_kserve(
    bundle: Path, folder: Path, name: str, uri: str = "pvc://models/models", max_batch: int = MAX_BATCH
) -> Path:
    """Write ``models/`` for KServe's Triton runtime, an InferenceService, and a request to try it with.

    Args:
        bundle: As in :func:`write_triton`.
        folder: Where to write.
        name: Of the model and the InferenceService.
        uri: Where ``models/`` will lie: KServe's ``storageUri``.
        max_batch: As in :func:`write_triton`.

    Returns:
        The InferenceService's file.

    Raises:
        UsageError: As in :func:`write_triton`, or the URI is none.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s\"'#]+", uri):
        raise UsageError(
            f"--storage-uri {uri!r}: write it as pvc://, s3://, gs:// or the like, without spaces."
        )
    service = folder / "inferenceservice.yaml"
    if service.exists():
        raise UsageError(f"{service} exists; choose another folder.")
    model = write_triton(bundle, folder / "models", name, max_batch)
    service.write_text(_SERVICE.format(name=name, uri=uri), encoding="utf-8")
    request = v2_request(parse((model / "1" / bundles.ONNX).read_bytes()))
    bundles.write_json(folder / "request.json", request)
    return service


def triton_config(model: ModelProto, name: str, max_batch: int) -> str:
    """The ``config.pbtxt`` of an ONNX model (Triton's ``inference.ModelConfig`` in text format).

    Where the first axis of every tensor has one label, it is the batch: Triton then joins requests, and its
    dims leave that axis out. Otherwise ``max_batch_size`` is 0 and dims are whole.
    """
    batched = _batched(model)
    lines = [f"name: {_quoted(name)}", 'backend: "onnxruntime"']
    lines += [f"max_batch_size: {max_batch if batched else 0}"]
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            lines.append(f"{kind} {{")
            lines.append(f"  name: {_quoted(value.name)}")
            lines.append(f"  data_type: {_type(value)[0]}")
            lines += [f"  {line}" for line in _dims(_shape(value), batched)]
            lines.append("}")
    if batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def v2_request(model: ModelProto) -> dict[str, object]:
    """A request of the Open Inference Protocol, one row of zeros: what a client fills in."""
    inputs = []
    for value in model.graph.input:
        shape = [size if isinstance(size, int) else 1 for size in _shape(value)]
        kind, zero = _type(value)[1], False if _type(value)[1] == "BOOL" else 0
        data = [zero] * math.prod(shape)
        inputs.append({"name": value.name, "shape": shape, "datatype": kind, "data": data})
    return {"inputs": inputs}


def _whole(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle that are what its manifest says."""
    opened = open_bundle(bundle)
    findings = integrity_findings(opened)
    if findings:
        raise UsageError(
            f"{bundle} is not served: {findings[0]}; `glprune verify` names all that does not hold."
        )
    return opened.files.contents


def _check_name(name: str) -> None:
    if not _NAME.match(name):
        raise UsageError(f"--name {name[:80]!r}: take small letters, digits and dashes, at most 63.")


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
        raise GlpruneError(f"{value.name!r} has a type that Triton's configuration has no name for here.")
    return known


def _quoted(text: str) -> str:
    return json.dumps(text)
