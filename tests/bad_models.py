"""Bad model files: pickles that would run code in every place of a file, archives and safetensors that lie."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.bad_inputs import INSPECT, RUN, Bad, Make, content, network, replaced_by, shortened


class Bomb:
    """A pickle that would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("ran", "w"))


RAN = b"X\x03\x00\x00\x00ranX\x01\x00\x00\x00w"
OPEN = b"cbuiltins\nopen\n"
OPCODES = {
    "reduce": b"\x80\x02" + OPEN + b"(" + RAN + b"tR.",
    "inst": b"\x80\x02(" + RAN + b"ibuiltins\nopen\n.",
    "obj": b"\x80\x02(" + OPEN + RAN + b"o.",
    "newobj": b"\x80\x02cio\nFileIO\n(" + RAN + b"t\x81.",
    "build": b"\x80\x02" + OPEN + b"}X\x01\x00\x00\x00a" + RAN[:8] + b"sb.",
    "stack global": pickle.dumps(Bomb(), protocol=4),
    "protocol 0": pickle.dumps(Bomb(), protocol=0),
    "persistent id": b"\x80\x02(X\x07\x00\x00\x00storage" + OPEN + b"(" + RAN + b"tRtQ.",
    "text persistent id": b"\x80\x02Pran\n.",
    "extension": b"\x80\x02\x82\x01.",
    "rebuild": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
    + OPEN
    + b"ctorch\nTensor\n("
    + RAN
    + b"t}tR.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR(X\x09\x00\x00\x00touch rantR.",
}
POSITIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "whole": lambda s: Bomb(),
    "value": lambda s: s | {"extra": Bomb()},
    "key": lambda s: s | {Bomb(): 1},
    "list": lambda s: s | {"extra": [[[Bomb()]]]},
    "tuple": lambda s: s | {"extra": (1, (Bomb(), 2))},
    "set": lambda s: {"state_dict": s, "extra": {Bomb()}},
    "optimizer": lambda s: {"model": s, "optimizer": {"state": {0: {"step": Bomb()}}}},
    "module": lambda s: network(),
}
LEGACY = ("magic", "protocol", "system", "object", "keys")


def saved(change: Callable[[dict[str, Any]], Any], **how: Any) -> Make:
    """What torch.save makes of a changed state dict."""
    return lambda folder: torch.save(change(dict(network().state_dict())), folder / "model.pt", **how)


def archive(
    data: bytes | None, *more: tuple[str | zipfile.ZipInfo, bytes], kind: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip as torch.save writes it, with this pickle and more members."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", kind) as file:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, raw in (("m/data.pkl", data), ("m/byteorder", b"little"), ("m/version", b"3\n"), *more):
            if raw is not None:
                file.writestr(name, raw)
    return stream.getvalue()


def good(
    *more: tuple[str | zipfile.ZipInfo, bytes], kind: int = zipfile.ZIP_STORED, data: bytes | None = None
) -> Make:
    """The trained weights with more members, compressed, or with another pickle."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "model.pt") as file:
            own = {name: file.read(name) for name in file.namelist()}
        pickled = own.pop("model/data.pkl")
        members = [(name.replace("model/", "m/"), raw) for name, raw in own.items()]
        kept = [m for m in members if m[0] not in ("m/byteorder", "m/version")]
        (folder / "model.pt").write_bytes(archive(data or pickled, *kept, *more, kind=kind))

    return make


def linked() -> zipfile.ZipInfo:
    """A member that is a symbolic link."""
    info = zipfile.ZipInfo("m/../../link")
    info.external_attr = 0o120777 << 16
    return info


def legacy(place: str, bomb: bytes) -> bytes:
    """A file of the time before zips with a bomb as one of its pickles."""
    parts = {
        "magic": pickle.dumps(torch.serialization.MAGIC_NUMBER, 2),
        "protocol": pickle.dumps(torch.serialization.PROTOCOL_VERSION, 2),
        "system": pickle.dumps({"little_endian": True}, 2),
        "object": pickle.dumps({}, 2),
        "keys": pickle.dumps([], 2),
    }
    return b"".join((parts | {place: bomb}).values())


def tar(bomb: bytes) -> bytes:
    """A file of the time before that."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(bomb)
            file.addfile(info, io.BytesIO(bomb))
    return stream.getvalue()


