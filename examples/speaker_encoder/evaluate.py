"""How well voices are told apart: the original and the shipped model.onnx on the test voices.

Run: python examples/speaker_encoder/evaluate.py glprune-out/speaker_encoder
"""

import json
import sys
from pathlib import Path

import onnxruntime
import torch
from data import voices
from network import build
from safetensors.torch import load_file

HERE = Path(__file__).parent


def describe(name: str, vectors: torch.Tensor, speaker: torch.Tensor) -> None:
    alike = vectors @ vectors.T
    pair = torch.triu(torch.ones_like(alike), 1) > 0
    same = pair & (speaker[:, None] == speaker[None])
    other = pair & (speaker[:, None] != speaker[None])
    # the threshold at which as many pairs of one voice are refused as pairs of two are taken for one
    levels = alike[same].sort().values
    refused = torch.arange(len(levels)) / len(levels)
    taken = (alike[other][None] >= levels[:, None]).float().mean(dim=1)
    equal = (refused - taken).abs().argmin()
    nearest = speaker[(alike - 2 * torch.eye(len(alike))).argmax(dim=1)]
    print(
        f"{name}: equal error rate {(refused[equal] + taken[equal]) / 2:.1%}; the nearest utterance is of "
        f"the same voice in {(nearest == speaker).float().mean():.1%} of {len(speaker)}; cosine "
        f"{alike[same].mean():.3f} within a voice, {alike[other].mean():.3f} between two"
    )


def main(bundle: str | None = None) -> None:
    x, speaker = voices("test")
    original = build()
    original.load_state_dict(load_file(HERE / "model.safetensors"))
    with torch.no_grad():
        expected = original.eval()(x)
    describe("original", expected, speaker)
    if bundle is not None:
        session = onnxruntime.InferenceSession(Path(bundle) / "model.onnx")
        entry = session.get_inputs()[0]
        contract = json.loads((Path(bundle) / "input_schema.json").read_text())
        kept = [
            column["name"] for column in contract["inputs"][0]["columns"]
        ]  # the bands, in the file's order
        columns = [int(name.removeprefix("mel")) for name in kept]
        output = torch.from_numpy(session.run(None, {entry.name: x[:, :, columns].numpy()})[0])
        describe("shipped ", output, speaker)
        print(f"mean cosine between the two: {(output * expected).sum(dim=1).mean():.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
