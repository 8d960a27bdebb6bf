"""Recognise the kind of a weights file by its bytes, before anything in it is unpickled; needs no PyTorch.

A wrong path or a file of another kind is reported at once, before data are read and PyTorch is imported.
"""

from __future__ import annotations

import io
import itertools
import pickletools
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import safetensors

from glprune._files import is_utf8, unreadable_reason
from glprune.errors import ModelError, first_line

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"
_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # the magic number of torch.save before 1.6
_SAVE = "save torch.save(model.state_dict(), path)"
_HEAD = 64  # bytes that tell the kinds apart
_LAYERS = "torch.nn.modules."  # classes of a whole network; a state dict calls for none of them
_LAZY = "torch.nn.parameter.Uninitialized"
_MAX_OPCODES = 100_000  # of a pickle; the classes of its outer objects come first
_PICKLES = 4  # one after another in a file of torch.save before 1.6: the last is the object
_SIGNATURES = (
    (0, b"version https://git-lfs", "a pointer of Git LFS to the weights; run git lfs pull"),
    (0, b"<!DOCTYPE", "a web page, not the file that it links to; download the weights again"),
    (0, b"<html", "a web page, not the file that it links to; download the weights again"),
    (0, b"\x89HDF\r\n", f"an HDF5 file, as of Keras; PyTorch's weights are needed: {_SAVE}"),
    (0, b"\x93NUMPY", f"a NumPy array; {_SAVE}"),
    (0, b"GGUF", f"a GGUF file; {_SAVE} of the PyTorch network"),
    (4, b"TFL3", f"a TensorFlow Lite file; PyTorch's weights are needed: {_SAVE}"),
    (4, b"ORTM", f"a model of ONNX Runtime; PyTorch's weights are needed: {_SAVE}"),
    (0, b"\x1f\x8b", "compressed by gzip; unpack it"),
    (0, b"BZh", "compressed by bzip2; unpack it"),
    (0, b"\xfd7zXZ", "compressed by xz; unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (0, b"Rar!", "a RAR archive; unpack it"),
)
_ONNX = "an ONNX file, which glprune writes and does not read; give the PyTorch weights it was exported from"
_EXPORTED = "a torch.export program; save torch.export.load(path).state_dict by torch.save instead"
_MEMBERS = (  # of zip archives, by the end of a member's name
    ("models/model.json", _EXPORTED),
    ("serialized_exported_program.json", _EXPORTED),
    ("constants.pkl", "a TorchScript archive, which holds code; save model.state_dict() instead"),
    ("model.weights.h5", f"a Keras model; PyTorch's weights are needed: {_SAVE}"),
    (".npy", f"an archive of NumPy arrays; {_SAVE}"),
)
_OTHER_LIBRARIES = (
    "sklearn",
    "joblib",
    "xgboost",
    "lightgbm",
    "catboost",
    "pandas",
    "numpy",
    "keras",
    "tensorflow",
)


def check_weights_file(path: Path, recipe: Recipe, trust_pickle: bool) -> None:
    """Refuse a file that holds no weights, by its first bytes and its table of contents.

    Args:
        path: ``.safetensors``, or a state dict written by ``torch.save``.
        recipe: Says whether a plugin reads the file, whose format is then not known.
        trust_pickle: Allow a fully pickled module.

    Raises:
        ModelError: The file is missing or of another kind, in words that say what it is.
    """
    if not is_utf8(path):
        raise ModelError(f"{path} has a path that is not UTF-8; rename it.")
    why = unreadable_reason(path)
    if why is not None:
        raise ModelError(f"{path} {why}; give the trained weights (.pt or .safetensors).")
    if recipe.model.loader is not None:
        return
    if path.suffix.lower() == ".safetensors":
        _check_safetensors(path)
        return
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head[: len(_ZIP)] == _ZIP:
        _check_archive(path)
    elif head[:1] != _PICKLE or _is_safetensors(head):
        raise ModelError(_foreign(path, head))
    classes = check_pickled_class(path)
    is_of_torch = head[: len(_ZIP)] == _ZIP or _LEGACY in head  # else of another library, such as joblib
    if not trust_pickle and any(name.startswith(_LAZY) for name in classes):
        raise ModelError(
            f"{path} holds lazy modules without values; run the network on a batch before it is saved."
        )
    if not trust_pickle and not (is_of_torch and not any(name.startswith(_LAYERS) for name in classes)):
        raise pickle_error(path)


def pickle_error(path: Path) -> ModelError:
    """Return the error on a pickle that holds more than tensors."""
    return ModelError(
        f"{path} is a pickle of more than tensors, and reading a pickle runs code of whoever made "
        "it; save torch.save(model.state_dict(), path) instead, or pass --trust-pickle."
    )


def check_pickled_class(path: Path) -> list[str]:
    """Refuse a pickle that would not become a network even where it is trusted, by the class that it is of.

    Nothing is unpickled: the names of classes are read from the opcodes.

    Returns:
        The names of the classes and functions that the pickle calls for.

    Raises:
        ModelError: It is of a class of another library or of the script that wrote it.
    """
    names = list(_classes(path))
    own = next((name for name in names if name.startswith("__main__.")), None)
    if own is not None:
        raise ModelError(
            f"{path} is a pickle that needs {own}, a class of the script that wrote it; {_SAVE} there "
            "instead."
        )
    packages = [name.partition(".")[0] for name in names]
    foreign = next((n for n, p in zip(names, packages, strict=True) if p in _OTHER_LIBRARIES), None)
    if foreign is not None and not {"torch", "skorch"} & set(packages):
        what = "NumPy arrays" if foreign.startswith("numpy.") else foreign
        raise ModelError(
            f"{path} is a pickle of {what}, not of a PyTorch network; save the state dict of the network "
            "alone."
        )
    return names


def _check_safetensors(path: Path) -> None:
    """Refuse a file whose header is not that of safetensors; no tensor is read."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError, LookupError, ValueError) as error:
        raise unreadable_safetensors(path, first_line(error, 160)) from error


def unreadable_safetensors(path: Path, reason: str) -> ModelError:
    """Return the error on a file that is named ``.safetensors`` and is not one."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head[: len(_ZIP)] == _ZIP:
        return ModelError(
            f"{path} is not a safetensors file but an archive, as of torch.save; name it {path.stem}.pt."
        )
    known = _signature(head)
    return ModelError(f"{path} is {known}." if known else f"{path}: not a safetensors file ({reason}).")


def _foreign(path: Path, head: bytes) -> str:
    """Return the message on a file of another kind."""
    if _is_safetensors(head):
        return f"{path} is a safetensors file; name it {path.stem}.safetensors."
    if path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and b"\x12" in head[2:3]):
        return f"{path} is {_ONNX}."
    if path.suffix.lower() in (".joblib", ".pkl", ".pickle"):
        return f"{path} is a pickle of another library (joblib?), not of PyTorch weights; {_SAVE}."
    known = _signature(head)
    return f"{path} is {known}." if known else f"{path}: not a file torch.save wrote; {_SAVE}."


