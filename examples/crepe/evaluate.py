"""How often a pitch network is right: the original and the shipped model.onnx on the test frames.

Run: python examples/crepe/evaluate.py glprune-out/crepe
"""

import sys
from pathlib import Path

import onnxruntime
import torch
from data import frames
from network import build
from safetensors.torch import load_file

HERE = Path(__file__).parent
CENTS = 20 * torch.arange(360) + 1997.3794084376191  # of each output, above 10 Hz


def cents(salience: torch.Tensor) -> torch.Tensor:
    """The pitch of each row: the mean of the outputs around the highest, weighted by salience."""
    best = salience.argmax(dim=1, keepdim=True)
    near = (torch.arange(360)[None] - best).abs() <= 4
    weight = salience * near
    return (weight * CENTS).sum(dim=1) / weight.sum(dim=1)


def describe(name: str, salience: torch.Tensor, pitch: torch.Tensor) -> None:
    voiced = pitch > 0
    error = (cents(salience) - 1200 * torch.log2(pitch.clamp(min=1) / 10)).abs()[voiced]
    found = (error < 50).float().mean()
    heard = salience.amax(dim=1)
    print(
        f"{name}: {found:.1%} of {int(voiced.sum())} frames within 50 cents, median error "
        f"{error.median():.1f} cents; mean salience {heard[voiced].mean():.2f} where there is a pitch, "
        f"{heard[~voiced].mean():.2f} in noise"
    )


def main(bundle: str | None = None) -> None:
    x, pitch = frames("test")
    original = build()
    original.load_state_dict(load_file(HERE / "model.safetensors"))
    with torch.no_grad():
        describe("original", original.eval()(x), pitch)
    if bundle is not None:
        session = onnxruntime.InferenceSession(Path(bundle) / "model.onnx")
        output = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        describe("shipped ", torch.from_numpy(output), pitch)


if __name__ == "__main__":
    main(*sys.argv[1:2])
