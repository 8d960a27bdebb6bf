"""Factories, networks and loaders that raise, exit, warn, print, change things or return oddities.

Each case is decided by answers to ``choose(n)``, as those of ``tests.mutations`` are. ``check`` runs it through the
command line and holds that it ends as documented: a result, or one line with the exit code of an error.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from click.testing import CliRunner, Result

from glprune.cli.main import main

Choose = Callable[[int], int]

RAISES = """
raise ValueError("no\\nluck")
raise RuntimeError
raise KeyError("\\x1b[31mred\\udcff")
raise type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})()
raise type("Odd", (BaseException,), {})("odd")
raise OSError(28, "No space left on device")
raise FileNotFoundError("absent")
raise MemoryError
raise RecursionError("deep")
raise StopIteration
raise StopAsyncIteration
raise GeneratorExit
raise NotImplementedError
raise UnicodeError("\\udcff" * 3000)
raise AssertionError
raise Warning("as an error")
raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])
raise BaseExceptionGroup("several", [SystemExit(0)])
raise ImportError("lost")
raise ModuleNotFoundError("No module named 'absent'", name="absent")
raise BrokenPipeError
raise EOFError
raise click.exceptions.Exit(0)
raise click.Abort
raise click.UsageError("not yours")
raise asyncio.CancelledError
""".strip().splitlines()
EXITS = """
sys.exit(0)
sys.exit()
sys.exit(7)
sys.exit("bye")
raise SystemExit(False)
exit(0)
""".strip().splitlines()
HARMLESS = """
warnings.warn("odd")
print("user: odd", flush=True)
print("user: odd", file=sys.stderr)
print("user: " + "x" * 10_000)
logging.getLogger("odd").error("user: odd")
sys.stdout.write("user: \\udcff\\n")
sys.argv[:] = ["odd"]
os.environ["ODD"] = "1"
os.chdir("/")
random.seed(1); np.random.seed(1)
gc.collect(0)
torch.manual_seed(1)
torch.set_printoptions(precision=1)
threading.Thread(target=lambda: None).start()
""".strip().splitlines()
CHANGES = """
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
warnings.simplefilter("error")
sys.setrecursionlimit(20_000)
sys.path.clear()
torch.use_deterministic_algorithms(False)
""".strip().splitlines()
FACTORY_RETURNS = """
None
3
Net
"network"
torch.zeros(3)
nn.Identity()
nn.Module()
nn.Linear(3, 1)
nn.Sequential()
torch.jit.script(nn.Linear(3, 1))
Net().half()
Net().double()
Net().to("meta")
Net().train()
Net().requires_grad_(False)
[Net()]
""".strip().splitlines()
FORWARD_RETURNS = """
None
3
"text"
[]
{}
()
y.detach()
y.detach().numpy()
y.tolist()
y.squeeze()
y.flatten()
y[:1]
y[0]
y.sum()
y.T
y > 0
(y > 0).long()
y.double()
y.half()
y.bfloat16()
y.to(torch.complex64)
y.to_sparse()
y.to("meta")
y * float("nan")
y * float("inf")
y * 0
y - y.mean(0)
y + torch.rand(1)
y * len(x)
y.expand(-1, 5)
y[:, :0]
y[:0]
torch.cat([y, y])
(y, y)
(y, None)
{"a": [y]}
{"a": y, "b": {"c": y}}
{1: y}
(z for z in [y])
iter([y])
nn.Parameter(y)
self.entry.weight
x
x[:, :1]
y.requires_grad_()
torch.nested.nested_tensor([y])
y.view(-1, 2)
torch.softmax(y, 0)
[y, "text"]
""".strip().splitlines()
FORWARD_CHANGES = """
x.zero_()
x[:, 0] = 0
x.add_(1)
x.resize_(1, 3)
self.calls += 1; x = x + self.calls
self.calls += 1
self.memory = x
self.buffer.add_(x.mean())
self.buffer = x.mean(0)
self.entry.weight.data.add_(0.1)
self.entry = nn.Linear(3, 4)
self.extra = nn.Linear(3, 3)
self.register_buffer("late", torch.zeros(len(x)))
self.train()
self.train(not self.training)
del self.entry
self.entry.weight.requires_grad_(False)
self.out.weight = nn.Parameter(torch.zeros(1, 4))
self.__class__ = nn.Identity
self._parameters.clear()
x = x.double()
x = x.detach()
x = x[torch.randperm(len(x))]
x = x.flip(0)
x = x.numpy()
x = F.relu_(x)
x = x.view(-1, 3)
x = F.dropout(x)
x = x / x.norm()
""".strip().splitlines()
LOADER_RETURNS = """
None
3
[]
{}
"batches"
iter([])
[None]
[(x, y)]
[(x, y), None]
[(x[:0], y[:0]), (x, y)]
[(x, y), (x[:0], y[:0].float())]
[(x, None)]
[(x, y[:5])]
[(x[0], y[0])]
[x]
[[x, y]]
[{"x": x}]
[({"features": x}, y)]
[({"other": x}, y)]
[((x,), y)]
[((x, x), y)]
[(x.numpy(), y.numpy())]
[(x.tolist(), y.tolist())]
[(x.double(), y.double())]
[(x.half(), y.int())]
[(x.long(), y)]
[(x > 0, y > 0)]
[(x.to(torch.complex64), y)]
[(x.to_sparse(), y)]
[(x.to("meta"), y)]
[(x.requires_grad_(), y)]
[(x * float("nan"), y)]
[(x, y * float("nan"))]
[(x, y - 1)]
[(x, y * 3)]
[(x, y * 0)]
[(x, y + 0.5)]
[(x, y[:, None])]
[(x, torch.stack([y, y], 1))]
[(x[:, :2], y)]
[(x, y), (x[:, :2], y)]
[(x[:, :, None], y)]
[(x[n : n + 1], y[n : n + 1]) for n in range(40)]
((x[n : n + 7], y[n : n + 7]) for n in range(0, 40, 7))
[(x[:1], y[:1])]
map(lambda n: (x, y), range(2))
torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=9, shuffle=True)
torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=9, num_workers=0, drop_last=True)
type("Odd", (), {"__getitem__": lambda self, n: (x, y) if n < 2 else [][0]})()
type("Odd", (), {"__iter__": lambda self: 3})()
type("Odd", (), {"__iter__": lambda self: sys.exit(0)})()
type("Odd", (), {"__len__": lambda self: -1, "__iter__": lambda self: iter([(x, y)])})()
""".strip().splitlines()
MOMENTS = ["True", "self.training", "len(x) == 1", "len(x) > 20", "x.shape[1] < 3", "counted() > {n}"]

CODE = """\
import asyncio, gc, logging, os, random, sys, threading, warnings
import click, numpy as np, torch, torch.nn.functional as F
from torch import nn
count = [0]
def counted():
    count[0] += 1
    return count[0]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry, self.out, self.calls = nn.Linear(3, 4), nn.Linear(4, 1), 0
        self.register_buffer("buffer", torch.zeros(3), persistent=False)
    def forward(self, x):
{forward}
        y = self.out(torch.relu(self.entry(x + self.buffer)))
        return {returned}
