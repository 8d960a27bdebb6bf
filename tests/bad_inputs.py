"""The corpus of bad inputs: how each is made, the command that meets it, its exit code and its message.

Every command runs in a folder of its own that holds a small problem (data, network, trained weights, recipe) and,
where the command names it, a bundle. In a message ``...`` stands for words of a library or of the system.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import nn

Make = Callable[[Path], object]

RECIPE = """\
task: binary
model:
  factory: "networks.py:build"
data:
  file: data.csv
  target: y
  classes: [0, 1]
target:
  max_features: 2
"""
NETWORKS = """\
import sys
from torch import nn
from urllib.request import urlopen
value = 3
def build(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))
def text():
    return "network"
def broken():
    raise RuntimeError("no licence")
def leaving():
    sys.exit(0)
def endless():
    return endless()
def loader(split):
    return 3
"""
EVIL = 'open("ran", "w").close()\nfrom networks import build\n'


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Attributes:
        name: What is wrong.
        command: What follows ``glprune``.
        code: The exit code.
        message: The one line on standard error, without ``glprune: ``.
        make: Changes the folder.
    """

    name: str
    command: str
    code: int
    message: str
    make: Make = lambda folder: None


def network() -> nn.Module:
    """The network that ``networks.py`` builds."""
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def write_problem(folder: Path) -> None:
    """A data set, a network, its weights, code that leaves a trace when it is run, and a recipe."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).round(4)
    label = (x[:, 0] > 0).astype(int)
    lines = [f"{','.join(map(str, row))},{y}" for row, y in zip(x.tolist(), label.tolist(), strict=True)]
    (folder / "data.csv").write_text("\n".join(["a,b,c,y", *lines]) + "\n")
    (folder / "networks.py").write_text(NETWORKS)
    (folder / "evil.py").write_text(EVIL)
    (folder / "recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    state = network().state_dict()
    state["2.weight"].neg_()  # as one that was trained: better than chance
    torch.save(state, folder / "model.pt")
    safetensors.torch.save_file(state, folder / "model.safetensors")


# --------------------------------------------------------------------------- recipes


def recipe(old: str, new: str) -> Make:
    """A recipe with one passage changed."""
    assert old in RECIPE
    return lambda folder: (folder / "recipe.yaml").write_text(RECIPE.replace(old, new))


def content(text: str | bytes, name: str = "recipe.yaml") -> Make:
    """A file that is this."""
    raw = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(raw)


def appended(text: str) -> Make:
    """A recipe that goes on."""
    return content(RECIPE + text)


def replaced_by(what: str, name: str) -> Make:
    """A path that is no plain file."""

    def make(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "loop":
            path.symlink_to(path.name)
        elif what == "device":
            path.symlink_to("/dev/zero")

    return make


LAUGHS = '"a": &a ["lol", "lol"]\n' + "".join(
    f'"{new}": &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n'
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
NOT_ALLOWED = "anchors, aliases and tags ({}) are not allowed here."
INSPECT = "inspect recipe.yaml model.pt"
RUN = "run recipe.yaml model.pt --out out --quiet"

RECIPES = [
    Bad(
        "no recipe",
        "inspect absent.yaml model.pt",
        2,
        "absent.yaml cannot be read (No such file or directory); name a YAML file.",
    ),
    Bad(
        "recipe is a folder",
        INSPECT,
        2,
        "recipe.yaml is a folder, not a file; name a YAML file.",
        replaced_by("folder", "recipe.yaml"),
    ),
    Bad(
        "recipe is a pipe",
        INSPECT,
        2,
        "recipe.yaml is a pipe or device, not a file; name a YAML file.",
        replaced_by("pipe", "recipe.yaml"),
    ),
    Bad(
        "recipe is a device",
        RUN,
        2,
        "recipe.yaml is a pipe or device, not a file; name a YAML file.",
        replaced_by("device", "recipe.yaml"),
    ),
    Bad(
        "recipe is a link to itself",
        RUN,
        2,
        "recipe.yaml cannot be read (Too many levels of symbolic links); name a YAML file.",
        replaced_by("loop", "recipe.yaml"),
    ),
    Bad(
        "recipe has a name too long",
        f"run {'r' * 300}.yaml model.pt",
        2,
        "rrr... cannot be read (File name too long); name a YAML file.",
    ),
    Bad(
        "recipe of 10 MB",
        RUN,
        2,
        "recipe.yaml has 10,000,009 bytes; at most 1,000,000 are read.",
        content("title: '" + "x" * 10_000_000 + "'"),
    ),
    Bad("recipe is empty", RUN, 2, "recipe.yaml:1: should be a mapping of keys, this is empty.", content("")),
    Bad(
        "recipe is a list",
        RUN,
        2,
        "recipe.yaml:1: should be a mapping of keys, this is a list.",
        content("- task\n"),
    ),
    Bad(
        "recipe is a word",
        RUN,
        2,
        "recipe.yaml:1: should be a mapping of keys, this is a str.",
        content("binary"),
    ),
    Bad(
        "recipe is a picture",
        RUN,
        2,
        "recipe.yaml:1: not UTF-8; save the file as UTF-8.",
        content(b"\x89PNG\r\n\x1a\n\0\0\0"),
    ),
    Bad(
        "recipe is an archive",
        RUN,
        2,
        "recipe.yaml:1: holds the control character U+0003; is it a text file in UTF-8?",
        content(b"PK\x03\x04\0\0\0"),
    ),
    Bad(
        "recipe in Latin-1",
        RUN,
        2,
        "recipe.yaml:6: not UTF-8; save the file as UTF-8.",
        content(RECIPE.replace("target: y", "target: größe").encode("latin-1")),
    ),
    Bad(
        "recipe in UTF-16",
        RUN,
        2,
        "recipe.yaml:1: not UTF-8; save the file as UTF-8.",
        content(RECIPE.encode("utf-16")),
    ),
    Bad(
        "recipe in UTF-16 without mark",
        RUN,
        2,
        "recipe.yaml:1: holds the control character U+0000; is it a text file in UTF-8?",
        content(RECIPE.encode("utf-16-le")),
    ),
    Bad(
        "tab",
        RUN,
        2,
        "recipe.yaml:10: found character '\\t' that cannot start any token; correct the YAML.",
        appended("\tseed: 1\n"),
    ),
    Bad(
        "two documents",
        RUN,
        2,
        "recipe.yaml:10: a second document begins; keep one.",
        appended("---\ntask: binary\n"),
    ),
    Bad(
        "YAML 1.1",
        RUN,
        2,
        "recipe.yaml:2: directives (%YAML, %TAG) are not allowed; remove them.",
        content("%YAML 1.1\n---\n" + RECIPE),
    ),
    Bad("a bomb of aliases", RUN, 2, "recipe.yaml:1: " + NOT_ALLOWED.format("&a"), content(LAUGHS)),
    Bad(
        "an alias of itself",
        RUN,
        2,
        "recipe.yaml:10: " + NOT_ALLOWED.format("&x"),
        appended('"report": &x {title: *x}\n'),
    ),
    Bad("alias", RUN, 2, "recipe.yaml:10: " + NOT_ALLOWED.format("*x"), appended("seed: *x\n")),
    Bad(
        "tag that runs code",
        RUN,
        2,
        "recipe.yaml:10: " + NOT_ALLOWED.format("!!python/object/apply:os.system"),
        appended('"seed": !!python/object/apply:os.system ["touch ran"]\n'),
    ),
    Bad("own tag", RUN, 2, "recipe.yaml:10: " + NOT_ALLOWED.format("!mine"), appended("seed: !mine 1\n")),
    Bad(
        "set",
        RUN,
        2,
        "recipe.yaml:10: " + NOT_ALLOWED.format("!!set"),
        appended("report: !!set {title, purpose}\n"),
    ),
    Bad(
        "merge key",
        RUN,
        2,
        "recipe.yaml:10: merge keys (<<) are not allowed here; write the keys out.",
        appended("<<: {seed: 1}\n"),
    ),
    Bad(
        "key twice",
        RUN,
        2,
        'recipe.yaml:10: found duplicate key "task"; keep one.',
        appended("task: regression\n"),
    ),
    Bad(
        "key twice within",
        RUN,
        2,
        'recipe.yaml:10: found duplicate key "lr"; keep one.',
        appended("train: {lr: 1, 'lr': 2}\n"),
    ),
    Bad(
        "key is a number", RUN, 2, "recipe.yaml:10: key 3 is not text; put it in quotes.", appended("3: 4\n")
    ),
    Bad("key is null", RUN, 2, "recipe.yaml:10: key null is not text; put it in quotes.", appended(": 4\n")),
    Bad(
        "key is not a number",
        RUN,
        2,
        "recipe.yaml:10: key .nan is not text; put it in quotes.",
        appended(".nan: 4\n"),
    ),
    Bad(
        "key is true",
        RUN,
        2,
        "recipe.yaml:10: key true is not text; put it in quotes.",
        appended("true: 4\n"),
    ),
    Bad(
        "key is a list",
        RUN,
        2,
        "recipe.yaml:10: a key is a list or mapping, not text; remove the extra '?' or '{'.",
        appended("? [a, b]\n: 1\n"),
    ),
    Bad(
        "key is a mapping",
        RUN,
        2,
        "recipe.yaml:10: a key is a list or mapping, not text; remove the extra '?' or '{'.",
        appended("report: {{a}: 1}\n"),
    ),
    Bad(
        "nested 100,000 deep",
        RUN,
        2,
        "recipe.yaml:10: nested deeper than 20 levels; correct the YAML.",
        appended("report: " + "[" * 20_000 + "\n"),
    ),
    Bad(
        "nested blocks",
        RUN,
        2,
        "recipe.yaml:11: nested deeper than 20 levels; correct the YAML.",
        appended("report:\n  " + "- " * 50_000 + "x\n"),
    ),
    Bad(
        "bracket left open",
        RUN,
        2,
        "recipe.yaml:11: expected the node content, but found ...; correct the YAML.",
        appended("report: [\n"),
    ),
    Bad(
        "quote left open",
        RUN,
        2,
        "recipe.yaml:11: found unexpected end of stream; correct the YAML.",
        appended('report: "\n'),
    ),
    Bad(
        "integer of 5,000 digits",
        RUN,
        2,
        "recipe.yaml:10: 9999999999999999999999999999999999999999 does not fit 64 bits; use a smaller number.",
        appended(f"seed: {'9' * 5000}\n"),
    ),
    Bad(
        "hexadecimal of 20,000 bits",
        RUN,
        2,
        "recipe.yaml:10: 0xffffffffffffffffffffffffffffffffffffff does not fit 64 bits; use a smaller number.",
        appended(f"seed: 0x{'f' * 5000}\n"),
    ),
    Bad(
        "hexadecimal of nothing",
        RUN,
        2,
        "recipe.yaml:10: 0x_ is not a number; put text in quotes.",
        appended("seed: 0x_\n"),
    ),
    Bad(
        "seed past 31 bits",
        RUN,
        2,
        "recipe.yaml:10: seed should be below 2147483648, not 2147483648.",
        appended("seed: 2147483648\n"),
    ),
    Bad(
        "infinite step",
        RUN,
        2,
        "recipe.yaml:10: train.lr should be a finite number, not inf.",
        appended("train: {lr: .inf}\n"),
    ),
    Bad(
        "step that overflows",
        RUN,
        2,
        "recipe.yaml:10: train.lr should be a finite number, not inf.",
        appended("train: {lr: 1e999}\n"),
    ),
    Bad(
        "step is not a number",
        RUN,
        2,
        "recipe.yaml:10: train.lr should be a finite number, not nan.",
        appended("train: {lr: .nan}\n"),
    ),
    Bad(
        "argument is not a number",
        RUN,
        2,
        "recipe.yaml:4: model.arguments.width should be text or a whole number or a finite number or true or false or a list, not nan.",
        recipe('"networks.py:build"', '"networks.py:build"\n  arguments: {width: .nan}'),
    ),
    Bad(
        "date",
        RUN,
        2,
        "recipe.yaml:5: data.file: 2020-99-99 is not text, a number or a list; put it in quotes.",
        recipe("data.csv", "2020-99-99"),
    ),
    Bad(
        "null byte in a path",
        RUN,
        2,
        "recipe.yaml:5: text holds '\\x00', which no name or file can hold; remove it.",
        recipe("data.csv", '"data\\0.csv"'),
    ),
    Bad(
        "half a character",
        RUN,
        2,
        "recipe.yaml:6: text holds '\\ud800', which no name or file can hold; remove it.",
        recipe("target: y", 'target: "\\ud800"'),
    ),
    Bad(
        "unknown key",
        RUN,
        2,
        "recipe.yaml:10: trian is not a key. Did you mean 'train'? Keys: version, task, model, data, penalty, target, search, train, refit, export, stability, workers, policy, report, allow_inexact, seed, threads.",
        appended("trian: {}\n"),
    ),
    Bad(
        "unknown key that could steer a terminal",
        RUN,
        2,
        "recipe.yaml:10: \\u001b]0;x is not a key. Keys: version, task, model, data, penalty, target, search, train, refit, export, stability, workers, policy, report, allow_inexact, seed, threads.",
        appended('"\\e]0;x": {}\n'),
    ),
    Bad(
        "unknown key of 900 kB",
        RUN,
        2,
        "recipe.yaml:10: kkk...",
        appended(f"? {'k' * 900_000}\n: 1\n"),
    ),
    Bad(
        "text for a mapping",
        RUN,
        2,
        "recipe.yaml:10: train should be a mapping of keys, not 'fast'.",
        appended("train: fast\n"),
    ),
    Bad(
        "list for a mapping",
        RUN,
        2,
        "recipe.yaml:10: train should be a mapping of keys, not ['fast'].",
        appended("train: [fast]\n"),
    ),
    Bad(
        "number for a name",
        RUN,
        2,
        "recipe.yaml:6: data.target should be text, not 7.",
        recipe("target: y", "target: 7"),
    ),
    Bad(
        "20,000 numbers for names",
        RUN,
        2,
        "recipe.yaml:7: data.features.0 should be text, not 1. (and 19999 more)",
        recipe("target: y", "target: y\n  features: [" + "1," * 20_000 + "]"),
    ),
    Bad(
        "rules that list a feature twice among 20,000",
        RUN,
        2,
        "recipe.yaml:10: policy: must_drop lists 'x' twice.",
        appended("policy: {must_drop: [" + "".join(f"c{i}," for i in range(20_000)) + "x, x]}\n"),
    ),
    Bad(
        "unknown task",
        RUN,
        2,
        "recipe.yaml:1: task should be 'binary', 'multiclass', 'regression' or 'distillation', not 'clustering'.",
        recipe("task: binary", "task: clustering"),
    ),
    Bad(
        "version of tomorrow",
        RUN,
        2,
        "recipe.yaml:10: version should be 2, not 3; some keys have new names, which the changelog lists.",
        appended("version: 3\n"),
    ),
]

SETTINGS = [
    Bad("--set without value", f"{RUN} --set train.lr", 2, "--set train.lr: write it as key=value, such as train.lr=1e-2."),
    Bad("--set without key", f"{RUN} --set =1", 2, "--set =1: write it as key=value, such as train.lr=1e-2."),
    Bad("--set with an empty part", f"{RUN} --set train..lr=1", 2, "--set train..lr=1: write it as key=value, such as train.lr=1e-2."),
    Bad("--set 3,000 deep", f"{RUN} --set {'a.' * 3000}a=1", 2, "--set a.a.a...: write it as key=value, such as train.lr=1e-2."),
    Bad("--set of an unknown key", f"{RUN} --set train.rate=1", 2, "--set train.rate: train.rate is not a key... Keys: optimizer, lr, ..."),
    Bad("--set of a wrong kind", f"{RUN} --set train.lr=fast", 2, "--set train.lr: train.lr should be a number, not 'fast'."),
    Bad("--set with two lines", f"{RUN} --set 'train.lr=1\nseed: 3'", 2, "--set train.lr: the value holds a second key; use one --set for each key."),
    Bad("--set with an alias", f"{RUN} --set 'train.lr=*x'", 2, "--set train.lr:1: " + NOT_ALLOWED.format("*x")),
    Bad("--set with an open bracket", f"{RUN} --set 'train.lr=['", 2, "--set train.lr:1: ...; correct the YAML."),
    Bad("no such command", "rum", 2, "No such command 'rum'...; see ... --help."),
    Bad("no such option", f"{RUN} --fast", 2, "No such option ...--fast...; see glprune run --help."),
    Bad("no model", "run recipe.yaml", 2, "Missing argument 'MODEL'; see glprune run --help."),
    Bad("too many arguments", "init data.csv more.csv", 2, "Got unexpected extra argument (more.csv); see glprune init --help."),
    Bad("option without value", "run recipe.yaml model.pt --out", 2, "Option '--out' requires an argument."),
    Bad("unknown schema", "schema recipes", 2, "Invalid value for '[...recipe|report...]': 'recipes' is not one of 'recipe', 'report'; see glprune schema --help."),
    Bad("output exists", RUN, 2, "out exists; choose another --out or pass --overwrite.", lambda f: (f / "out").mkdir()),
    Bad("output is a file", f"{RUN} --overwrite", 2, "out is not a bundle (it holds no report.json); it is not overwritten.", content("x", "out")),
    Bad("output is no bundle", f"{RUN} --overwrite", 2, "out is not a bundle (it holds no report.json); it is not overwritten.", lambda f: ((f / "out").mkdir(), (f / "out" / "mine.txt").touch())),
    Bad("output below a file", "run recipe.yaml model.pt --quiet --out data.csv/out", 2, "data.csv: cannot write here (Not a directory); choose another --out."),
    Bad("output is this folder", "run recipe.yaml model.pt --quiet --out . --overwrite", 2, ". is not a bundle (it holds no report.json); it is not overwritten."),
    Bad("work in progress is a link elsewhere", RUN, 2, "out.unfinished is a symbolic link; remove it, or choose another --out.", lambda f: ((f / "elsewhere").mkdir(), (f / "out.unfinished").symlink_to("elsewhere"))),
    Bad("work in progress is a file", RUN, 2, ".: cannot write here (File exists); choose another --out.", content("x", "out.unfinished")),
    Bad("output with a name too long", f"run recipe.yaml model.pt --quiet --out {'o' * 300}", 2, "...File name too long..."),
]  # fmt: skip

# --------------------------------------------------------------------------- code a recipe names

FACTORY = "recipe.yaml:3: model.factory: "


def factory(reference: str) -> Make:
    """A recipe with another factory."""
    return recipe("networks.py:build", reference)


SIBLING = "'networks.py' imports 'evil' from its own folder, which --allow-factory forbids; install it as a package, or move its code into 'networks.py'."


def networks(body: str) -> Make:
    """A factory whose network has another forward or other attributes."""
    text = """\
