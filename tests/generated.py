"""Random small networks composed of parts, each decided by a list of small integers.

Every choice is asked of ``choose(n)``, which answers 0..n-1; zero is always the plainest choice, so that
hypothesis shrinks a failure to a plain network, and the list of answers builds the same network again:
``rebuild(choices)``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.architectures import Inputs, Net, SeparateAttention, TimmAttention, lively, weight

Choose = Callable[[int], int]
Shape = tuple[str, tuple[int, ...]]
"""Kind and sizes without the batch: vector (C,), tokens (T, C), series (C, T), image (C, H, W)."""
Part = tuple[nn.Module, Shape]


@dataclass(frozen=True)
class Generated:
    """A random network and its inputs, and the choices that make it."""

    network: nn.Module
    inputs: Callable[[torch.Generator, int], Inputs]
    axes: tuple[int | None, ...]
    names: tuple[str, ...]
    choices: tuple[int, ...]


@dataclass
class Tally:
    """What the property test has seen, for the line at the end of the session."""

    cases: int = 0
    sets: int = 0
    refused: int = 0
    units_cut: int = 0
    difference: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        share = 100 * (self.sets - self.refused) / max(1, self.sets)
        return (
            f"glprune: {self.cases} random networks, {self.sets} unit sets ({share:.0f} % cuttable, "
            f"{self.refused} refused), {self.units_cut} units cut, largest difference {self.difference:.1e}"
        )


TALLY = Tally()


def width(choose: Choose) -> int:
    return 4 + choose(5)


def activation(choose: Choose) -> nn.Module:
    kinds = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.LeakyReLU, nn.PReLU)
    kind = kinds[choose(len(kinds))]
    return kind(inplace=True) if kind is nn.ReLU and choose(2) else kind()


# --------------------------------------------------------------------------- parts of any shape


def _act(choose: Choose, shape: Shape) -> Part:
    # a copy first, so that an in-place activation never writes into the caller's input
    return Net(lambda m, x: m.act(x * 1.0), act=activation(choose)), shape


def _scale(choose: Choose, shape: Shape) -> Part:
    kind, sizes = shape
    place = _feature(kind)
    form = [1] * len(sizes)
    form[place] = sizes[place]
    factor, shift = torch.rand(form) + 0.5, torch.randn(form)
    if choose(2):
        return Net(
            lambda m, x: x * m.factor + m.shift, factor=nn.Parameter(factor), shift=nn.Parameter(shift)
        ), shape
    return Net(lambda m, x: (x - m.shift) / m.factor, factor=factor, shift=shift), shape


def _feature(kind: str) -> int:
    return -1 if kind in ("vector", "tokens") else 0


# --------------------------------------------------------------------------- linear parts: vector and tokens


def _linear(choose: Choose, shape: Shape) -> Part:
    kind, sizes = shape
    after = width(choose)
    layers = [nn.Linear(sizes[-1], after, bias=choose(3) != 2)]
    if choose(2) == 0:
        layers.append(activation(choose))
    return nn.Sequential(*layers), (kind, (*sizes[:-1], after))


def _residual(choose: Choose, shape: Shape) -> Part:
    size, inner = shape[1][-1], width(choose)
    norm = nn.Identity() if choose(4) else nn.LayerNorm(size)
    body = nn.Sequential(norm, nn.Linear(size, inner), activation(choose), nn.Linear(inner, size))
    return Net(lambda m, x: x + m.body(x), body=body), shape


def _branches(choose: Choose, shape: Shape) -> Part:
    kind, sizes = shape
    a, b, raw = width(choose), width(choose), choose(2)
    act = activation(choose)
    layers = {"a": nn.Linear(sizes[-1], a), "b": nn.Linear(sizes[-1], b), "act": act}
    order = choose(2)

    def run(m: Net, x: Tensor) -> Tensor:
        parts = [m.act(m.a(x)), *([x] if raw else []), m.b(x).tanh()]
        return torch.cat(parts[::-1] if order else parts, dim=-1)

    return Net(run, **layers), (kind, (*sizes[:-1], a + b + raw * sizes[-1]))


def _gate(choose: Choose, shape: Shape) -> Part:
    kind, sizes = shape
    after = width(choose)
    way = choose(4)
    if way == 3:
        layer = nn.Linear(sizes[-1], 2 * after)
        return Net(lambda m, x: F.glu(m.both(x), -1), both=layer), (kind, (*sizes[:-1], after))
    layers = {"a": nn.Linear(sizes[-1], after), "b": nn.Linear(sizes[-1], after)}
    ways = (
        lambda m, x: torch.sigmoid(m.a(x)) * m.b(x),
        lambda m, x: torch.maximum(m.a(x), m.b(x)),
        lambda m, x: m.a(x).tanh() - m.b(x).relu(),
    )
    return Net(ways[way], **layers), (kind, (*sizes[:-1], after))


def _slices(choose: Choose, shape: Shape) -> Part:
    kind, sizes = shape
    size = sizes[-1]
    if size < 3:
        return _linear(choose, shape)
    at, after = 1 + choose(size - 2), width(choose)
    if choose(2):  # strided
        layers = {"a": nn.Linear((size + 1) // 2, after), "b": nn.Linear(size // 2, after)}
        return Net(lambda m, x: torch.tanh(m.a(x[..., ::2]) + m.b(x[..., 1::2])), **layers), (
            kind,
            (*sizes[:-1], after),
        )
    layers = {"a": nn.Linear(at, after), "b": nn.Linear(size - at, after)}

    def run(m: Net, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(m.a(x[..., :at])), m.b(x[..., at:]).tanh()], -1)

    return Net(run, **layers), (kind, (*sizes[:-1], 2 * after))


def _shared(choose: Choose, shape: Shape) -> Part:
    size = shape[1][-1]
    return Net(lambda m, x: torch.tanh(m.same(torch.tanh(m.same(x)))), same=nn.Linear(size, size)), shape


def _raw_weight(choose: Choose, shape: Shape) -> Part:
    kind, sizes = shape
    after = width(choose)
    ways = (
        lambda m, x: torch.relu(x @ m.W + m.b),
        lambda m, x: torch.relu(torch.einsum("...i,io->...o", x, m.W) + m.b),
    )
    return Net(ways[choose(2)], W=weight(sizes[-1], after), b=weight(after)), (kind, (*sizes[:-1], after))


def _layernorm(choose: Choose, shape: Shape) -> Part:
    size = shape[1][-1]
    ways = (nn.LayerNorm(size), nn.RMSNorm(size), nn.Softmax(dim=-1))
    return ways[choose(3)], shape


# --------------------------------------------------------------------------- vectors alone


def _batchnorm(choose: Choose, shape: Shape) -> Part:
    kind, sizes = shape
    affine = choose(3) < 2
    if kind == "image":
        return nn.BatchNorm2d(sizes[0], affine=affine), shape
    return nn.BatchNorm1d(sizes[-1] if kind == "vector" else sizes[0], affine=affine), shape


def _regroup(choose: Choose, shape: Shape) -> Part:
    size = shape[1][0]
    groups = next((g for g in (3, 2, 4) if size % g == 0), 0)
    if not groups:
        return _linear(choose, shape)
    each, after = size // groups, 2 + choose(3)
    layer = nn.Linear(each, after)
    return Net(lambda m, x: torch.relu(m.a(x.view(-1, groups, each))).flatten(1), a=layer), (
        "vector",
        (groups * after,),
    )


def _to_series(choose: Choose, shape: Shape) -> Part:
    channels, steps = 3 + choose(3), 3 + choose(3)
    layer = nn.Linear(shape[1][0], channels * steps)
    return Net(lambda m, x: m.a(x).relu().reshape(-1, channels, steps), a=layer), (
        "series",
        (channels, steps),
    )


def _to_tokens(choose: Choose, shape: Shape) -> Part:
    steps, channels = 2 + choose(3), 4
    layer = nn.Linear(shape[1][0], channels * steps)
    return Net(lambda m, x: m.a(x).view(-1, steps, channels), a=layer), ("tokens", (steps, channels))


# --------------------------------------------------------------------------- tokens


def _recurrent(choose: Choose, shape: Shape) -> Part:
    steps, size = shape[1]
    hidden = width(choose)
    cell = (nn.LSTM, nn.GRU, nn.RNN)[choose(3)]
    both = choose(4) == 3
    rnn = cell(size, hidden, batch_first=True, bidirectional=both, num_layers=1 + (choose(4) == 3))
    use = choose(3)
    after = hidden * (1 + both)
    if use == 0:
        return Net(lambda m, x: m.rnn(x)[0], rnn=rnn), ("tokens", (steps, after))
    if use == 1:
        return Net(lambda m, x: m.rnn(x)[0][:, -1], rnn=rnn), ("vector", (after,))

    def state(m: Net, x: Tensor) -> Tensor:
        final = m.rnn(x)[1]
        return (final[0] if isinstance(final, tuple) else final)[-1]

    return Net(state, rnn=rnn), ("vector", (hidden,))


def _attention(choose: Choose, shape: Shape) -> Part:
    steps, size = shape[1]
    dim = 4 * (1 + choose(2))
    layers: dict[str, Any] = {"entry": nn.Linear(size, dim)}
    way = choose(3)
    layers["attn"] = TimmAttention(dim, 2, way == 1) if way < 2 else SeparateAttention(dim, 2)
    return Net(lambda m, x: (h := m.entry(x)) + m.attn(h), **layers), ("tokens", (steps, dim))


def _transpose(choose: Choose, shape: Shape) -> Part:
    kind, (a, b) = shape
    return Net(lambda m, x: x.transpose(1, 2)), ("series" if kind == "tokens" else "tokens", (b, a))


def _token_pool(choose: Choose, shape: Shape) -> Part:
    _, (steps, size) = shape
    ways: tuple[Callable[..., Tensor], ...] = (
        lambda m, x: x.mean(1),
        lambda m, x: x[:, -1],
        lambda m, x: x.flatten(1),
        lambda m, x: x.transpose(1, 2).reshape(x.shape[0], -1),
        lambda m, x: (torch.softmax(m.score(x), 1) * x).sum(1),
    )
    way = choose(5)
    layers = {"score": nn.Linear(size, 1)} if way == 4 else {}
    return Net(ways[way], **layers), ("vector", (steps * size if way in (2, 3) else size,))


# --------------------------------------------------------------------------- convolutions: series and images


def _conv_of(shape: Shape) -> type[nn.Module]:
    return nn.Conv1d if shape[0] == "series" else nn.Conv2d


def _conv(choose: Choose, shape: Shape) -> Part:
    kind, (before, *rest) = shape
    after = width(choose)
    kernel = 1 + choose(3) if min(rest) > 2 else 1
    padding = choose(2) if kernel > 1 else 0
    layers = [_conv_of(shape)(before, after, kernel, padding=padding, bias=choose(3) != 2)]
    if choose(2) == 0:
        layers.append(activation(choose))
    return nn.Sequential(*layers), (kind, (after, *(n + 2 * padding - kernel + 1 for n in rest)))


def _conv_residual(choose: Choose, shape: Shape) -> Part:
    size, inner = shape[1][0], width(choose)
    conv = _conv_of(shape)
    body = nn.Sequential(conv(size, inner, 3, padding=1), activation(choose), conv(inner, size, 1))
    return Net(lambda m, x: torch.relu(x + m.body(x)), body=body), shape


def _conv_concat(choose: Choose, shape: Shape) -> Part:
    kind, (before, *rest) = shape
    grow, order = width(choose), choose(2)

    def run(m: Net, x: Tensor) -> Tensor:
        parts = [x, m.conv(x).relu()]
        return torch.cat(parts[::-1] if order else parts, 1)

    return Net(run, conv=_conv_of(shape)(before, grow, 3, padding=1)), (kind, (before + grow, *rest))


def _depthwise(choose: Choose, shape: Shape) -> Part:
    kind, (before, *rest) = shape
    times = 1 + (choose(4) == 3)
    layer = _conv_of(shape)(before, before * times, 3, padding=1, groups=before)
    return nn.Sequential(layer, activation(choose)), (kind, (before * times, *rest))


def _grouped(choose: Choose, shape: Shape) -> Part:
    kind, (before, *rest) = shape
    groups = next((g for g in (2, 3) if before % g == 0), 1)
    return _conv_of(shape)(before, 2 * groups, 1, groups=groups), (kind, (2 * groups, *rest))


def _channel_norm(choose: Choose, shape: Shape) -> Part:
    size = shape[1][0]
    groups = next((g for g in (2, 3) if size % g == 0), 1)
    if choose(2) == 0 and math.prod(shape[1][1:]) > 1:
        return (nn.InstanceNorm1d if shape[0] == "series" else nn.InstanceNorm2d)(size, affine=True), shape
    return nn.GroupNorm(groups, size), shape


def _squeeze(choose: Choose, shape: Shape) -> Part:
    size, inner = shape[1][0], 2 + choose(3)
    dims = tuple(range(2, 1 + len(shape[1])))

    def run(m: Net, x: Tensor) -> Tensor:
        s = torch.sigmoid(m.b(torch.relu(m.a(x.mean(dims)))))
        return x * s.reshape(*s.shape, *(1 for _ in dims))

    return Net(run, a=nn.Linear(size, inner), b=nn.Linear(inner, size)), shape


def _causal(choose: Choose, shape: Shape) -> Part:
    before, steps = shape[1]
    after, dilation = width(choose), 1 + choose(2)
    chop = 2 * dilation
    layer = nn.Conv1d(before, after, 3, padding=chop, dilation=dilation)
    return Net(lambda m, x: torch.relu(m.conv(x)[:, :, :-chop]), conv=layer), ("series", (after, steps))


def _max_pool(choose: Choose, shape: Shape) -> Part:
    kind, (size, *rest) = shape
    if min(rest) < 4:
        return nn.Identity(), shape
    kinds = (nn.MaxPool1d, nn.AvgPool1d) if kind == "series" else (nn.MaxPool2d, nn.AvgPool2d)
    return kinds[choose(2)](2), (kind, (size, *(n // 2 for n in rest)))


def _conv_pool(choose: Choose, shape: Shape) -> Part:
    size, *rest = shape[1]
    dims = tuple(range(2, 2 + len(rest)))
    ways = (lambda m, x: x.mean(dims), lambda m, x: x.flatten(1), lambda m, x: x.amax(dims))
    way = choose(3)
    return Net(ways[way]), ("vector", (size * math.prod(rest) if way == 1 else size,))


# --------------------------------------------------------------------------- whole networks

# the plain parts come first and the parts that mix units appear once, so most sets are cuttable
_ANY = (_act, _scale)
_LINEAR = (_linear, _linear, _residual, _branches, _gate, _slices, _shared, _raw_weight)
_CONV = (_conv, _conv, _batchnorm, _conv_residual, _conv_concat, _depthwise, _squeeze, _max_pool)
PARTS: dict[str, tuple[Callable[[Choose, Shape], Part], ...]] = {
    "vector": (*_LINEAR, *_ANY, _batchnorm, _batchnorm, _regroup, _to_series, _to_tokens, _layernorm),
    "tokens": (*_LINEAR, *_ANY, _recurrent, _recurrent, _attention, _transpose, _token_pool, _layernorm),
    "series": (*_CONV, *_ANY, _causal, _transpose, _conv_pool, _grouped, _channel_norm),
    "image": (*_CONV, *_ANY, _conv_pool, _grouped, _channel_norm),
}
_LARGEST = 40


def trunk(choose: Choose, shape: Shape, longest: int) -> Part:
    """A chain of parts; it never grows wider than a proof on two cores likes."""
    layers: list[nn.Module] = []
    for _ in range(choose(longest + 1)):
        parts = PARTS[shape[0]]
        layer, after = parts[choose(len(parts))](choose, shape)
        if math.prod(after[1]) > 10 * _LARGEST or after[1][_feature(after[0])] > _LARGEST:
            break
        layers.append(layer)
        shape = after
    return nn.Sequential(*layers), shape


def to_vector(choose: Choose, shape: Shape) -> Part:
    if shape[0] == "vector":
        return nn.Identity(), shape
    return (_token_pool if shape[0] == "tokens" else _conv_pool)(choose, shape)


@dataclass(frozen=True)
class _Source:
    """One input: its values, its feature axis, and the layers that make numbers of it."""

    values: Callable[[torch.Generator, int], Tensor]
    axis: int | None
    entry: nn.Module
    shape: Shape


def _numbers(shape: Shape) -> _Source:
    kind, sizes = shape
    axis = -1 if kind in ("vector", "tokens") else 1
    return _Source(lambda g, b: torch.randn((b, *sizes), generator=g), axis, nn.Identity(), shape)


def _codes(choose: Choose) -> _Source:
    sizes = [3 + choose(3) for _ in range(2 + choose(2))]
    each = 2 + choose(2)

    def values(generator: torch.Generator, batch: int) -> Tensor:
        return torch.stack([torch.randint(n, (batch,), generator=generator) for n in sizes], 1)

    if choose(2):
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        table = Net(
            lambda m, c: m.table(c + m.offsets).flatten(1),
            table=nn.Embedding(sum(sizes), each),
            offsets=offsets,
        )
        return _Source(values, 1, table, ("vector", (len(sizes) * each,)))
    tables = nn.ModuleList(nn.Embedding(n, each + i % 2) for i, n in enumerate(sizes))
    entry = Net(lambda m, c: torch.cat([t(c[:, i]) for i, t in enumerate(m.tables)], 1), tables=tables)
    return _Source(values, 1, entry, ("vector", (sum(each + i % 2 for i in range(len(sizes))),)))


def _ids(choose: Choose) -> _Source:
    size = width(choose)
    return _Source(
        lambda g, b: torch.randint(9, (b, 4), generator=g), None, nn.Embedding(9, size), ("tokens", (4, size))
    )


def source(choose: Choose) -> _Source:
    kinds: tuple[Callable[[], _Source], ...] = (
        lambda: _numbers(("vector", (3 + choose(4),))),
        lambda: _numbers(("series", (2 + choose(3), 4 + choose(4)))),
        lambda: _numbers(("tokens", (2 + choose(3), 3 + choose(3)))),
        lambda: _numbers(("image", (2 + choose(2), 4 + choose(3), 5))),
        lambda: _codes(choose),
        lambda: _ids(choose),
    )
    return kinds[choose(len(kinds))]()


class Composed(nn.Module):
    """Trunks of the inputs, joined, a trunk of the whole, and one or more heads."""

    def __init__(
        self, trunks: Sequence[nn.Module], joint: nn.Module, heads: Sequence[nn.Module], form: int
    ) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        self.joint = joint
        self.heads = nn.ModuleList(heads)
        self.form = form

    def forward(self, *inputs: Tensor) -> Any:
        parts = [trunk(x) for trunk, x in zip(self.trunks, inputs, strict=True)]
        hidden = self.joint(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
        answers = [head(hidden) for head in self.heads]
        if self.form == 2:
            return {f"head{i}": answer for i, answer in enumerate(answers)}
        return answers[0] if self.form == 0 else tuple(answers)


def generate(choose: Choose) -> Generated:
    """Compose a network; the weights are drawn from a seed that is chosen too."""
    taken: list[int] = []

    def noted(count: int) -> int:
        taken.append(choose(count))
        return taken[-1]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(noted(1000))
        sources = [source(noted) for _ in range(1 + (0, 0, 0, 1, 1, 2)[noted(6)])]
        trunks, total = [], 0
        for one in sources:
            body, shape = trunk(noted, one.shape, 4)
            pool, (_, (size,)) = to_vector(noted, shape)
            trunks.append(nn.Sequential(one.entry, body, pool))
            total += size
        body, shape = trunk(noted, ("vector", (total,)), 3)
        pool, (_, (size,)) = to_vector(noted, shape)
        form = (0, 0, 0, 1, 2)[noted(5)]
        heads = [
            nn.Linear(size, 2)
            if noted(2) == 0
            else nn.Sequential(nn.Linear(size, w := width(noted)), activation(noted), nn.Linear(w, 1))
            for _ in range(1 if form == 0 else 2)
        ]
        network = lively(Composed(trunks, nn.Sequential(body, pool), heads, form))
    return Generated(
        network,
        lambda generator, batch: tuple(s.values(generator, batch) for s in sources),
        tuple(s.axis for s in sources),
        tuple(f"input{i}" for i in range(len(sources))),
        tuple(taken),
    )


def rebuild(choices: Sequence[int]) -> Generated:
    """The network of a list of choices, as a failure prints it."""
    answers = iter(choices)
    return generate(lambda count: next(answers))


@st.composite
def networks(draw: st.DrawFn) -> Generated:
    """Random networks that hypothesis can shrink."""
    return generate(lambda count: draw(st.integers(0, count - 1)))