def _signature(head: bytes) -> str | None:
    """Return what a file is by its first bytes, and what to do."""
    lower = head.lower()
    marks = ((lower[offset:].startswith(mark.lower()), what) for offset, mark, what in _SIGNATURES)
    return next((what for found, what in marks if found), None)


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a JSON header and the header."""
    return head[8:10] in (b'{"', b"{ ", b"{}") and head[6:8] == b"\0\0"


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ModelError(
            f"{path}: truncated or no file torch.save wrote ({first_line(error, 160)})."
        ) from error
    names = [PurePosixPath(m.filename) for m in members]
    for end, what in _MEMBERS:
        if any(str(name).endswith(end) for name in names):
            raise ModelError(f"{path} is {what}.")
    if not any(name.name == "data.pkl" for name in names):
        raise ModelError(f"{path}: not a file torch.save wrote (no data.pkl); {_SAVE}.")
    _check_members(path, names)
    total = sum(m.file_size for m in members)
    if total > path.stat().st_size:
        raise ModelError(f"{path}: unpacks to {total:,} bytes, more than it has; write it with torch.save.")


def _check_members(path: Path, names: Sequence[PurePosixPath]) -> None:
    counts = Counter(names)
    unsafe = next((n for n in names if n.is_absolute() or ".." in n.parts or counts[n] > 1), None)
    if unsafe is not None:
        raise ModelError(
            f"{path}: member {str(unsafe)[:80]!r} leaves the archive or is there twice; save it anew."
        )


def _classes(path: Path) -> Iterator[str]:
    """Yield the names of classes and functions that a pickle, or that of an archive, calls for."""
    texts: list[str] = []
    try:
        with _pickled(path) as stream:
            pickles = map(pickletools.genops, itertools.repeat(stream, _PICKLES))
            for opcode, argument, _ in itertools.islice(itertools.chain.from_iterable(pickles), _MAX_OPCODES):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
                    yield f"{texts[-2]}.{texts[-1]}"
                elif isinstance(argument, str):
                    texts.append(argument)
    except (ValueError, IndexError, OSError, zipfile.BadZipFile):
        return  # arrays of joblib lie between the opcodes


def _pickled(path: Path) -> IO[bytes]:
    """Open the pickles of a file: the file, or the member of an archive."""
    if not zipfile.is_zipfile(path):
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(next((archive.read(n) for n in archive.namelist() if n.endswith("data.pkl")), b""))