import sys, threading, torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)
        self.init()
    def init(self):
        pass
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))
BODY
def build():
    torch.manual_seed(0)
    return Net()
"""

    def make(folder: Path) -> None:
        (folder / "networks.py").write_text(text.replace("BODY", body))
        scope: dict[str, Any] = {}
        exec(compile(text.replace("BODY", ""), "networks.py", "exec"), scope)
        torch.save(scope["build"]().state_dict(), folder / "model.pt")

    return make


def loader(body: str) -> Make:
    """A recipe with a loader of 20 batches of 3 rows, of which a function makes something else."""
    text = """\
import torch
def make(split):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return changed([(x[i : i + 3], y[i : i + 3]) for i in range(0, 60, 3)])
class Passes:
    def __init__(self, *passes):
        self.passes = list(passes)
    def __iter__(self):
        return iter(self.passes.pop(0) if len(self.passes) > 1 else self.passes[0])
"""

    def make(folder: Path) -> None:
        recipe("file: data.csv\n  target: y", "loader: loading.py:make")(folder)
        (folder / "loading.py").write_text(text + f"def changed(batches):\n    {body}\n")

    return make


NO_GRADIENT = "The network's output has no gradient: its forward runs under torch.no_grad or inference_mode, or detaches the output or takes it from NumPy; remove that from the forward."
FORWARD = "def forward(self, x):\n    return self.b(torch.relu(self.a(x)))\nNet.forward = "
SAME_ROWS = "; let the loader yield the same rows in every pass, and draw what is random from PyTorch's generator, in training only."
LATER = "{} rows at first and {} later" + SAME_ROWS
OTHER = "other values or targets in a later pass than in the first" + SAME_ROWS
ONCE = "'train': a {} can be read once only, and a run reads its rows many times; return a DataLoader or a list of batches."
UNTRAINABLE = [
    ("under no_grad", FORWARD + "torch.no_grad()(forward)", NO_GRADIENT),
    ("under inference_mode", FORWARD + "torch.inference_mode()(forward)", NO_GRADIENT),
    ("that detaches its output", FORWARD + "lambda self, x: forward(self, x).detach()", NO_GRADIENT),
    ("that goes through NumPy", FORWARD + "lambda self, x: torch.from_numpy(forward(self, x).detach().numpy())", NO_GRADIENT),
    ("that turns gradients off", FORWARD + "lambda self, x: (torch.set_grad_enabled(False), forward(self, x))[1]", NO_GRADIENT),
    ("with a lock", "Net.init = lambda self: setattr(self, 'lock', threading.Lock())", "The network cannot be copied: attribute 'lock' of Net forbids it (TypeError: ...); make it when it is needed, outside the network."),
    ("with a module", "Net.init = lambda self: setattr(self.a, 'sys', sys)", "The network cannot be copied: attribute 'sys' of layer 'a' forbids it (TypeError: ...); make it when it is needed, outside the network."),
    ("with a copied gradient", "Net.init = lambda self: setattr(self, 'w', self.a.weight * 2)", "The network cannot be copied: attribute 'w' of Net keeps a tensor with its gradient; keep tensor.detach()."),
    ("that keeps its activations", FORWARD + "lambda self, x: (setattr(self, 'last', self.a(x)), forward(self, x))[1]", "The network cannot be copied: attribute 'last' of Net keeps a tensor with its gradient; keep tensor.detach()."),
    ("whose forward holds itself", "Net.init = lambda self: setattr(self, 'forward', lambda x: self.b(torch.relu(self.a(x))))", "A copy of the network computes with 'a.weight' of the original: a function that the network keeps as an attribute holds the network itself; make it a method of the class."),
    ("that is scripted", "Net = (lambda kind: lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 4))))(Net)", "model.pt does not fit networks.py:build: ..."),
    ("on the meta device", "Net = (lambda kind: lambda: kind().to('meta'))(Net)", FACTORY + "networks.py:build makes 'a.weight' on the device 'meta'; build the network on the CPU and outside of it."),
    ("without running statistics", FORWARD + "forward\nNet.init = lambda self: setattr(self, 'n', nn.BatchNorm1d(3, affine=False, track_running_stats=False))", "Layer 'n' (BatchNorm1d) has no running statistics, so that the output for a row depends on the other rows of its batch; train it with track_running_stats=True."),
]  # fmt: skip
LOADERS = [
    ("is a generator", "yield from batches", ONCE.format("generator")),
    ("is an iterator", "return iter(batches)", ONCE.format("list_iterator")),
    ("is a map", "return map(tuple, batches)", ONCE.format("map")),
    ("is a zip", "return zip(*zip(*batches))", ONCE.format("zip")),
    ("hides an iterator", "return Passes(iter(batches))", "'test': " + LATER.format(60, 0)),
    ("ends sooner in the second pass", "return Passes(batches, batches[1:])", "'train': " + LATER.format(60, 57)),
    ("yields more in the second pass", "return Passes(batches, batches + batches[:2])", "'train': " + LATER.format(60, "more")),
    ("yields other rows in the second pass", "return Passes(batches, [(x.flip(0), y) for x, y in batches])", "'train': " + OTHER),
    ("yields other targets in the second pass", "return Passes(batches, [(x, y.flip(0)) for x, y in batches])", "'train': " + OTHER),
    ("turns its rows round in the second pass", "return Passes(batches, batches[::-1])", "'valid': another order of the rows" + OTHER.removeprefix("other values or targets")),
    ("is empty in the second pass", "return Passes(batches, [])", "'test': " + LATER.format(60, 0)),
    ("yields numbers past float32", "return [(x.double().index_fill(0, torch.tensor([1]), 1e39), y) for x, y in batches]", "'train': input 'features' holds 1e+39 in row 2, beyond float32 (3.4e+38); scale it."),
    ("yields sparse rows", "return [(x.to_sparse(), y) for x, y in batches]", "'train': input 'features' holds no dense real numbers (torch.float32, torch.sparse_coo); convert it in the loader."),
    ("yields complex rows", "return [(x.to(torch.complex64), y) for x, y in batches]", "'train': input 'features' holds no dense real numbers (torch.complex64, torch.strided); convert it in the loader."),
    ("yields complex targets", "return [(x, y.to(torch.complex64)) for x, y in batches]", "'train': the target holds no dense real numbers (torch.complex64, torch.strided); convert it in the loader."),
    ("yields rows on the meta device", "return [(x.to('meta'), y) for x, y in batches]", "'train': input 'features' holds no dense real numbers (device meta); convert it in the loader."),
]  # fmt: skip
CODE = [
    Bad("factory in a missing file", INSPECT, 2, FACTORY + "no file absent.py; paths are relative to the recipe.", factory("absent.py:build")),
    Bad("factory in a missing package", INSPECT, 2, FACTORY + "no module 'absent'; install it, or name a file such as 'network.py:build'.", factory("absent.package:build")),
    Bad("factory that is not there", INSPECT, 2, FACTORY + "'networks.py' has no 'absent'; name a function or class it defines.", factory("networks.py:absent")),
    Bad("factory that is a value", INSPECT, 2, FACTORY + "'networks.py' has a value, not a function, 'value'; name a function or class it defines.", factory("networks.py:value")),
    Bad("factory without a function", INSPECT, 2, "recipe.yaml:3: model.factory should be 'package.module:function' or 'file.py:function', not 'networks.py'.", factory("networks.py")),
    Bad("factory of a relative module", INSPECT, 2, FACTORY + "importing '.networks' failed (TypeError: ...).", factory(".networks:build")),
    Bad("factory in a file with a name too long", INSPECT, 2, FACTORY + "importing 'nnn... failed (OSError: ...).", factory("n" * 300 + ".py:build")),
    Bad("factory with a mistake in it", INSPECT, 2, FACTORY + "importing 'networks.py' failed (SyntaxError: ...).", content("def build(:\n", "networks.py")),
    Bad("factory that is no text", INSPECT, 2, FACTORY + "importing 'networks.py' failed (SyntaxError: ...).", content(b"\xff\xfe\0", "networks.py")),
    Bad("factory whose import leaves the program", INSPECT, 2, FACTORY + "importing 'networks.py' failed (SystemExit: 0 at networks.py:2); put what a script runs under if __name__ == '__main__', or name a file that only builds the network.", content("import sys\nsys.exit(0)\n", "networks.py")),
    Bad("factory that leaves the program", INSPECT, 3, FACTORY + "networks.py:leaving failed (SystemExit: 0 at networks.py:12).", factory("networks.py:leaving")),
    Bad("factory that raises", INSPECT, 3, FACTORY + "networks.py:broken failed (RuntimeError: no licence at networks.py:10).", factory("networks.py:broken")),
    Bad("factory that recurses", INSPECT, 3, FACTORY + "networks.py:endless failed (RecursionError: maximum recursion depth exceeded at networks.py:14).", factory("networks.py:endless")),
    Bad("factory that makes text", INSPECT, 3, FACTORY + "networks.py:text returned str, not a torch.nn.Module.", factory("networks.py:text")),
    Bad("argument the factory has not", INSPECT, 3, FACTORY + "networks.py:build failed (TypeError: build() got an unexpected keyword argument 'depth').", recipe('"networks.py:build"', '"networks.py:build"\n  arguments: {depth: 3}')),
    Bad("factory not allowed", f"{INSPECT} --allow-factory torchvision", 2, FACTORY + "'networks.py' is not listed by --allow-factory (torchvision); review its code and list it, or change the recipe."),
    Bad("factory not allowed is not imported", f"{RUN} --allow-factory networks.py", 2, FACTORY + "'evil.py' is not listed by --allow-factory (networks.py); review its code and list it, or change the recipe.", factory("evil.py:build")),
    Bad("module beside the recipe is not imported", f"{RUN} --allow-factory torchvision", 2, FACTORY + "'evil' is not listed by --allow-factory (torchvision); review its code and list it, or change the recipe.", factory("evil:build")),
    Bad("folder beside the recipe takes no package's name", f"{RUN} --allow-factory evil", 2, FACTORY + "no module 'evil'; install it, or name a file such as 'network.py:build'.", factory("evil:build")),
    Bad("file is not allowed by a module's name", f"{RUN} --allow-factory evil", 2, FACTORY + "'evil.py' is not listed by --allow-factory (evil); review its code and list it, or change the recipe.", factory("evil.py:build")),
    Bad("package that only begins like an allowed one", f"{INSPECT} --allow-factory torch.n", 2, FACTORY + "'torch.nn' is not listed by --allow-factory (torch.n); review its code and list it, or change the recipe.", factory("torch.nn:Identity")),
    Bad("function of another package", f"{INSPECT} --allow-factory networks.py", 2, FACTORY + "'networks.py:urlopen' is of 'urllib.request', which is not listed by --allow-factory (networks.py); review its code and list it, or change the recipe.", factory("networks.py:urlopen")),
    Bad("loader not allowed", f"{INSPECT} --allow-factory networks.py", 2, "recipe.yaml:5: data.loader: 'evil.py' is not listed by --allow-factory (networks.py); review its code and list it, or change the recipe.", recipe("file: data.csv\n  target: y", "loader: evil.py:build")),
    Bad("factory that imports a missing library", INSPECT, 2, FACTORY + "'networks.py' imports 'absent', which is neither installed nor beside it; install it.", content("import absent\n", "networks.py")),
    Bad("factory that imports its sibling by a dot", INSPECT, 2, FACTORY + "importing 'networks.py' failed (ImportError: attempted relative import with no known parent package at networks.py:1); import the modules beside it without a dot.", content("from .evil import build\n", "networks.py")),
    Bad("factory whose sibling is not allowed", f"{INSPECT} --allow-factory networks.py", 2, FACTORY + SIBLING, content("from evil import build\n", "networks.py")),
    Bad("factory whose sibling is not allowed when it is called", f"{INSPECT} --allow-factory networks.py", 2, FACTORY + SIBLING, content("def build():\n    import evil\n", "networks.py")),
    Bad("factory in a script", INSPECT, 2, FACTORY + "importing 'networks.py' failed (SystemExit: 2 at networks.py:4: : error: the following arguments are required: --lr); put what a script runs under if __name__ == '__main__', or name a file that only builds the network.", content("import argparse\np = argparse.ArgumentParser(prog='')\np.add_argument('--lr', required=True)\np.parse_args([])\n", "networks.py")),
    *(Bad(f"network {name}", INSPECT, 3, message, networks(body)) for name, body, message in UNTRAINABLE),
    *(Bad(f"loader that {name}", INSPECT, 4, "recipe.yaml:5: data.loader: split " + message, loader(body)) for name, body, message in LOADERS),
    Bad("loader that yields nothing", INSPECT, 4, "recipe.yaml:5: data.loader: split 'train' failed (TypeError: ...).", recipe("file: data.csv\n  target: y", "loader: networks.py:loader")),
]  # fmt: skip

# --------------------------------------------------------------------------- data


def table(folder: Path, **columns: Any) -> None:
    """The data as Parquet, with other columns, and a recipe that reads it."""
    x = np.arange(60) % 7
    own = {"a": x + 0.5, "b": x * 2.0, "c": -x / 3, "y": x % 2}
    pq.write_table(pa.table(own | columns), folder / "data.parquet")
    recipe("data.csv", "data.parquet")(folder)


def of_table(**columns: Any) -> Make:
    return lambda folder: table(folder, **columns)


def of_split(column: Any) -> Make:
    """The data as Parquet with a split column."""
    text = RECIPE.replace("data.csv", "data.parquet\n  split: {column: p}")
    return lambda folder: (table(folder, p=column), content(text)(folder))


def csv(old: str, new: str) -> Make:
    """The data with every such text changed."""

    def make(folder: Path) -> None:
        text = (folder / "data.csv").read_text()
        assert old in text
        (folder / "data.csv").write_bytes(text.replace(old, new).encode())

    return make


def recoded(encoding: str, header: str = "größe") -> Make:
    """The data with a letter in its header, in another encoding."""

    def make(folder: Path) -> None:
        text = (folder / "data.csv").read_text().replace("a,", f"{header},", 1)
        (folder / "data.csv").write_bytes(text.encode(encoding))

    return make


def cut_parquet(folder: Path) -> None:
    table(folder)
    shortened("data.parquet", 0.7)(folder)


def shortened(name: str, share: float) -> Make:
    """A file whose end is missing."""

    def make(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(len(raw) * share)])

    return make


def wide(folder: Path) -> None:
    """10^5 columns, two of one name."""
    names = [f"c{i}" for i in range(99_999)] + ["c99998", "y"]
    (folder / "data.csv").write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")


RAGGED = "data.csv: row ... has ... cells and the header ...; quote texts that hold ',', write decimal points, and check that the file is whole."
DATA = [
    Bad("no data", INSPECT, 4, "absent.csv cannot be read (No such file or directory); name a file or a folder of Parquet, relative to the recipe.", recipe("data.csv", "absent.csv")),
    Bad("data with a name too long", INSPECT, 4, "ddd... cannot be read (File name too long); name a file or a folder of Parquet, relative to the recipe.", recipe("data.csv", "d" * 300 + ".csv")),
    Bad("data is a pipe", INSPECT, 4, "data.csv is a pipe or device, not a file; name a file or a folder of Parquet, relative to the recipe.", replaced_by("pipe", "data.csv")),
    Bad("data is a link to itself", INSPECT, 4, "data.csv cannot be read (Too many levels of symbolic links); name a file or a folder of Parquet, relative to the recipe.", replaced_by("loop", "data.csv")),
    Bad("data of an unknown kind", INSPECT, 4, "networks.py: kind '.py'; give .csv...", recipe("data.csv", "networks.py")),
    Bad("data is empty", INSPECT, 4, "data.csv...", content("", "data.csv")),
    Bad("data is a header", INSPECT, 4, "data.csv: no rows...", content("a,b,c,y\n", "data.csv")),
    Bad("data is binary", RUN, 4, "data.csv...", content(bytes(range(256)) * 9, "data.csv")),
    Bad("ragged rows", INSPECT, 4, RAGGED, csv("\n", ",1\n1,2\n")),
    Bad("CSV cut in a row", INSPECT, 4, RAGGED, shortened("data.csv", 0.53)),
    Bad("CSV in Latin-1", INSPECT, 4, "data.csv: a column's name is not UTF-8; save the file as UTF-8.", recoded("latin-1")),
    Bad("CSV in UTF-16", INSPECT, 4, "data.csv...", recoded("utf-16")),
    Bad("column twice", INSPECT, 4, "data.csv: column 'b' is there twice; rename one.", csv("a,b,", "b,b,")),
    Bad("column twice among 100,000", INSPECT, 4, "data.csv: column 'c99998' is there twice; rename one.", wide),
    Bad("column of words", INSPECT, 4, "data.parquet: column 'b' is not numeric ('b' holds 'x' in row 1)...", of_table(b=["x"] * 60)),
    Bad("column of lists", INSPECT, 4, "data.parquet: column 'b' is not numeric ('b' holds [1] in row 1)...", of_table(b=[[1]] * 60)),
    Bad("target of lists", INSPECT, 4, "data.parquet: column 'y' holds list<element: int64> values; use numbers or UTF-8 text.", of_table(y=[[1]] * 60)),
    Bad("target of structs", INSPECT, 4, "data.parquet: column 'y' holds struct<a: int64> values; use numbers or UTF-8 text.", of_table(y=[{"a": 1}] * 60)),
    Bad("target of bytes", INSPECT, 4, "data.parquet: column 'y' holds binary values; use numbers or UTF-8 text.", of_table(y=[b"\xff", b"\xfe"] * 30)),
    Bad("target in Latin-1", INSPECT, 4, "data.csv: column 'y' holds binary values; use numbers or UTF-8 text.", lambda f: (f / "data.csv").write_bytes((f / "data.csv").read_text().replace(",1\n", ",größe\n").encode("latin-1"))),
    Bad("target is empty", INSPECT, 4, "data.parquet: target 'y' is empty in 60 rows, first in row 1; drop them.", of_table(y=pa.nulls(60))),
    Bad("split column of lists", INSPECT, 4, "data.parquet: column 'p' holds list<element: int64> values; use numbers or UTF-8 text.", lambda f: (table(f, p=[[1]] * 60), content(RECIPE.replace("data.csv", "data.parquet\n  split: {column: p}"))(f))),
    Bad("split column of float16", INSPECT, 4, "data.parquet: split column 'p' holds '1.0' in row 1; use train, valid and test.", of_split(np.ones(60, dtype=np.float16))),
    Bad("split column of categories", INSPECT, 4, "data.parquet: split column 'p' holds 'dev' in row 2; use train, valid and test.", of_split(pa.array(["train", "dev"] * 30).dictionary_encode())),
    Bad("split column of categories with a gap", INSPECT, 4, "data.parquet: split column 'p' is empty in row 2; use train, valid and test.", of_split(pa.array(["train", None] * 30).dictionary_encode())),
    Bad("split column that is empty", INSPECT, 4, "data.parquet: split column 'p' is empty in row 1; use train, valid and test.", of_split(pa.nulls(60))),
    Bad("column of categories", INSPECT, 4, "data.parquet: column 'b' is not numeric ('b' holds 'x' in row 1); encode as numbers, or list under data.exclude.", of_table(b=pa.array(["x", "z"] * 30).dictionary_encode())),
    Bad("protected column of structs", INSPECT, 4, "data.parquet: column 'p' holds struct<a: int64> values; use numbers or UTF-8 text.", lambda f: (table(f, p=[{"a": 1}] * 60), content(RECIPE.replace("data.csv", "data.parquet\n  exclude: [p]") + "policy: {protected: [p]}\n")(f))),
    Bad("rules in a circle", INSPECT, 2, "recipe.yaml:10: policy.derived_from.a: a <- b <- a is a circle; remove one of them.", appended("policy: {derived_from: {a: b, b: a}}\n")),
    Bad("column past 2^53", INSPECT, 4, "data.parquet: column 'b' holds 9007199254740993 in row 3; above 2^53 neighbouring numbers become equal; scale or encode them otherwise, or list it under data.exclude.", of_table(b=[2**53 + (i == 2) for i in range(60)])),
    Bad("unsigned column past 2^53", INSPECT, 4, "data.parquet: column 'b' holds 18446744073709551615 in row 1; above 2^53...", of_table(b=np.full(60, 2**64 - 1, dtype=np.uint64))),
    Bad("classes that a float merged", INSPECT, 4, "data.csv: column 'y' holds 1.2345678901234567e+19 in row 1; above 2^53 neighbouring numbers become equal; write the classes as whole numbers below 2^63 or as text.", lambda f: (f / "data.csv").write_text(re.sub(",([01])\n", r",1234567890123456789\1\n", (f / "data.csv").read_text()))),
    Bad("column with a gap", INSPECT, 4, "data.parquet: column 'b' is not finite: 1 empty, NaN or Inf in 'b', first in row 3; ...", of_table(b=[None if i == 2 else float(i) for i in range(60)])),
    Bad("column with Inf", INSPECT, 4, "data.parquet: column 'b' is not finite: 60 empty, NaN or Inf in 'b', first in row 1; ...", of_table(b=np.full(60, np.inf))),
    Bad("name that could steer a terminal", INSPECT, 4, "data.parquet: column '\\x1b[2J\\u202e[red]' is not numeric (...x1b[2J...[red]' holds 'x' in row 1)...", of_table(**{"\x1b[2J\u202e[red]": ["x"] * 60})),
    Bad("no target column", INSPECT, 2, "recipe.yaml:6: data.target: no column 'label'.", recipe("target: y", "target: label")),
    Bad("feature that is no column", INSPECT, 2, "recipe.yaml:7: data.features: no column 'aa'. Did you mean 'a'?", recipe("target: y", "target: y\n  features: [aa]")),
    Bad("Parquet cut short", INSPECT, 4, "data.parquet: cannot be read (...).", cut_parquet),
    Bad("Parquet is text", INSPECT, 4, "data.parquet: cannot be read (...).", lambda f: (content("PAR1 PAR1", "data.parquet")(f), recipe("data.csv", "data.parquet")(f))),
    Bad("folder without Parquet", INSPECT, 4, "...empty...", lambda f: ((f / "empty").mkdir(), recipe("data.csv", "empty")(f))),
    Bad("init of nothing", "init absent.csv", 4, "absent.csv cannot be read (No such file or directory); name a file or a folder of Parquet, relative to the recipe."),
    Bad("init of one column", "init one.csv --out new.yaml", 4, "one.csv: one column only; a recipe needs features and a target.", content("a\n1\n", "one.csv")),
    Bad("init of lists", "init data.parquet", 4, "data.parquet: one column only; a recipe needs features and a target.", lambda f: pq.write_table(pa.table({"a": [[1]], "y": [1]}), f / "data.parquet")),
    Bad("init over a recipe", "init data.csv --out recipe.yaml", 2, "recipe.yaml exists; choose another --out."),
    Bad("init into a missing folder", "init data.csv --out no/new.yaml", 2, "no/new.yaml: cannot be written (No such file or directory); choose another --out."),
    Bad("init of a code file", "init networks.py", 4, "networks.py: kind '.py'; give .csv..."),
]  # fmt: skip