def build():
{factory}
def loader(split):
    g = torch.Generator().manual_seed(len(split))
    x = torch.randn(40, 3, generator=g)
    y = (x[:, 0] > 0).long()
{loader}
"""
RECIPE = """\
task: binary
model: {factory: "odd.py:build"}
data: {loader: "odd.py:loader"}
target: {max_features: 2}
search: path
train: {epochs: 1, n_lambdas: 12, n_stages: 1, full_batch_steps: 5}
refit: {epochs: 1}
stability: null
export: {exporter: torchscript}
"""


def write_weights(path: Path) -> None:
    """The trained weights of every network."""
    torch.manual_seed(0)
    parts = {"entry": torch.nn.Linear(3, 4), "out": torch.nn.Linear(4, 1)}
    torch.save({f"{n}.{k}": v for n, part in parts.items() for k, v in part.state_dict().items()}, path)


def make(choose: Choose) -> tuple[str, str]:
    """Return a case: the code, and the command to run."""

    def pick(options: list[str]) -> str:
        return options[choose(len(options))]

    def action() -> str:
        return pick([*RAISES, *EXITS, *HARMLESS, *CHANGES])

    parts = {"forward": "pass", "returned": "y", "factory": "return Net()", "loader": "return [(x, y)]"}
    for _ in range(1 + (choose(4) == 0)):  # one thing is odd, or two
        match choose(7):
            case 0:
                parts["factory"] = f"{action()}\nreturn Net()"
            case 1:
                parts["factory"] = f"return {pick(FACTORY_RETURNS)}"
            case 2:
                moment = pick(MOMENTS).format(n=choose(120))
                parts["forward"] = f"if {moment}:\n    {action()}"
            case 3:
                parts["forward"] = f"if {pick(MOMENTS).format(n=choose(120))}:\n    {pick(FORWARD_CHANGES)}"
            case 4:
                parts["returned"] = pick(FORWARD_RETURNS)
            case 5:
                late = f"if counted() > {choose(9)}: "
                parts["loader"] = f"{pick(['', late])}{action()}\nreturn [(x, y)]"
            case _:
                parts["loader"] = f"return {pick(LOADER_RETURNS)}"
    depth = {"forward": 8, "factory": 4, "loader": 4, "returned": 0}
    code = CODE.format(**{name: textwrap.indent(text, " " * depth[name]) for name, text in parts.items()})
    command = (
        "inspect odd.yaml model.pt --accept-original",
        "run odd.yaml model.pt --accept-original --quiet --out out",
    )[choose(3) > 0]
    return code, command


def check(code: str, command: str, folder: Path) -> int:
    """Run a case in a folder with the weights; return the exit code.

    Raises:
        AssertionError: It ended in another way than documented.
    """
    (folder / "odd.py").write_text(code)
    (folder / "odd.yaml").write_text(RECIPE)
    with _settings(folder):
        done = CliRunner().invoke(main, shlex.split(command), prog_name="glprune")
    out = folder / "out"
    told = f"{command}\n{code}\n{done.output}"
    assert done.exception is None or isinstance(done.exception, SystemExit), told
    assert "Traceback" not in done.output, told
    if done.exit_code:
        lines = [line for line in done.stderr.splitlines() if not line.startswith(("user: ", "note: "))]
        assert len(lines) == 1, told
        assert lines[0].startswith("glprune: "), told
        assert done.exit_code in (2, 3, 4, 5), told
        assert not out.exists(), told
    else:
        assert _has_result(done, command, out), told
    return done.exit_code


def _has_result(done: Result, command: str, out: Path) -> bool:
    if command.startswith("run"):
        return (out / "MANIFEST.json").exists() and (out / "model.onnx").exists()
    return "lambda_max" in done.stdout


@contextlib.contextmanager
def _settings(folder: Path) -> Iterator[None]:
    """Work in a folder and undo what a case changed of the process."""
    import sys

    here, argv, path, limit = Path.cwd(), list(sys.argv), list(sys.path), sys.getrecursionlimit()
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(here)
        sys.argv[:], sys.path[:] = argv, path
        sys.setrecursionlimit(limit)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_printoptions(profile="default")
        gc.collect()
