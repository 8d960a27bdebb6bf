import pickle

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from glprune.errors import GlpruneError, ModelError
from glprune.model import loading
from glprune.model.loading import load_network
from glprune.model.weights.reparametrization import fold_state
from glprune.runtime.determinism import _settings
from glprune.schema.recipe_loading import load_recipe

NETWORK = """
import torch
from torch import nn
def build():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
def text():
    return "network"
def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
def parallel():
    return nn.DataParallel(build())
def averaged():
    return torch.optim.swa_utils.AveragedModel(build())
def compiled():
    return torch.compile(build())
class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight
def compiled_part():
    net = build()
    net[0] = torch.compile(net[0])
    net[2] = nn.DataParallel(net[2])
    return net
def normalised():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
def doubled():
    net = build()
    nn.utils.parametrize.register_parametrization(net[0], "weight", Doubled())
    return net
class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = build()
    def forward(self, x):
        return self.module(x)
def inside():
    return Inside()
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


def tensors():
    """The state dict of a network with random weights."""
    torch.manual_seed(3)
    return network().state_dict()


def loaded_as(tmp_path, content, expected, **arguments):
    """Load what torch.save wrote, check that the network computes with the expected weights; return the notes."""
    torch.save(content, tmp_path / "m.pt")
    loaded = load_network(recipe_of(tmp_path, **arguments), tmp_path / "m.pt")
    found = loaded.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)
    assert not loaded.module.training
    return loaded.notes


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: s, None),
        (lambda s: {"state_dict": s}, None),
        (lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, None),
        (lambda s: {"model": s, "epoch": 3}, None),
        (lambda s: {"ema": s, "epoch": 3}, "under 'ema'"),
        (lambda s: {"state_dict_ema": s}, "under 'state_dict_ema'"),
        (lambda s: {"net": s}, "under 'net'"),
        (lambda s: {"checkpoint": {"generator": s, "lr": 1.0}}, "under 'checkpoint.generator'"),
        (
            lambda s: {"model": s, "ema": {k: 2 * v for k, v in s.items()}},
            "'model', 'ema'; those under 'model'",
        ),
        (lambda s: {"teacher": {"a": torch.ones(2)}, "student": s}, "under 'student'"),
    ],
)
def test_a_state_dict_is_found_in_what_was_saved(tmp_path, wrap, note):
    notes = loaded_as(tmp_path, wrap(tensors()), tensors())
    assert len(notes) == (note is not None)
    assert all(note in text for text in notes)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("module.", "without the prefix 'module.'"),
        ("model.", "without the prefix 'model.'"),
        ("net.model.", "without the prefix 'net.model.'"),
        ("_orig_mod.", "without '_orig_mod'"),
        ("module._orig_mod.", "without the prefix 'module.'"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}])
def test_one_common_prefix_is_stripped_and_said(tmp_path, prefix, said, wrap):
    content = wrap({prefix + name: tensor for name, tensor in tensors().items()})
    (note,) = loaded_as(tmp_path, content, tensors())
    assert said in note


def test_the_averaged_model_of_pytorch_is_read(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(network())
    averaged.module.load_state_dict(tensors())
    (note,) = loaded_as(tmp_path, averaged.state_dict(), tensors())
    assert "without the prefix 'module.'" in note


def test_a_wrapper_of_one_submodule_is_left_out(tmp_path):
    content = {k.replace("0.", "0._orig_mod."): v for k, v in tensors().items()}
    (note,) = loaded_as(tmp_path, content, tensors())
    assert "without '_orig_mod'" in note


def test_a_prefix_that_the_network_has_too_stays(tmp_path):
    expected = {f"module.{k}": v for k, v in tensors().items()}
    assert loaded_as(tmp_path, expected, expected, function="inside") == ()
    (note,) = loaded_as(
        tmp_path, {f"module.{k}": v for k, v in expected.items()}, expected, function="inside"
    )
    assert "without the prefix 'module.'" in note
    (note,) = loaded_as(tmp_path, tensors(), expected, function="inside")
    assert "with the prefix 'module.'" in note


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (lambda s: {"a": s, "b": s}, "several state dicts that fit ('a', 'b')"),
        (lambda s: {f"{p}.{k}": v for p in ("student", "teacher") for k, v in s.items()}, "under 'student.' and 'teacher.' fit"),
        (lambda s: {**{f"model.{k}": v for k, v in s.items()}, "scaler.mean": torch.ones(3)}, "under 'model.' fit, and beside them it holds scaler.mean"),
        (lambda s: {f"model.{k}": v for k, v in s.items() if k != "0.bias"}, "without the prefix 'model.': missing 0.bias"),
        (lambda s: {"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, "optimizer not a tensor"),
        (lambda s: {f"_orig_mod.{k}": v for k, v in s.items() if k != "0.bias"}, "without '_orig_mod': missing 0.bias"),
    ],
)  # fmt: skip
def test_a_prefix_or_key_that_does_not_decide_is_named(tmp_path, content, fragment):
    torch.save(content(tensors()), tmp_path / "m.pt")
    with pytest.raises(ModelError) as caught:
        load_network(recipe_of(tmp_path), tmp_path / "m.pt")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def masked(net):
    prune.random_unstructured(net[0], "weight", 0.4)


def stacked(net):
    masked(net)
    prune.l1_unstructured(net[0], "weight", 0.2)


FOLDED = {
    "mask": masked,
    "two masks": stacked,
    "mask of a bias": lambda net: prune.random_unstructured(net[2], "bias", 1),
    "weight_norm": lambda net: nn.utils.parametrizations.weight_norm(net[0]),
    "weight_norm of columns": lambda net: nn.utils.parametrizations.weight_norm(net[0], dim=1),
    "weight_norm of all": lambda net: nn.utils.parametrizations.weight_norm(net[0], dim=None),
    "weight_norm of one row": lambda net: nn.utils.parametrizations.weight_norm(net[2]),
    "old weight_norm": lambda net: nn.utils.weight_norm(net[0]),
    "old weight_norm of columns": lambda net: nn.utils.weight_norm(net[0], dim=1),
    "spectral_norm": lambda net: nn.utils.parametrizations.spectral_norm(net[0]),
    "old spectral_norm": lambda net: nn.utils.spectral_norm(net[0]),
}


def changed(how):
    """A network with a weight that is computed from others, and its state dict after they are folded."""
    torch.manual_seed(1)
    net = network()
    how(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    net.eval()(torch.ones(2, 3))
    plain = network().state_dict()
    return net, {name: getattr(net[int(name[0])], name[2:]).detach().clone() for name in plain}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("where", ["file", "prefixed file", "both"])
@pytest.mark.parametrize("how", FOLDED)
def test_masked_and_normalised_weights_are_loaded_as_their_values(tmp_path, monkeypatch, how, where):
    net, expected = changed(FOLDED[how])
    state = {("model." if where == "prefixed file" else "") + k: v for k, v in net.state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    recipe = recipe_of(tmp_path)
    if where == "both":
        monkeypatch.setattr(loading, "load_callable", lambda *_: lambda: changed(FOLDED[how])[0])
    loaded = load_network(recipe, tmp_path / "m.pt")
    found = loaded.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)
    assert any("replaced by their values" in note for note in loaded.notes)
    loaded.module.load_state_dict({name: tensor + 1 for name, tensor in expected.items()})
    assert torch.equal(loaded.module[0].weight, expected["0.weight"] + 1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("old", ["file", "factory"])
def test_the_old_and_the_new_form_of_a_norm_fit_one_another_with_one_note(tmp_path, monkeypatch, kind, old):
    forms = {"file": kind, "factory": kind} | {old: f"old {kind}"}
    net, expected = changed(FOLDED[forms["file"]])
    torch.save(net.state_dict(), tmp_path / "m.pt")
    monkeypatch.setattr(loading, "load_callable", lambda *_: lambda: changed(FOLDED[forms["factory"]])[0])
    loaded = load_network(recipe_of(tmp_path), tmp_path / "m.pt")
    assert torch.allclose(loaded.module[0].weight, expected["0.weight"], atol=1e-6)
    (note,) = loaded.notes
    assert note.count("0.weight") == 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(4, 4),
        lambda: nn.Conv2d(3, 5, 3),
        lambda: nn.Conv2d(4, 4, 2),
        lambda: nn.ConvTranspose2d(4, 4, 2),
        lambda: nn.ConvTranspose1d(3, 6, 2),
        lambda: nn.Embedding(7, 3),
    ],
)
def test_spectral_norms_are_divided_along_the_axis_of_their_layer(norm, make):
    torch.manual_seed(0)
    layer = norm(make(), n_power_iterations=10)
    hooks = list(layer._forward_pre_hooks.values())  # the old form computes the weight in a forward
    for hook in hooks:
        hook(layer, ())
    state = nn.Sequential(layer).eval().state_dict()
    for hook in hooks:
        hook(layer, ())
    folded, names = fold_state(state)
    assert names == ["0.weight"]
    assert not any("_u" in name or "original" in name for name in folded)
    assert torch.allclose(folded["0.weight"], layer.weight, atol=1e-6)


def test_a_mask_or_norm_of_the_factory_alone_is_folded(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_callable", lambda *_: lambda: changed(FOLDED["weight_norm"])[0])
    (note,) = loaded_as(tmp_path, tensors(), tensors())
    assert "0.weight" in note


def test_own_parametrizations_stay_and_one_side_alone_is_explained(tmp_path):
    arguments = {"function": "doubled"}
    torch.save(tensors(), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"The factory alone parametrizes 0\.weight"):
        load_network(recipe_of(tmp_path, **arguments), tmp_path / "m.pt")
    state = {k.replace("0.weight", "0.parametrizations.weight.original"): v for k, v in tensors().items()}
    torch.save(state, tmp_path / "m.pt")
    loaded = load_network(recipe_of(tmp_path, **arguments), tmp_path / "m.pt")
    assert torch.equal(loaded.module[0].weight, 2 * tensors()["0.weight"])


def test_lazy_modules_take_the_shapes_of_the_file(tmp_path):
    assert loaded_as(tmp_path, tensors(), tensors(), function="lazy") == ()
    loaded = load_network(recipe_of(tmp_path, "lazy"), tmp_path / "m.pt")
    assert loaded.module(torch.ones(2, 3)).shape == (2, 1)
    torch.save(nn.Sequential(nn.LazyLinear(2)), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"0\.weight, 0\.bias of lazy modules without values"):
        load_network(recipe_of(tmp_path), tmp_path / "m.pt", trust_pickle=True)


@pytest.mark.parametrize("function", ["parallel", "compiled", "averaged"])
def test_wrappers_that_a_factory_returns_are_taken_off(tmp_path, function):
    loaded_as(tmp_path, tensors(), tensors(), function=function)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_floating_weights_of_any_width_are_converted(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    loaded_as(tmp_path, state, {name: tensor.float() for name, tensor in state.items()})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_real_fractions_are_refused(tmp_path, dtype):
    torch.save(tensors() | {"0.weight": tensors()["0.weight"].to(dtype)}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=f"complex 0.weight|whole numbers, as of a quantised .*{dtype}"):
        load_network(recipe_of(tmp_path), tmp_path / "m.pt")


@pytest.mark.parametrize(
    "body",
    [
        "torch.set_grad_enabled(False)",
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_device('meta')",
        "torch.set_num_threads(torch.get_num_threads() + 1)",
        "torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())",
    ],
)
@pytest.mark.parametrize("place", ["module", "factory"])
def test_settings_that_the_users_code_changes_are_restored(tmp_path, body, place):
    recipe = recipe_of(tmp_path)
    text = NETWORK.replace("from torch import nn", f"from torch import nn\n{body}", 1)
    if place == "factory":
        text = NETWORK.replace("def build():", f"def build():\n    import torch; {body}")
    (tmp_path / "n.py").write_text(text)
    torch.save(tensors(), tmp_path / "m.pt")
    before = _settings()
    if "meta" in body:
        with pytest.raises(ModelError, match=r"makes '0\.weight' on the device 'meta'"):
            load_network(recipe, tmp_path / "m.pt")
    else:
        load_network(recipe, tmp_path / "m.pt")
    assert _settings() == before
    assert torch.is_grad_enabled()


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


@pytest.mark.parametrize("keys", [("model",), ("ema",), ("model", "ema")])
def test_trusted_modules_in_a_checkpoint_give_their_weights(tmp_path, keys):
    trained = network()
    torch.save({"epoch": 3, **dict.fromkeys(keys, trained)}, tmp_path / "m.pt")
    loaded = load_network(recipe_of(tmp_path), tmp_path / "m.pt", trust_pickle=True)
    assert torch.equal(loaded.module[0].weight, trained[0].weight)
    assert len(loaded.notes) == ("ema" in keys)  # which one is loaded is said where it is not the usual one


def test_lazy_modules_that_never_ran_are_named(tmp_path):
    torch.save(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 1)).state_dict(), tmp_path / "m.pt")
    with pytest.raises(ModelError, match="lazy modules without values; run the network on a batch"):
        load_network(recipe_of(tmp_path), tmp_path / "m.pt")


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


def test_wrappers_of_parts_of_a_network_are_taken_off(tmp_path):
    loaded_as(tmp_path, tensors(), tensors(), function="compiled_part")
    wrapped = {n.replace("0.", "0._orig_mod."): t for n, t in tensors().items()}
    loaded_as(tmp_path, wrapped, tensors(), function="compiled_part")


def test_counts_that_evaluation_does_not_use_may_be_missing_or_extra(tmp_path):
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).state_dict()
    content = {n: t for n, t in expected.items() if not n.endswith("num_batches_tracked")}
    loaded_as(tmp_path, content, expected, function="normalised")
    profiled = {**content, "total_ops": torch.zeros(1), "1.total_params": torch.zeros(1)}
    loaded_as(tmp_path, profiled, expected, function="normalised")
    content.pop("1.running_mean")
    with pytest.raises(ModelError, match=r"missing 1\.running_mean"):
        loaded_as(tmp_path, content, expected, function="normalised")
