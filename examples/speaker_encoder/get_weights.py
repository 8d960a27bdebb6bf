"""Write model.safetensors: the weights inside the installed package Resemblyzer 0.1.4 (Apache 2.0).

Resemblyzer itself is not imported, so none of what it depends on is needed:

    pip install --no-deps resemblyzer==0.1.4
    python examples/speaker_encoder/get_weights.py
"""

import hashlib
import re
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
PACKAGE = "resemblyzer"
VERSION = "0.1.4"
FILE = "resemblyzer/pretrained.pt"
SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"


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


def renamed(name: str) -> str:
    """``lstm.weight_ih_l2`` is ``lstm.2.weight_ih_l0`` where each layer is a module."""
    return re.sub(r"^lstm\.(\w+)_l(\d)$", r"lstm.\2.\1_l0", name)


def main(out: Path = HERE / "model.safetensors") -> Path:
    checkpoint = torch.load(packaged(FILE, SHA256), map_location="cpu", weights_only=True)
    # the two numbers of the training loss are no part of the network, nor is the optimiser's state
    state = {
        renamed(name): tensor.detach().contiguous()
        for name, tensor in checkpoint["model_state"].items()
        if not name.startswith("similarity_")
    }
    save_file(state, out)
    print(f"{out}: {sum(t.numel() for t in state.values()):,} numbers")
    return out


if __name__ == "__main__":
    main()
