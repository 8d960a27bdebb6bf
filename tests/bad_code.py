"""Forwards and loaders that no run can use, as entries of the corpus of bad inputs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.bad_inputs import INSPECT, RUN, Bad, Make, recipe

_NETWORK = """\
import os, random, sys, time, torch, numpy as np
from torch import nn
from torch.nn import functional as F
class Net(nn.Sequential):
    calls = 0
    def forward(self, x):
{}
def build():
    return Net(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
"""
_LOADER = """\
import sys, torch
class Rows:
    def __init__(self, split):
        self.split = split
    def __iter__(self):
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(len(self.split)))
        y = (x[:, 0] > 0).long()
{}
"""
_Y = "y = super().forward(x)\n"
_AGAIN = "The network returns other outputs when it is called again on the same rows (by ...): its forward "
_RANDOM = _AGAIN + "draws random numbers; draw them in training only (if self.training), as nn.Dropout does."
_STATE = _AGAIN + "keeps a state from call to call{}; do so in training only (if self.training)."
_CLOCK = _STATE.format(", or reads a clock or random numbers of its own")
_MIXES = (
    "The outputs for {} differ by ... from those for the same among {}: its forward mixes the rows of a batch (as "
    "x.mean(0) does); compute each row by itself, with statistics of the training rows kept in buffers."
)
_NUMBER = "its forward depends on the number of rows; treat batches of every size alike."
_DIFFERS = "The outputs for {} differ by ... from those for the same among {}: " + _NUMBER
_FAILS = (
    "The network does not run on the data, 3 columns, input shape (12, 3) ({}); compare data.features and ..."
)
_SHAPE = (
    "The network returns shape {} for {} and {} for the same among {}; every output begins with the rows at every "
    "batch size: write .squeeze(-1) instead of .squeeze(), and x.shape[0] instead of a number of rows."
)
_KIND = "The network returns a {} tensor; return dense real numbers on the CPU."
_WHOLE = "The network predicts {}, which has no gradient; return logits, probabilities or values instead of decisions."
_NORM = (
    "The input columns cannot be removed: '0.weight', which reads them, is divided by its own norm and cannot be "
    "shrunk. To prune hidden units only, set penalty.inputs: null."
)
_LATER = (
    "The network's code failed ({}); it ran when it was checked first, so that it depends on more than its inputs, or "
    "on training."
)
_OWN = "return self[2](self[1](F.linear(x, {}, self[0].bias)))"
_W = "self[0].weight"

FORWARDS: list[tuple[str, str, str]] = [
    ("subtracts the mean of the rows", "return super().forward(x - x.mean(0))", _MIXES.format("1 row", 8)),
    ("sorts the rows", "return super().forward(x.sort(0).values)", _MIXES.format("1 row", 8)),
    ("compares with the first row", "return super().forward(x - x[:1])", _MIXES.format("1 row", 8)),
    ("normalises over the rows", "return super().forward(F.batch_norm(x, None, None, training=True))", "The network does not run on 1 row (ValueError: ...): " + _NUMBER),
    ("has a softmax over the rows", _Y + "return torch.softmax(y, 0)", _MIXES.format("1 row", 8)),
    ("branches at one row", _Y + "return y * 2 if len(x) == 1 else y", _DIFFERS.format("1 row", 8)),
    ("branches at two rows", _Y + "return y * 2 if len(x) == 2 else y", _DIFFERS.format("2 rows", 8)),
    ("branches at an odd number of rows", _Y + "return y * 2 if len(x) % 2 and len(x) > 1 else y", _DIFFERS.format("7 rows", 8)),
    ("branches at many rows", _Y + "return y * 2 if len(x) > 8 else y", _DIFFERS.format("8 rows", 12)),
    ("branches at as many rows as are trained on", _Y + "return y * 2 if len(x) in (35, 36) else y", _DIFFERS.format("8 rows", 36)),
    ("scales with the number of rows", _Y + "return y / len(x)", _DIFFERS.format("1 row", 8)),
    ("branches at 64 rows", _Y + "return y * 2 if len(x) % 64 == 0 else y", _DIFFERS.format("8 rows", 64)),
    ("allows ten rows", "assert len(x) <= 10\nreturn super().forward(x)", "The network does not run on 12 rows (AssertionError: no message at networks.py:7), and does on 8: " + _NUMBER),
    ("needs two rows", "assert len(x) > 1\nreturn super().forward(x)", "The network does not run on 1 row (AssertionError: no message at networks.py:7): " + _NUMBER),
    ("ends the program at one row", "len(x) > 1 or sys.exit(0)\nreturn super().forward(x)", "The network does not run on 1 row (SystemExit: 0 at networks.py:7): " + _NUMBER),
    ("drops the axis of the rows", "return super().forward(x).squeeze()", _SHAPE.format("()", "1 row", "(1,)", 8)),
    ("draws random numbers", "return super().forward(x + torch.rand_like(x))", _RANDOM),
    ("drops out in evaluation too", "return super().forward(F.dropout(x))", _RANDOM),
    ("draws random numbers of Python", _Y + "return y + random.random()", _RANDOM),
    ("draws random numbers of NumPy", _Y + "return y + float(np.random.rand())", _RANDOM),
    ("counts its calls", _Y + "self.calls += 1\nreturn y + self.calls", _STATE.format(" ('calls' changes)")),
    ("changes at every 40th call", "self.calls += 1\nreturn super().forward(x * (2 if self.calls % 40 == 0 else 1))", _STATE.format(" ('calls' changes)")),
    ("draws random numbers with its own seed", "torch.manual_seed(0)\nreturn super().forward(x + torch.rand(3))", "The network's forward draws random numbers (torch.rand) with a seed of its own, which no exported file repeats; draw them once, and keep them in a buffer (register_buffer)."),
    ("trains in evaluation too", "self[0].bias.data += 0.01\nreturn super().forward(x)", _STATE.format(" ('0.bias' changes)")),
    ("reads the clock", _Y + "return y + time.perf_counter() % 1", _CLOCK),
    ("draws random numbers of the system", _Y + "return y + os.urandom(2)[0]", _CLOCK),
    ("computes in float64", "return super().forward(x.double())", "The network's forward computes in float64 (RuntimeError: ... at networks.py:7), and glprune trains and ships float32; write x.to(weight.dtype), or nothing, instead of x.to(torch.float64)."),
    ("computes in float16", "return super().forward(x.half())", "The network's forward computes in float16 (RuntimeError: ... at networks.py:7), and glprune trains and ships float32; write x.to(weight.dtype), or nothing, instead of x.to(torch.float16)."),
    ("returns complex numbers", _Y + "return y.to(torch.complex64)", _KIND.format("complex")),
    ("returns a sparse tensor", _Y + "return y.to_sparse()", _KIND.format("sparse")),
    ("returns a tensor without values", _Y + "return y.to('meta')", _KIND.format("meta (not CPU)")),
    ("returns decisions", _Y + "return y > 0", _WHOLE.format("bool")),
    ("returns classes", _Y + "return (y > 0).long()", _WHOLE.format("int64")),
    ("ends the program", "sys.exit(0)", _FAILS.format("SystemExit: 0 at networks.py:7")),
    ("ends as a generator does", "raise GeneratorExit", _FAILS.format("GeneratorExit: no message at networks.py:7")),
    ("raises what is no Exception", "raise BaseException('odd')", _FAILS.format("BaseException: odd at networks.py:7")),
    ("raises an error that cannot be printed at one row", "if len(x) == 1: raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})\nreturn super().forward(x)", "The network does not run on 1 row (Odd: no message at networks.py:7): " + _NUMBER),
    ("raises an error that cannot be printed", "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", _FAILS.format("Odd: no message at networks.py:7")),
    ("divides a weight by its norm", _OWN.format(f"{_W} / {_W}.norm()"), _NORM),
    ("divides a weight by the norms of its rows", _OWN.format(f"F.normalize({_W}, dim=1)"), _NORM),
    ("divides a weight by the norms of its columns", _OWN.format(f"F.normalize({_W}, dim=0)"), _NORM),
    ("divides a weight by its largest value", _OWN.format(f"{_W} / {_W}.abs().max()"), _NORM),
    ("standardises a weight", _OWN.format(f"({_W} - {_W}.mean()) / {_W}.std()"), _NORM),
    ("divides by the norm of a weight afterwards", f"return self[2](self[1](F.linear(x, {_W}) / {_W}.norm(dim=1)))", _NORM),
]  # fmt: skip
LATE: list[tuple[str, str, str]] = [
    ("ends the program in training", "not self.training or sys.exit(0)\nreturn super().forward(x)", _LATER.format("SystemExit: 0 at networks.py:7")),
    ("raises in training", "if self.training: raise ValueError('no\\nluck')\nreturn super().forward(x)", _LATER.format("ValueError: no at networks.py:7")),
    ("cannot read a file in training", "if self.training: open('absent')\nreturn super().forward(x)", _LATER.format("FileNotFoundError: ... at networks.py:7")),
    ("ends as an iterator does in training", "if self.training: raise StopIteration\nreturn super().forward(x)", _LATER.format("StopIteration: no message at networks.py:7")),
    ("adds a tensor in training", "if self.training: self.register_buffer('late', torch.zeros(3))\nreturn super().forward(x)", "The network's forward adds, removes or reshapes 'late' in training; make every tensor in __init__, with its shape."),
    ("ends the program in the backward pass", _Y + "if y.requires_grad and self.training: y.register_hook(lambda g: sys.exit(0))\nreturn y", _LATER.format("SystemExit: 0 at networks.py:8")),
]  # fmt: skip
_ENDS = "The network, or other code that the recipe names, failed ({} at networks.py:6)."
MODES: list[tuple[str, str, str]] = [
    ("meets a broken pipe", "raise BrokenPipeError(32, 'Broken pipe')", "BrokenPipeError: [Errno 32] Broken pipe"),
    ("ends as a command does", "import click; raise click.exceptions.Exit(0)", "Exit: 0"),
]  # fmt: skip
_SPLIT = "recipe.yaml:5: data.loader: split 'train'"
LOADERS: list[tuple[str, str, str]] = [
    ("ends the program", "sys.exit(0)\nyield", f"{_SPLIT} failed (SystemExit: 0 at loading.py:8)."),
    ("ends the program after its rows", "yield x, y\nsys.exit()", f"{_SPLIT} failed (SystemExit: no message at loading.py:9)."),
    ("ends as a generator does", "raise GeneratorExit\nyield", f"{_SPLIT} failed (GeneratorExit: no message at loading.py:8)."),
    ("raises what is no Exception", "raise BaseException\nyield", f"{_SPLIT} failed (BaseException: no message at loading.py:8)."),
    ("raises several errors", "raise ExceptionGroup('all', [ValueError('one')])\nyield", f"{_SPLIT} failed (ExceptionGroup: all (1 sub-exception) at loading.py:8)."),
    ("has batches without rows alone", "yield x[:0], y[:0]", f"{_SPLIT}: 0 rows; at least 2 are needed."),
]  # fmt: skip


def _forward(body: str) -> Make:
    return lambda folder: (folder / "networks.py").write_text(
        _NETWORK.format(textwrap.indent(body, " " * 8)).replace("\n" + " " * 8 + "\n", "\n")
    )


def _mode(body: str) -> Make:
    own = f"    def train(this, mode=True):\n        {body}\n    def forward"
    text = _NETWORK.replace("    calls = 0\n    def forward", own).format("        return super().forward(x)")
    return lambda folder: (folder / "networks.py").write_text(text)


def _loader(body: str) -> Make:
    def make(folder: Path) -> None:
        recipe("file: data.csv\n  target: y", "loader: loading.py:Rows")(folder)
        (folder / "loading.py").write_text(_LOADER.format(textwrap.indent(body, " " * 8)))

    return make


def _cases() -> Iterator[Bad]:
    for name, body, message in FORWARDS:
        yield Bad(f"forward that {name}", INSPECT, 3, message, _forward(body))
    for name, body, error in MODES:
        yield Bad(f"change of mode that {name}", INSPECT, 3, _ENDS.format(error), _mode(body))
    for name, body, message in LOADERS:
        yield Bad(f"loader that {name}", INSPECT, 4, message, _loader(body))


ODD_CODE = list(_cases())
LATE_CODE = [Bad(f"forward that {name}", RUN, 3, message, _forward(body)) for name, body, message in LATE]
"""Forwards that fail once work is done, which is kept."""
