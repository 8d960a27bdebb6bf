"""Networks that somebody else trained, from PyPI packages: planned, cut losslessly, and pruned without labels.

They are installed without what they depend on (see examples/README.md); without them these tests skip.
"""

from __future__ import annotations

import copy
import importlib.util
from importlib import metadata

import numpy as np
import onnxruntime as ort
import pytest
import torch

import glprune
from glprune.data.splits import select_columns
from glprune.pruning.groups import zero_units_
from glprune.pruning.removal import remove
from glprune.pruning.verification import difference, outputs
from glprune.schema.recipe_loading import load_recipe
from glprune.search.prepare import prepare
from tests.integration_packages import missing
from tests.paths import ROOT

NETWORKS = {
    "crepe": ("torchcrepe", {"conv1", "conv2", "conv3", "conv4", "conv5", "conv6"}),
    "speaker_encoder": ("resemblyzer", {"mels", "lstm.0.l0", "lstm.1.l0", "lstm.2.l0"}),
}


# a fifth of the rows, for tests that only ask whether all goes well
FEW = """
import importlib.util
spec = importlib.util.spec_from_file_location("whole", {path!r})
whole = importlib.util.module_from_spec(spec)
spec.loader.exec_module(whole)
for name in ("VOICES", "RECORDINGS"):
    if hasattr(whole, name):
        setattr(whole, name, {{split: (seed, number // 5) for split, (seed, number) in getattr(whole, name).items()}})
def loader(split):
    return whole.loader(split)
"""


def script(folder, name):
    spec = importlib.util.spec_from_file_location(
        f"{folder}_{name}", ROOT / "examples" / folder / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=NETWORKS)
def packaged(request, tmp_path_factory):
    """Name of an example and a file of its weights, taken out of the installed package."""
    package, _ = NETWORKS[request.param]
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        missing(f"{package} is not installed (see examples/README.md)")
    path = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    return request.param, script(request.param, "get_weights").main(out=path)


@pytest.mark.slow
def test_every_layer_is_planned_and_half_of_all_units_go_without_a_trace(packaged):
    name, weights = packaged
    job = prepare(load_recipe(ROOT / "recipes" / f"{name}.yaml"), weights, False, lambda event: None)
    assert {g.name for g in job.groups if not g.units.refused} == NETWORKS[name][1]
    dense, generator = copy.deepcopy(job.network), torch.Generator().manual_seed(0)
    for group in job.groups:
        zero_units_(
            dict(dense.state_dict()), group.units, torch.rand(group.units.count, generator=generator) < 0.5
        )
    probe = tuple(x[::8] for x in job.probe)
    removed = remove(dense, job.groups, probe, job.axes)
    assert {c.name for c in removed.cuts} == NETWORKS[name][1]
    assert not removed.refused
    assert removed.difference <= 1e-5
    fresh = tuple(torch.randn(5, *x.shape[1:]) for x in probe)
    slim = outputs(removed.network, select_columns(fresh, job.axes, removed.columns))
    assert difference(outputs(dense, fresh), slim) <= 1e-5


@pytest.mark.slow
def test_a_short_run_without_labels_ships_a_slim_file_that_agrees_with_the_original(packaged, tmp_path):
    name, weights = packaged
    short = {"crepe": ["target={lambda: 3e-6}"], "speaker_encoder": ["target={lambda: 1e-3}"]}[name]
    few = tmp_path / "few.py"
    few.write_text(FEW.format(path=str(ROOT / "examples" / name / "data.py")))
    changes = [
        *short,
        f"data.loader={few}:loader",
        "train.epochs=1",
        "train.n_lambdas=2",
        "train.full_batch_steps=0",
        "refit.epochs=1",
    ]
    result = glprune.run(load_recipe(ROOT / "recipes" / f"{name}.yaml", changes), weights, tmp_path / "out")
    agreement = {m.name: m for m in result.report.performance}
    assert agreement["cosine"].final > 0.9
    assert agreement["cosine"].original == pytest.approx(1.0, abs=1e-5)
    session = ort.InferenceSession(result.bundle / "model.onnx")
    network = glprune.load(result.bundle, script(name, "network").build)
    rows = next(iter(script(name, "data").loader("test")))[:7]  # no band or channel of either leaves so soon
    assert list(rows.shape[1:]) == session.get_inputs()[0].shape[1:]
    found = session.run(None, {session.get_inputs()[0].name: rows.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(network(rows).numpy(), found, atol=1e-4)