def lying(old: bytes, new: bytes) -> Make:
    """The trained weights, their pickle saying something else of them."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "model.pt") as file:
            data = file.read("model/data.pkl")
        assert old in data
        good(data=data.replace(old, new, 1))(folder)

    return make


def tensors(header: Any, body: bytes = b"\0" * 16, size: int | None = None) -> Make:
    """A safetensors file with this header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = (len(raw) if size is None else size).to_bytes(8, "little")
    return content(length + raw + body, "model.safetensors")


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


PICKLE = (
    "model.pt is a pickle of more than tensors, and reading a pickle runs code of whoever made it; save "
    "torch.save(model.state_dict(), path) instead, or pass --trust-pickle."
)
FOREIGN = "model.pt: not a file torch.save wrote; save torch.save(model.state_dict(), path)."
BROKEN = "model.pt: not a file torch.save wrote (...)."
EXPORTED = (
    "model.pt2 is a torch.export program; save torch.export.load(path).state_dict by torch.save instead."
)
ONNX = "{} is an ONNX file, which glprune writes and does not read; give the PyTorch weights it was exported from."
ONNX_BYTES = b"\x08\x0a\x12\x07pytorch\x1a\x062.13.0"
SKLEARN = "{} is a pickle of sklearn.pipeline.Pipeline, not of a PyTorch network; save the state dict of the network alone."
PIPELINE = b"\x80\x04\x8c\x10sklearn.pipeline\x94\x8c\x08Pipeline\x94\x93\x94)\x81."
MAIN = (
    "model.pt is a pickle that needs __main__.Net, a class of the script that wrote it; save "
    "torch.save(model.state_dict(), path) there instead."
)
SAVE = "save torch.save(model.state_dict(), path)"
FOREIGN_KINDS = [
    ("pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS to the weights; run git lfs pull"),
    ("web page", b"<!doctype html>", "a web page, not the file that it links to; download the weights again"),
    ("HDF5", b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as of Keras; PyTorch's weights are needed: {SAVE}"),
    ("array", b"\x93NUMPY\x01\0", f"a NumPy array; {SAVE}"),
    ("TensorFlow Lite", b"\x1c\0\0\0TFL3", f"a TensorFlow Lite file; PyTorch's weights are needed: {SAVE}"),
    ("GGUF", b"GGUF\x03\0", f"a GGUF file; {SAVE} of the PyTorch network"),
    ("gzip", b"\x1f\x8b\x08\0", "compressed by gzip; unpack it"),
    ("xz", b"\xfd7zXZ\0", "compressed by xz; unpack it"),
]  # fmt: skip
SAFE = "inspect recipe.yaml model.safetensors"
UNSAFE = "model.safetensors: not a safetensors file (...)."

MODELS = [
    Bad("no model file", "run recipe.yaml absent.pt --out out --quiet", 3, "absent.pt cannot be read (No such file or directory); give the trained weights (.pt or .safetensors)."),
    Bad("model is a folder", INSPECT, 3, "model.pt is a folder, not a file; give the trained weights (.pt or .safetensors).", replaced_by("folder", "model.pt")),
    Bad("model is a pipe", INSPECT, 3, "model.pt is a pipe or device, not a file; give the trained weights (.pt or .safetensors).", replaced_by("pipe", "model.pt")),
    Bad("model is a device", INSPECT, 3, "model.pt is a pipe or device, not a file; give the trained weights (.pt or .safetensors).", replaced_by("device", "model.pt")),
    Bad("model is empty", INSPECT, 3, FOREIGN, content("", "model.pt")),
    Bad("model is text", INSPECT, 3, FOREIGN, content("weights", "model.pt")),
    Bad("model is a tar", INSPECT, 3, FOREIGN, content(tar(OPCODES["reduce"]), "model.pt")),
    *(Bad(f"pickle that runs code as {name} of a torch file", INSPECT, 3, PICKLE, saved(change)) for name, change in POSITIONS.items()),
    *(Bad(f"pickle that runs code as {name} of a legacy file", INSPECT, 3, PICKLE, saved(change, _use_new_zipfile_serialization=False)) for name, change in POSITIONS.items()),
    *(Bad(f"pickle that runs code by {name}", INSPECT, 3, PICKLE, content(archive(raw), "model.pt")) for name, raw in OPCODES.items()),
    *(Bad(f"pickle that runs code as {place} pickle of a legacy file", INSPECT, 3, PICKLE, content(legacy(place, OPCODES["reduce"]), "model.pt")) for place in LEGACY),
    *(Bad(f"bare pickle that runs code by {name}", INSPECT, 3, FOREIGN if raw[:1] != b"\x80" else PICKLE, content(raw, "model.pt")) for name, raw in OPCODES.items() if name in ("reduce", "inst", "stack global", "protocol 0")),
    Bad("pickle among the extra members of an archive", INSPECT, 3, "model.pt is a TorchScript archive, which holds code; save model.state_dict() instead.", good(("m/constants.pkl", OPCODES["reduce"]))),
    Bad("TorchScript", RUN, 3, "model.pt is a TorchScript archive, which holds code; save model.state_dict() instead.", content(archive(b"\x80\x02}.", ("m/constants.pkl", b"\x80\x02)."), ("m/code/a.py", b"open('ran', 'w')")), "model.pt")),
    Bad("archive without a pickle", INSPECT, 3, BROKEN, content(archive(None), "model.pt")),
    Bad("member above the archive", INSPECT, 3, "model.pt: member 'm/../../ran' leaves the archive or is there twice; save it anew.", good(("m/../../ran", b"x"))),
    Bad("member with an absolute path", INSPECT, 3, "model.pt: member '/tmp/ran' leaves the archive or is there twice; save it anew.", good(("/tmp/ran", b"x"))),
    Bad("member that is a link out", INSPECT, 3, "model.pt: member 'm/../../link' leaves the archive or is there twice; save it anew.", good((linked(), b"/etc"))),
    Bad("member twice", INSPECT, 3, "model.pt: member 'm/version' leaves the archive or is there twice; save it anew.", good(("m/version", b"4\n"))),
    Bad("zip bomb", INSPECT, 3, "model.pt: unpacks to 100,000,... bytes, more than it has; write it with torch.save.", good(("m/data/9", b"\0" * 100_000_000), kind=zipfile.ZIP_DEFLATED)),
    Bad("tensor larger than its member", INSPECT, 3, BROKEN, lying(b"cpuq\x07K\x0c", b"cpuq\x07J\xff\xff\xff\x7f")),
    Bad("tensor of a shape its values do not fill", INSPECT, 3, BROKEN, lying(b"K\x04K\x03\x86", b"K\xffK\xff\x86")),
    Bad("half an archive", INSPECT, 3, "model.pt: truncated or no file torch.save wrote (File is not a zip file).", shortened("model.pt", 0.5)),
    Bad("archive without its last bytes", RUN, 3, "model.pt: truncated or no file torch.save wrote (File is not a zip file).", shortened("model.pt", 0.99)),
    Bad("empty archive", INSPECT, 3, FOREIGN, content(b"PK\x05\x06" + b"\0" * 18, "model.pt")),
    Bad("TorchScript under its own name", "inspect recipe.yaml model.torchscript", 3, "model.torchscript is a TorchScript archive, which holds code; save model.state_dict() instead.", content(archive(b"\x80\x02}.", ("m/constants.pkl", b"")), "model.torchscript")),
    Bad("program of torch.export", "run recipe.yaml model.pt2 --out out --quiet", 3, EXPORTED, content(archive(None, ("m/models/model.json", b"{}")), "model.pt2")),
    Bad("old program of torch.export", "inspect recipe.yaml model.pt2", 3, EXPORTED, content(archive(None, ("serialized_exported_program.json", b"{}")), "model.pt2")),
    Bad("trusted program of torch.export", "inspect recipe.yaml model.pt2 --trust-pickle", 3, EXPORTED, content(archive(None, ("m/models/model.json", b"{}")), "model.pt2")),
    Bad("ONNX file", "inspect recipe.yaml model.onnx", 3, ONNX.format("model.onnx"), content(ONNX_BYTES, "model.onnx")),
    Bad("ONNX file under another name", RUN, 3, ONNX.format("model.pt"), content(ONNX_BYTES, "model.pt")),
    Bad("pipeline of scikit-learn by joblib", "inspect recipe.yaml model.joblib", 3, SKLEARN.format("model.joblib"), content(PIPELINE, "model.joblib")),
    Bad("trusted pipeline of scikit-learn", f"{INSPECT} --trust-pickle", 3, SKLEARN.format("model.pt"), content(PIPELINE, "model.pt")),
    Bad("compressed pipeline of joblib", "inspect recipe.yaml model.joblib", 3, "model.joblib is a pickle of another library (joblib?), not of PyTorch weights; save torch.save(model.state_dict(), path).", content(zlib.compress(PIPELINE), "model.joblib")),
    Bad("pickle of arrays", INSPECT, 3, "model.pt is a pickle of NumPy arrays, not of a PyTorch network; save the state dict of the network alone.", content(pickle.dumps({"w": np.ones(3)}), "model.pt")),
    Bad("pickle of a class of a script", INSPECT, 3, MAIN, content(archive(b"\x80\x02c__main__\nNet\n)\x81."), "model.pt")),
    Bad("trusted pickle of a class of a script", f"{INSPECT} --trust-pickle", 3, MAIN, content(archive(b"\x80\x02c__main__\nNet\n)\x81."), "model.pt")),
    Bad("trusted pickle of a class that is not found", f"{INSPECT} --trust-pickle", 3, "model.pt: the pickle cannot be read (ModuleNotFoundError: No module named 'absent' at ...); save torch.save(model.state_dict(), path) where the code that it needs is found.", content(archive(b"\x80\x02cabsent\nNet\n)\x81."), "model.pt")),
    *(Bad(f"{name} instead of weights", INSPECT, 3, f"model.pt is {what}.", content(raw, "model.pt")) for name, raw, what in FOREIGN_KINDS),
    Bad("archive of arrays", INSPECT, 3, "model.pt is an archive of NumPy arrays; save torch.save(model.state_dict(), path).", content(archive(None, ("w.npy", b"")), "model.pt")),
    Bad("Keras model", "inspect recipe.yaml model.keras", 3, "model.keras is a Keras model; PyTorch's weights are needed: save torch.save(model.state_dict(), path).", content(archive(None, ("model.weights.h5", b"")), "model.keras")),
    Bad("safetensors under another name", INSPECT, 3, "model.pt is a safetensors file; name it model.safetensors.", lambda f: (f / "model.safetensors").replace(f / "model.pt")),
    Bad("weights named as safetensors", SAFE, 3, "model.safetensors is not a safetensors file but an archive, as of torch.save; name it model.pt.", lambda f: (f / "model.pt").replace(f / "model.safetensors")),
    Bad("pointer of Git LFS as safetensors", SAFE, 3, "model.safetensors is a pointer of Git LFS to the weights; run git lfs pull.", content("version https://git-lfs.github.com/spec/v1\n", "model.safetensors")),
    Bad("several state dicts that fit", INSPECT, 3, "model.pt holds several state dicts that fit ('a', 'b'); save one of them alone.", saved(lambda s: {"a": s, "b": s})),
    Bad("network beside a scaler", INSPECT, 3, "model.pt does not fit networks.py:build: the names under 'model.' fit, and beside them it holds scaler.mean; save the part that the factory builds, or build all of it.", saved(lambda s: {f"model.{k}": v for k, v in s.items()} | {"scaler.mean": torch.ones(3)})),
    Bad("prefix and a missing tensor", INSPECT, 3, "model.pt does not fit networks.py:build, its names taken without the prefix 'model.': missing 0.bias.", saved(lambda s: {f"model.{k}": v for k, v in s.items() if k != "0.bias"})),
    Bad("spectral norm of the file alone", INSPECT, 3, "model.pt does not fit networks.py:build: missing 0.weight; unexpected 0.parametrizations.weight.original. The file alone parametrizes 0.weight in this way; do so in both, or in neither (torch.nn.utils.parametrize.remove_parametrizations before saving).", saved(lambda s: {k.replace("0.weight", "0.parametrizations.weight.original"): v for k, v in s.items()})),
    Bad("quantised weights", INSPECT, 3, "model.pt does not fit networks.py:build: whole numbers, as of a quantised network, for 0.weight (torch.int8).", saved(lambda s: s | {"0.weight": s["0.weight"].to(torch.int8)})),
    Bad("lazy network that never ran", f"{INSPECT} --trust-pickle", 3, "model.pt: 0.weight, 0.bias of lazy modules without values; run the network on a batch before it is saved.", lambda f: torch.save(nn.Sequential(nn.LazyLinear(2)), f / "model.pt")),
    Bad("no state dict", INSPECT, 3, "model.pt: holds list, not a state dict; save model.state_dict().", saved(lambda s: list(s.values()))),
    Bad("no tensor", INSPECT, 3, "model.pt: epoch not a tensor; save model.state_dict() alone.", saved(lambda s: s | {"epoch": 3})),
    Bad("key that is a number", INSPECT, 3, "model.pt: 3 not a name of a tensor; save model.state_dict().", saved(lambda s: s | {3: torch.ones(1)})),
    Bad("methods hidden by attributes", INSPECT, 3, "model.pt: holds OrderedDict, not a state dict; save model.state_dict().", content(archive(b"\x80\x02ccollections\nOrderedDict\n)R}(X\x03\x00\x00\x00getK\x01X\x05\x00\x00\x00itemsK\x02ub."), "model.pt")),
    Bad("sparse tensor", INSPECT, 3, "model.pt: 0.weight sparse, quantised or without values; save dense tensors.", saved(lambda s: s | {"0.weight": s["0.weight"].to_sparse()})),
    Bad("tensor without values", INSPECT, 3, "model.pt: 0.weight sparse, quantised or without values; save dense tensors.", saved(lambda s: s | {"0.weight": torch.empty(4, 3, device="meta")})),
    Bad("complex tensor", INSPECT, 3, "model.pt does not fit networks.py:build: complex 0.weight.", saved(lambda s: s | {"0.weight": s["0.weight"].to(torch.complex64)})),
    Bad("tensor of another shape", INSPECT, 3, "model.pt does not fit networks.py:build: wrongly shaped 0.weight (3, 4) for (4, 3).", saved(lambda s: s | {"0.weight": s["0.weight"].T})),
    Bad("tensor of 10^12 values that are one", INSPECT, 3, "model.pt does not fit networks.py:build: wrongly shaped 0.weight (1000000, 1000000) for (4, 3).", saved(lambda s: s | {"0.weight": torch.ones(1).expand(10**6, 10**6)})),
    Bad("NaN in the weights", INSPECT, 3, "model.pt: NaN or Inf in 0.bias (4 of 4); train again or correct the weights.", saved(lambda s: s | {"0.bias": torch.full((4,), torch.nan)})),
    Bad("safetensors is text", SAFE, 3, UNSAFE, content("weights", "model.safetensors")),
    Bad("safetensors is empty", SAFE, 3, UNSAFE, content("", "model.safetensors")),
    Bad("safetensors cut short", SAFE, 3, UNSAFE, shortened("model.safetensors", 0.9)),
    Bad("safetensors with a header of 4 EB", SAFE, 3, UNSAFE, tensors({}, size=1 << 62)),
    Bad("safetensors with a header past its end", SAFE, 3, UNSAFE, tensors({"0.bias": entry()}, size=10_000)),
    Bad("safetensors whose header is no JSON", SAFE, 3, UNSAFE, tensors(b"{'a': 1}")),
    Bad("safetensors whose tensors overlap", SAFE, 3, UNSAFE, tensors({"a": entry(), "b": entry(data_offsets=[8, 24])}, b"\0" * 24)),
    Bad("safetensors with a name twice", SAFE, 3, UNSAFE, tensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}')),
    Bad("safetensors of an unknown type", SAFE, 3, UNSAFE, tensors({"a": entry(dtype="PICKLE")})),
    Bad("safetensors of a shape its values do not fill", SAFE, 3, UNSAFE, tensors({"a": entry(shape=[1 << 40])})),
    Bad("safetensors of a shape that overflows", SAFE, 3, UNSAFE, tensors({"a": entry(shape=[1 << 33, 1 << 33])})),
    Bad("safetensors with bytes nobody names", SAFE, 3, UNSAFE, tensors({"a": entry()}, b"\0" * 99)),
    Bad("safetensors nested deep", SAFE, 3, UNSAFE, tensors(b'{"a":' + b"[" * 100_000)),
    Bad("safetensors that is a pickle", SAFE, 3, UNSAFE, content(OPCODES["reduce"], "model.safetensors")),
]  # fmt: skip
