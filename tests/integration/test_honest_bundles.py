"""Honest bundles of every family of architectures verify, whatever odd operations their networks hold."""

import json

import pytest
import torch

import glprune
from glprune import pipeline
from glprune.audit.verify import verify
from tests.architectures import ARCHITECTURES

NETWORK = """
import torch
from tests.architectures import ARCHITECTURES
architecture = ARCHITECTURES[{name!r}]
def build():
    torch.manual_seed(0)
    return architecture.build()
def rows(split):
    generator = torch.Generator().manual_seed(["train", "valid", "test"].index(split))
    inputs = architecture.inputs(generator, 48)
    return [(inputs if len(inputs) > 1 else inputs[0], torch.zeros(48))]
"""
NAMES = [
    "mlp-prelu",
    "mlp-batchnorm",
    "densenet-mlp",
    "residual-batchnorm-pre",
    "softmax-over-hidden",
    "normalize-over-hidden",
    "scale-buffer-2d-clamped",
    "product-of-branches",
    "feature-attention-softmax",
    "swiglu",
    "mixture-of-experts-summed",
    "shared-linear-twice",
    "tokens-flattened-transposed",
    "channel-shuffle",
    "conv1d-channels-last-input",
    "resnet-global-pool",
    "depthwise-on-the-input",
    "groupnorm-one-group",
    "conv-transpose-decoder",
    "inception-branches",
    "lstm-state",
    "gru-bidirectional",
    "rnn-two-layers",
    "lstm-residual",
    "attention-nanogpt",
    "tabular-tables",
    "mlp-mixer",
    "sliced-towers",
    "conv-flatten-mlp",
    "transformer-encoder-post",
]


def recipe(architecture):
    """A recipe without labels, for a short run that removes something of most networks."""
    inputs = architecture.inputs(torch.Generator().manual_seed(0), 2)
    specs = [
        {"name": name, "axis": axis, "dtype": "float" if x.is_floating_point() else "int"}
        for name, axis, x in zip(architecture.names, architecture.axes, inputs, strict=True)
    ]
    return {
        "task": "distillation",
        "search": "path",
        "model": {"factory": "network.py:build", "inputs": specs},
        "data": {"loader": "network.py:rows"},
        "penalty": {"hidden": {"strength": 1}},
        "target": {"lambda": 0.03},
        "train": {"epochs": 2, "n_lambdas": 3, "batch_size": "all", "full_batch_steps": 2, "n_stages": 1},
        "refit": {"epochs": 1},
        "export": {"keep_original": True},
        "seed": 1,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_the_architecture_verifies(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "LATENCY_BATCHES", (1,))
    (tmp_path / "network.py").write_text(NETWORK.format(name=name))
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    torch.save(architecture.build().state_dict(), tmp_path / "model.pt")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(architecture)))  # JSON is YAML
    done = glprune.run(path, tmp_path / "model.pt", tmp_path / "out", accept_original=True)
    verdict = verify(tmp_path / "out", isolated=False)
    open_checks = [(c.id, c.note, *map(str, c.findings)) for c in verdict.checks if c.status == "incomplete"]
    assert verdict.exit_code == 0, [*open_checks, *(f for c in verdict.checks for f in c.findings)]
    assert done.report.size.macs_of == "onnx"
