import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from glprune.errors import GlpruneError, ModelError
from glprune.model.loading import load_network
from glprune.schema.recipe_loading import load_recipe

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
def text():
    return "network"
def broken():
    raise RuntimeError("no licence")
"""


def recipe_of(tmp_path, function="build", arguments="{}"):
    (tmp_path / "n.py").write_text(NETWORK)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f'task: binary\nmodel: {{factory: "n.py:{function}", arguments: {arguments}}}\n'
        "data: {file: x.csv, target: y}\ntarget: {lambda: 1}\n"
    )
    return load_recipe(path)


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}]
)
def test_a_state_dict_is_found_in_what_was_saved(tmp_path, wrap):
    trained = network()
    torch.save(wrap(trained.state_dict()), tmp_path / "m.pt")
    loaded = load_network(recipe_of(tmp_path), tmp_path / "m.pt")
    assert loaded.format == "state_dict"
    assert loaded.sha256.startswith("sha256:")
    assert not loaded.module.training
    assert all(torch.equal(trained.state_dict()[k], v) for k, v in loaded.module.state_dict().items())


def test_the_prefix_of_dataparallel_is_dropped(tmp_path):
    trained = network()
    torch.save({f"module.{k}": v for k, v in trained.state_dict().items()}, tmp_path / "m.pt")
    loaded = load_network(recipe_of(tmp_path), tmp_path / "m.pt")
    assert torch.equal(loaded.module[0].weight, trained[0].weight)


def test_safetensors_are_read(tmp_path):
    trained = network()
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "m.safetensors")
    loaded = load_network(recipe_of(tmp_path), tmp_path / "m.safetensors")
    assert loaded.format == "safetensors"
    assert torch.equal(loaded.module[2].bias, trained[2].bias)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_is_refused_unread_and_the_message_says_why(tmp_path):
    for name, content in {
        "module.pt": network(),
        "bomb.pt": Bomb(str(tmp_path / "ran")),
        "hidden.pt": {**network().state_dict(), "extra": Bomb(str(tmp_path / "ran"))},
    }.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match="runs code") as caught:
            load_network(recipe_of(tmp_path), tmp_path / name)
        assert "--trust-pickle" in str(caught.value)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    with pytest.raises(ModelError):
        load_network(recipe_of(tmp_path), tmp_path / "plain.pt")
    assert not (tmp_path / "ran").exists()


def test_a_trusted_pickled_module_is_read(tmp_path):
    trained = network()
    torch.save(trained, tmp_path / "m.pt")
    loaded = load_network(recipe_of(tmp_path), tmp_path / "m.pt", trust_pickle=True)
    assert loaded.format == "pickle"
    assert torch.equal(loaded.module[0].weight, trained[0].weight)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda s: s.pop("0.bias"), "missing 0.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"0.weight": torch.zeros(4, 5)}), "wrongly shaped 0.weight (4, 5) for (4, 3)"),
        (lambda s: s["2.weight"].fill_(float("nan")), "NaN or Inf in 2.weight (4 of 4)"),
        (lambda s: s["2.weight"][0, 1].fill_(float("inf")), "NaN or Inf in 2.weight (1 of 4)"),
        (lambda s: s.update(epoch=3), "epoch not a tensor"),
        (lambda s: s.clear(), "not a state dict"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, fragment):
    state = network().state_dict()
    change(state)
    torch.save(dict(state), tmp_path / "m.pt")
    with pytest.raises(ModelError) as caught:
        load_network(recipe_of(tmp_path), tmp_path / "m.pt")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 broken zip"])
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_broken_files_are_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_network(recipe_of(tmp_path), tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "arguments", "fragment"),
    [
        ("text", "{}", "returned str, not a torch.nn.Module"),
        ("broken", "{}", "RuntimeError: no licence"),
        ("absent", "{}", "'absent'"),
        ("build", "{width: 3}", "unexpected keyword argument"),
    ],
)
def test_a_wrong_factory_is_one_line(tmp_path, function, arguments, fragment):
    torch.save(network().state_dict(), tmp_path / "m.pt")
    with pytest.raises(GlpruneError) as caught:
        load_network(recipe_of(tmp_path, function, arguments), tmp_path / "m.pt")
    assert fragment in str(caught.value)
    assert "recipe.yaml:2: model.factory" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loading_leaves_the_random_state_alone(tmp_path):
    torch.save(network().state_dict(), tmp_path / "m.pt")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_network(recipe_of(tmp_path), tmp_path / "m.pt")
    assert torch.equal(torch.rand(3), expected)
