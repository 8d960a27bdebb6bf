"""``glprune.load`` imports nothing from a bundle, and refuses a plan that does not fit in one line."""

import json
import os
import shutil
import sys

import pytest
import torch
from torch import nn

import glprune
from glprune.errors import GlpruneError, ModelError
from glprune.schema.bundle import PLAN, WEIGHTS

EVIL = "open({!r}, 'w')\nimport torch\ndef plain():\n    return torch.nn.Linear(8, 1)\n"


def plain():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 1))


@pytest.fixture
def bundle(audited, tmp_path):
    """A bundle of an attacker: it holds modules that leave a trace when they are imported."""
    place = tmp_path / "bundle"
    shutil.copytree(audited["slim"], place)
    for name in ("networks.py", "evil_module.py"):
        (place / name).write_text(EVIL.format(str(tmp_path / "ran")))
    return place


def edit(bundle, change):
    plan = json.loads((bundle / PLAN).read_text())
    change(plan)
    (bundle / PLAN).write_text(json.dumps(plan))


def naming(factory):
    return lambda plan: plan.update(factory=factory)


def refused(bundle, match, **options):
    with pytest.raises(GlpruneError, match=match) as caught:
        glprune.load(bundle, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert not (bundle.parent / "ran").exists()
    return str(caught.value)


@pytest.mark.parametrize("allowed", [["networks.py"], ["networks"], None])
def test_a_file_of_a_bundle_is_never_imported(allowed, bundle):
    refused(bundle, "no file of a bundle is imported", allow_factory=allowed)


@pytest.mark.parametrize("allowed", [["evil_module"], None])
@pytest.mark.parametrize("place", ["current", "path", "link"])
def test_a_module_of_a_bundle_on_the_path_is_not_found(place, allowed, bundle, monkeypatch):
    edit(bundle, naming("evil_module:plain"))
    if place == "current":
        monkeypatch.chdir(bundle)
        monkeypatch.syspath_prepend("")
    elif place == "path":
        monkeypatch.syspath_prepend(str(bundle))
    else:
        (bundle.parent / "link").symlink_to(bundle)
        monkeypatch.syspath_prepend(str(bundle.parent / "link"))
    refused(bundle, "evil_module", allow_factory=allowed)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("allowed", [["bundle"], None])
def test_a_bundle_beside_the_path_is_no_package(allowed, bundle, monkeypatch):
    edit(bundle, naming("bundle.evil_module:plain"))
    monkeypatch.syspath_prepend(str(bundle.parent))
    refused(bundle, "lies in the bundle" if allowed else "runs only if you allow it", allow_factory=allowed)
    sys.modules.pop("bundle", None)


def test_a_name_of_a_factory_by_the_caller_does_not_find_the_bundle_either(bundle, monkeypatch):
    monkeypatch.chdir(bundle)
    monkeypatch.syspath_prepend("")
    refused(bundle, "cannot be imported", factory="evil_module:plain")


def test_a_bundle_with_a_factory_from_elsewhere_loads(bundle, audited):
    network = glprune.load(bundle, plain)
    kept = len(json.loads((bundle / PLAN).read_text())["inputs"][0]["kept"])
    assert network(torch.zeros(2, kept)).shape == (2, 1)


def axis(**change):
    return lambda plan: plan["axes"][0].update(change)


def part(**change):
    return lambda plan: plan["inputs"][0].update(change)


def attribute(module, name, value=5):
    return lambda plan: plan["attributes"].append({"module": module, "name": name, "value": value})


@pytest.mark.parametrize(
    "change",
    [
        axis(dim=-1), axis(dim=-5), axis(dim=9), axis(dim=10**30), axis(size=-1), axis(size=10**15), axis(size=0),
        axis(kept=[-1]), axis(kept=[10**6]), axis(kept=[2**70]), axis(tensor="nothing"), axis(kept=[]),
        part(axis=10**6), part(axis=-40), part(size=-3), part(size=10**12), part(size=2**31 - 1),
        part(constants=[0.0]), part(constants=[]), part(kept=[2**70]),
    ],
)  # fmt: skip
def test_sizes_and_axes_that_do_not_fit_are_one_line(change, bundle):
    edit(bundle, change)
    refused(bundle, "plan.json|model.safetensors", factory=plain)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [("", "forward", 5), ("network", "forward", 5), ("network.0", "forward", 1), ("network.0", "__class__", 5),
     ("network.0", "__dict__", 5), ("network.0", "weight", 5), ("network.0", "training", 0),
     ("network.0", "_parameters", [1]), ("network.0", "nothing", 5), ("nowhere", "in_features", 5),
     ("network.0", "in_features", [5]), ("network.0", "in_features", -5), ("network.0", "to", 1)],
)  # fmt: skip
def test_an_attribute_that_holds_no_size_is_not_replaced(module, name, value, bundle):
    edit(bundle, attribute(module, name, value))
    refused(bundle, "plan.json", factory=plain)


@pytest.mark.parametrize("name", [PLAN, WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
def test_what_is_no_plain_file_is_not_waited_for(name, kind, bundle):
    (bundle / name).unlink()
    if kind == "pipe":
        os.mkfifo(bundle / name)
    elif kind == "folder":
        (bundle / name).mkdir()
    refused(bundle, "plain file|cannot be read", factory=plain)


def test_the_error_is_of_the_model(bundle):
    edit(bundle, naming("networks.py:plain"))
    with pytest.raises(ModelError):
        glprune.load(bundle)


@pytest.mark.parametrize(
    "factory", ["subprocess:getoutput", "os:system", "torch.hub:load", "builtins:exec", "networks:plain"]
)
def test_a_function_that_the_bundle_names_runs_only_if_the_caller_allows_it(factory, bundle):
    arguments = {"cmd": f"touch {bundle.parent / 'ran'}"}
    edit(bundle, lambda plan: plan.update(factory=factory, arguments=arguments))
    place = factory.partition(":")[0]
    refused(bundle, rf"runs only if you allow it; .*allow_factory=\['{place}'\]")
    refused(bundle, "is not listed by --allow-factory", allow_factory=["my_package.networks"])
    refused(bundle, "is not listed by --allow-factory", allow_factory=[])


def test_a_function_of_a_package_that_the_caller_allows_builds_the_network(bundle, tmp_path, monkeypatch):
    package = tmp_path / "own" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    text = "from torch import nn\ndef plain():\n    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), "
    text += "nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 1))\nfrom subprocess import getoutput\n"
    (package / "networks.py").write_text(text)
    monkeypatch.syspath_prepend(str(package.parent))
    edit(bundle, naming("my_package.networks:plain"))
    kept = len(json.loads((bundle / PLAN).read_text())["inputs"][0]["kept"])
    network = glprune.load(bundle, allow_factory=["my_package"])
    assert network(torch.zeros(2, kept)).shape == (2, 1)
    arguments = {"cmd": f"touch {bundle.parent / 'ran'}"}
    edit(bundle, lambda plan: plan.update(factory="my_package.networks:getoutput", arguments=arguments))
    refused(bundle, "is of 'subprocess', which is not listed", allow_factory=["my_package"])


@pytest.mark.parametrize("build", [lambda: "text", lambda: None, lambda: nn.Linear, lambda: {"a": 1}])
def test_a_factory_that_builds_no_network_is_one_line(build, bundle):
    refused(bundle, r"its factory returned \w+, not a torch\.nn\.Module", factory=build)
