"""Check the file of trained weights before anything in it is unpickled or unpacked; needs no PyTorch.

A wrong path or a file of another kind is reported at once, before data are read and PyTorch is imported.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import safetensors

from glprune._files import unreadable_reason
from glprune.errors import ModelError, first_line

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"
_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # the magic number of torch.save before 1.6
_SUFFIX = ".safetensors"


def check_weights_file(path: Path, recipe: Recipe, trust_pickle: bool) -> None:
    """Refuse a file that holds no weights, by its first bytes and its table of contents.

    Args:
        path: ``.safetensors``, or a state dict written by ``torch.save``.
        recipe: Says whether a plugin reads the file, whose format is then not known.
        trust_pickle: Allow a fully pickled module.

    Raises:
        ModelError: The file is missing or of another kind.
    """
    why = unreadable_reason(path)
    if why is not None:
        raise ModelError(f"{path} {why}; give the trained weights (.pt or .safetensors).")
    if recipe.model.loader is not None:
        return
    if path.suffix.lower() == _SUFFIX:
        _check_safetensors(path)
        return
    with path.open("rb") as stream:
        head = stream.read(32)
    if head.startswith(_ZIP):
        _check_archive(path)
    elif not head.startswith(_PICKLE):
        raise ModelError(f"{path}: not a file torch.save wrote; save torch.save(model.state_dict(), path).")
    elif _LEGACY not in head and not trust_pickle:  # of another library, such as joblib
        raise pickle_error(path)


def pickle_error(path: Path) -> ModelError:
    """Return the error on a pickle that holds more than tensors."""
    return ModelError(
        f"{path} is a pickle of more than tensors, and reading a pickle runs code of whoever made "
        "it; save torch.save(model.state_dict(), path) instead, or pass --trust-pickle."
    )


def _check_safetensors(path: Path) -> None:
    """Refuse a file whose header is not that of safetensors; no tensor is read."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError, LookupError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file ({first_line(error, 160)}).") from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that torch.save did not write before anything in it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ModelError(
            f"{path}: truncated or no file torch.save wrote ({first_line(error, 160)})."
        ) from error
    names = [PurePosixPath(m.filename) for m in members]
    if any(name.name == "constants.pkl" for name in names):
        raise ModelError(
            f"{path} is a TorchScript archive, which holds code; save model.state_dict() instead."
        )
    if not any(name.name == "data.pkl" for name in names):
        raise ModelError(
            f"{path}: not a file torch.save wrote (no data.pkl); save torch.save(model.state_dict(), path)."
        )
    counts = Counter(names)
    unsafe = next((n for n in names if n.is_absolute() or ".." in n.parts or counts[n] > 1), None)
    if unsafe is not None:
        raise ModelError(
            f"{path}: member {str(unsafe)[:80]!r} leaves the archive or is there twice; save it anew."
        )
    total = sum(m.file_size for m in members)
    if total > path.stat().st_size:
        raise ModelError(f"{path}: unpacks to {total:,} bytes, more than it has; write it with torch.save.")
