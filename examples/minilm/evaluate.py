"""How well similar sentences are found: the shipped model.onnx against the original on the test sentences.

Run: python examples/minilm/evaluate.py glprune-out/minilm
"""

import sys
from pathlib import Path

import onnxruntime
import torch
from data import sentences
from network import build
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent


def likeness(vectors: Tensor) -> Tensor:
    """Cosines between all pairs of sentences, those of a sentence with itself left out (-1)."""
    return (vectors @ vectors.T).fill_diagonal_(-1)


def main(bundle: str) -> None:
    rows = sentences("test")
    original = build()
    original.load_state_dict(load_file(HERE / "model.safetensors"))
    with torch.no_grad():
        expected = original.eval()(**rows)
    session = onnxruntime.InferenceSession(Path(bundle) / "model.onnx")
    names = [entry.name for entry in session.get_inputs()]
    vectors = torch.from_numpy(session.run(None, {name: rows[name].numpy() for name in names})[0])
    before, after = likeness(expected), likeness(vectors)
    first = before.argmax(dim=1)
    found = (after.argmax(dim=1) == first).float().mean()
    five = (after.topk(5).indices == first[:, None]).any(dim=1).float().mean()
    pairs = torch.triu_indices(len(first), len(first), 1)
    straight = torch.corrcoef(torch.stack([before[*pairs], after[*pairs]]))[0, 1]
    print(
        f"the most similar of {len(first) - 1} sentences stays first in {found:.1%}, among the first five in "
        f"{five:.1%}; correlation of all similarities {straight:.4f}; "
        f"mean cosine between the two vectors {(vectors * expected).sum(dim=1).mean():.4f}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
