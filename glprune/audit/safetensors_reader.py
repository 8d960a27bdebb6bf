"""Read a safetensors file strictly, as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from glprune.schema.strict_json import StrictError, read_json

_MAX_HEADER, _MAX_TENSORS = 16 << 20, 100_000
Array = NDArray[np.generic]


@dataclass(frozen=True)
class Tensors:
    """The tensors of a file.

    Attributes:
        arrays: Name -> values.
        aliases: Other name of a shared tensor -> its name in the file.
    """

    arrays: dict[str, Array]
    aliases: dict[str, str]

    def name(self, wanted: str) -> str:
        """Return the name of a tensor in the file."""
        return wanted if wanted in self.arrays else self.aliases.get(wanted, wanted)


def read_tensors(raw: bytes) -> Tensors:
    """Read a safetensors file.

    Raises:
        StrictError: It is not a safetensors file, or its header is ambiguous or too large.
    """
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > len(raw) - 8:
        raise StrictError("is truncated or not a safetensors file")
    if size > _MAX_HEADER:
        raise StrictError(f"has a header of {size:,} bytes; at most {_MAX_HEADER:,} are read")
    header = read_json(raw[8 : 8 + size])
    if not isinstance(header, dict):
        raise StrictError("has a header that is no object")
    if len(header) > _MAX_TENSORS:
        raise StrictError(f"holds more than {_MAX_TENSORS:,} tensors")
    try:
        arrays = load(raw)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StrictError(f"is not a safetensors file of plain numbers ({str(error)[:100]})") from None
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise StrictError("has metadata that are no object")
    return Tensors(dict(arrays), {k: v for k, v in metadata.items() if v in arrays})
