"""A zoo of small networks, with what must be cuttable in each and what must be refused.

``cut`` and ``refused`` are decided by exactness alone: with the weights leaving a unit at zero, its
removal changes nothing unless something takes statistics over the units (a norm, a softmax, a mean).
Where the names or the grain of the units are the planner's choice both are left empty; that no cut is
ever wrong is checked for every entry.

Patterns are those of fnmatch, and ``a|b`` names one set by any of its layers. A key of ``refused`` that
begins with ``?`` may be cut or refused; where it is refused the reason must hold the word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.integration_packages import need

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Architecture:
    """One network of the zoo.

    Attributes:
        build: Makes the network in evaluation mode, from torch's global seed.
        inputs: Makes inputs from a generator and a batch size.
        axes: The feature axis of each input; None where it passes whole.
        names: The name of each input.
        cut: Patterns of unit sets that must be cuttable.
        refused: Patterns of unit sets that must be refused, and a word of the reason.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator, int], Inputs]
    axes: tuple[int | None, ...]
    names: tuple[str, ...]
    cut: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def lively(network: nn.Module) -> nn.Module:
    """Give every weight, bias and statistic a value that shows when it is misplaced."""
    for module in network.modules():
        for name, tensor in module.named_buffers(recurse=False):
            if name == "running_mean":
                nn.init.normal_(tensor)
            if name == "running_var":
                nn.init.uniform_(tensor, 0.5, 1.5)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(max(1, parameter[0].numel())))
        else:
            nn.init.normal_(parameter, std=0.7)
    return network.eval()


def floats(*shapes: tuple[int, ...]) -> Callable[[torch.Generator, int], Inputs]:
    """Standard normal inputs of the given shapes without their batch."""
    return lambda generator, batch: tuple(torch.randn((batch, *s), generator=generator) for s in shapes)


ARCHITECTURES: dict[str, Architecture] = {}


def entry(
    name: str,
    build: Callable[[], nn.Module],
    *shapes: tuple[int, ...],
    axes: Sequence[int | None] = (-1,),
    names: Sequence[str] = ("x",),
    inputs: Callable[[torch.Generator, int], Inputs] | None = None,
    cut: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> None:
    """Add a network to the table; two rows of one name are a mistake."""
    assert name not in ARCHITECTURES, name
    ARCHITECTURES[name] = Architecture(
        lambda: lively(build()),
        inputs or floats(*shapes),
        tuple(axes),
        tuple(names),
        tuple(cut),
        refused or {},
    )


class Net(nn.Module):
    """A network whose layers are keywords and whose forward is a function of them and the inputs."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, nn.Module | nn.Parameter):
                setattr(self, name, layer)
            else:
                self.register_buffer(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


# --------------------------------------------------------------------------- perceptrons

for _act in (
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.PReLU,
    nn.Softplus,
    nn.ELU,
    nn.Hardswish,
    nn.Mish,
):
    entry(
        f"mlp-{_act.__name__.lower()}",
        lambda act=_act: nn.Sequential(nn.Linear(6, 7), act(), nn.Linear(7, 5), act(), nn.Linear(5, 2)),
        (6,),
        cut=("x", "0", "2"),
    )
entry(
    "mlp-prelu-per-unit",
    lambda: nn.Sequential(nn.Linear(6, 7), nn.PReLU(7), nn.Linear(7, 5), nn.PReLU(5), nn.Linear(5, 2)),
    (6,),
    cut=("x", "0", "2"),
)
entry(
    "mlp-batchnorm",
    lambda: nn.Sequential(
        *(nn.BatchNorm1d(6), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Sigmoid()),
        *(nn.Linear(7, 5), nn.BatchNorm1d(5, affine=False), nn.Sigmoid(), nn.Linear(5, 2)),
    ),
    (6,),
    cut=("x", "1", "4"),
)
entry(
    "mlp-batchnorm-after-activation",
    lambda: nn.Sequential(
        nn.Linear(6, 7), nn.Sigmoid(), nn.BatchNorm1d(7), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 1)
    ),
    (6,),
    cut=("x", "0", "3"),
)
entry(
    "mlp-dropout-inplace",
    lambda: nn.Sequential(
        *(nn.Dropout(0.2), nn.Linear(6, 7, bias=False), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(7, 5), nn.AlphaDropout(0.5), nn.ReLU(inplace=True), nn.Linear(5, 2)),
    ),
    (6,),
    cut=("x", "1", "4"),
)
entry("mlp-linear-only", lambda: nn.Sequential(nn.Linear(6, 2)), (6,), cut=("x",))
entry("mlp-one-output-squeezed", lambda: Net(
    lambda m, x: m.b(torch.relu(m.a(x))).squeeze(-1), a=nn.Linear(6, 5), b=nn.Linear(5, 1)
), (6,), cut=("x", "a"))  # fmt: skip


def _wide_and_deep(m: Net, x: Tensor) -> Tensor:
    return m.out(torch.relu(m.deep(torch.cat([x, torch.relu(m.branch(x))], dim=1)))) + m.wide(x)


entry(
    "wide-and-deep",
    lambda: Net(
        _wide_and_deep,
        branch=nn.Linear(6, 4),
        deep=nn.Linear(10, 5),
        out=nn.Linear(5, 2),
        wide=nn.Linear(6, 2),
    ),
    (6,),
    cut=("x", "branch", "deep"),
)


class DenseMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 4), nn.Linear(9, 3), nn.Linear(12, 4)])
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(torch.tanh(layer(torch.cat(seen, dim=1))))
        return self.out(self.norm(torch.cat(seen, dim=1)))


entry("densenet-mlp", DenseMLP, (5,), cut=("x", "layers.0", "layers.1", "layers.2"))
entry(
    "concat-branch-first",
    lambda: Net(
        lambda m, x: m.out(torch.cat((torch.sigmoid(m.a(x)), x, m.b(x).tanh()), -1)),
        a=nn.Linear(5, 3), b=nn.Linear(5, 4), out=nn.Linear(12, 2),
    ),
    (5,),
    cut=("x", "a", "b"),
)  # fmt: skip


class ResidualMLP(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module], pre: bool) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 8)
        self.inner = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(5, 8) for _ in range(2))
        self.norms = nn.ModuleList(norm(8) for _ in range(2))
        self.out = nn.Linear(8, 2)
        self.pre = pre

    def forward(self, x: Tensor) -> Tensor:
        stream = self.entry(x)
        for inner, back, norm in zip(self.inner, self.back, self.norms, strict=True):
            if self.pre:
                stream = stream + back(F.gelu(inner(norm(stream))))
            else:
                stream = norm(stream + back(F.gelu(inner(stream))))
        return self.out(stream)


class HandRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


for _name, _norm, _word in (
    ("layernorm", nn.LayerNorm, "LayerNorm"),
    ("rmsnorm", nn.RMSNorm, "RMSNorm"),
    ("hand-rmsnorm", HandRMSNorm, ""),
):
    for _pre in (True, False):
        entry(
            f"residual-{_name}-{'pre' if _pre else 'post'}",
            lambda norm=_norm, pre=_pre: ResidualMLP(norm, pre),
            (6,),
            cut=("x", "inner.0", "inner.1"),
            refused={"entry|back.0|back.1": _word},
        )
entry(
    "residual-batchnorm-pre",
    lambda: ResidualMLP(nn.BatchNorm1d, True),
    (6,),
    cut=("x", "inner.0", "inner.1", "entry|back.0|back.1"),
)
entry(
    "functional-layer-norm",
    lambda: Net(
        lambda m, x: m.b(F.layer_norm(torch.relu(m.a(x)), (6,), m.gain, m.shift)),
        a=nn.Linear(5, 6), b=nn.Linear(6, 2), gain=weight(6), shift=weight(6),
    ),
    (5,),
    cut=("x",),
    refused={"a": ""},
)  # fmt: skip
entry(
    "layernorm-on-the-input",
    lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
    (6,),
    cut=("1",),
    refused={"x": "LayerNorm"},
)
entry(
    "raw-residual-to-output",
    lambda: Net(lambda m, x: x + m.b(torch.relu(m.a(x))), a=nn.Linear(6, 5), b=nn.Linear(5, 6)),
    (6,),
    cut=("a",),
    refused={"x": "output"},
)
entry(
    "softmax-over-hidden",
    lambda: Net(lambda m, x: m.b(torch.softmax(m.a(x), -1)), a=nn.Linear(6, 5), b=nn.Linear(5, 2)),
    (6,),
    cut=("x",),
    refused={"a": "softmax"},
)
entry(
    "logsoftmax-module-output",
    lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.LogSoftmax(dim=-1)),
    (6,),
    cut=("x", "0"),
)
entry(
    "mean-over-hidden",
    lambda: Net(
        lambda m, x: m.b(torch.relu(m.a(x))) + torch.relu(m.a(x)).mean(1, keepdim=True),
        a=nn.Linear(6, 5), b=nn.Linear(5, 2),
    ),
    (6,),
    cut=("x",),
    refused={"a": "mean"},
)  # fmt: skip
entry(
    "max-over-hidden",
    lambda: Net(
        lambda m, x: m.b(h := torch.tanh(m.a(x))) + h.amax(1, keepdim=True),
        a=nn.Linear(6, 5),
        b=nn.Linear(5, 2),
    ),
    (6,),
    cut=("x",),
    refused={"a": ""},
)
entry(
    "normalize-over-hidden",
    lambda: Net(lambda m, x: m.b(F.normalize(m.a(x), dim=-1)), a=nn.Linear(6, 5), b=nn.Linear(5, 2)),
    (6,),
    cut=("x",),
    refused={"a": ""},
)
entry(
    "cumsum-over-hidden",
    lambda: Net(lambda m, x: m.b(m.a(x).cumsum(1)), a=nn.Linear(6, 5), b=nn.Linear(5, 2)),
    (6,),
    cut=("x",),
    refused={"a": ""},
)
entry(
    "flip-and-roll-hidden",
    lambda: Net(
        lambda m, x: m.c(torch.roll(torch.tanh(m.b(torch.flip(torch.tanh(m.a(x)), [1]))), 2, 1)),
        a=nn.Linear(6, 5), b=nn.Linear(5, 7), c=nn.Linear(7, 2),
    ),
    (6,),
    cut=("x",),
)  # fmt: skip
entry(
    "standardise-in-forward",
    lambda: Net(
        lambda m, x: m.b(torch.relu(m.a((x - m.mean) / m.std))),
        a=nn.Linear(6, 5), b=nn.Linear(5, 2), mean=torch.linspace(-1, 2, 6), std=torch.linspace(0.5, 2, 6),
    ),
    (6,),
    cut=("x", "a"),
)  # fmt: skip
entry(
    "scale-buffer-2d-clamped",
    lambda: Net(
        lambda m, x: m.b(torch.relu(m.a(((x.clamp(-2, 2) - m.low) / (m.high - m.low)).nan_to_num(0.0)))),
        a=nn.Linear(6, 5), b=nn.Linear(5, 2), low=torch.full((1, 6), -3.0), high=torch.linspace(1, 2, 6)[None],
    ),
    (6,),
    cut=("x", "a"),
)  # fmt: skip

# --------------------------------------------------------------------------- sliced inputs


def _towers(m: Net, x: Tensor) -> Tensor:
    return m.out(torch.cat([torch.relu(m.a(x[:, :3])), torch.relu(m.b(x[:, 3:]))], 1))


entry(
    "sliced-towers",
    lambda: Net(_towers, a=nn.Linear(3, 4), b=nn.Linear(4, 3), out=nn.Linear(7, 2)),
    (7,),
    cut=("x", "a", "b"),
)
entry(
    "sliced-overlap",
    lambda: Net(
        lambda m, x: m.out(torch.tanh(m.a(x[:, :5]) + m.b(x[:, 2:]))),
        a=nn.Linear(5, 4),
        b=nn.Linear(5, 4),
        out=nn.Linear(4, 2),
    ),
    (7,),
    cut=(
        "x",
        "a|b",
    ),
)
entry(
    "sliced-strided",
    lambda: Net(
        lambda m, x: m.out(torch.tanh(m.a(x[:, ::2]) * m.b(x[:, 1::2]))),
        a=nn.Linear(4, 4),
        b=nn.Linear(3, 4),
        out=nn.Linear(4, 2),
    ),
    (7,),
    cut=(
        "x",
        "a|b",
    ),
)
entry(
    "sliced-split",
    lambda: Net(
        lambda m, x: m.out(torch.cat([torch.tanh(m.a(p)) for p in x.split([3, 3], 1)], 1)),
        a=nn.Linear(3, 4),
        out=nn.Linear(8, 2),
    ),
    (6,),
)
entry(
    "sliced-index-select",
    lambda: Net(
        lambda m, x: m.out(torch.relu(m.a(x.index_select(1, m.order)))),
        a=nn.Linear(5, 4), out=nn.Linear(4, 2), order=torch.tensor([4, 0, 2, 6, 5]),
    ),
    (7,),
    cut=("x", "a",),
)  # fmt: skip
entry(
    "sliced-fancy-index",
    lambda: Net(
        lambda m, x: m.out(torch.relu(m.a(x[:, [3, 1, 0]]) + m.b(x[:, m.order]))),
        a=nn.Linear(3, 4), b=nn.Linear(4, 4), out=nn.Linear(4, 2), order=torch.tensor([4, 2, 5, 1]),
    ),
    (6,),
    cut=("x", "a|b",),
)  # fmt: skip
entry(
    "sliced-single-columns",
    lambda: Net(
        lambda m, x: m.out(torch.relu(m.a(torch.stack([x[:, 4], x[:, 0] * 2, x[:, 2].exp()], 1)))),
        a=nn.Linear(3, 4), out=nn.Linear(4, 2),
    ),
    (5,),
    cut=("x", "a",),
)  # fmt: skip
entry(
    "sliced-hidden",
    lambda: Net(
        lambda m, x: m.b((h := torch.tanh(m.a(x)))[:, :3]) + m.c(h[:, 3:]),
        a=nn.Linear(5, 8),
        b=nn.Linear(3, 2),
        c=nn.Linear(5, 2),
    ),
    (5,),
    cut=("x",),
)
entry(
    "chunk-hidden",
    lambda: Net(
        lambda m, x: m.c((p := m.a(x).chunk(2, -1))[0].tanh()) + m.c(p[1].relu()),
        a=nn.Linear(5, 8),
        c=nn.Linear(4, 2),
    ),
    (5,),
    cut=("x",),
)
entry("hidden-column-to-output", lambda: Net(
    lambda m, x: torch.cat([m.b(h := torch.tanh(m.a(x))), h[:, :1]], 1), a=nn.Linear(5, 6), b=nn.Linear(6, 2)
), (5,), cut=("x",))  # fmt: skip
entry("input-column-to-output", lambda: Net(
    lambda m, x: m.b(torch.tanh(m.a(x))) + x[:, 2:3], a=nn.Linear(5, 6), b=nn.Linear(6, 2)
), (5,), cut=("a",))  # fmt: skip

# --------------------------------------------------------------------------- products, gates, experts

entry(
    "product-of-branches",
    lambda: Net(
        lambda m, x: m.c(torch.tanh(m.a(x)) * m.b(x)), a=nn.Linear(6, 5), b=nn.Linear(6, 5), c=nn.Linear(5, 2)
    ),
    (6,),
    cut=("x", "a|b"),
)
entry(
    "gating",
    lambda: Net(
        lambda m, x: m.c(torch.sigmoid(m.a(x)) * m.b(x)) + m.d(m.b(x)),
        a=nn.Linear(6, 5), b=nn.Linear(6, 5), c=nn.Linear(5, 2), d=nn.Linear(5, 2),
    ),
    (6,),
    cut=("x", "a|b"),
)  # fmt: skip
entry(
    "highway-gate-on-input",
    lambda: Net(
        lambda m, x: m.c((t := torch.sigmoid(m.a(x))) * m.b(x).relu() + (1 - t) * x),
        a=nn.Linear(6, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2),
    ),
    (6,),
)  # fmt: skip
entry(
    "feature-attention-sigmoid",
    lambda: Net(lambda m, x: m.b(x * torch.sigmoid(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 2)),
    (6,),
)
entry(
    "feature-attention-softmax",
    lambda: Net(lambda m, x: m.b(x * torch.softmax(m.a(x), -1)), a=nn.Linear(6, 6), b=nn.Linear(6, 2)),
    (6,),
)
entry(
    "gated-concatenation-with-input",  # one set holds columns of the input and hidden units too
    lambda: Net(
        lambda m, x: m.out((h := torch.cat([x, torch.relu(m.a(x))], 1)) * torch.sigmoid(m.b(h))),
        a=nn.Linear(3, 5), b=nn.Linear(8, 8), out=nn.Linear(8, 2),
    ),
    (3,),
)  # fmt: skip
entry(
    "glu",
    lambda: Net(lambda m, x: m.b(F.glu(m.a(x), -1)), a=nn.Linear(6, 8), b=nn.Linear(4, 2)),
    (6,),
    cut=("x", "a"),
)
entry("glu-module", lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 2)), (6,), cut=("x", "0"))
entry(
    "swiglu",
    lambda: Net(
        lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)),
        gate=nn.Linear(6, 8),
        up=nn.Linear(6, 8),
        down=nn.Linear(8, 2),
    ),
    (6,),
    cut=("x", "gate|up"),
)


def _fused_swiglu(m: Net, x: Tensor) -> Tensor:
    gate, up = m.both(x).chunk(2, dim=-1)
    return m.down(F.silu(gate) * up)


entry(
    "swiglu-fused",
    lambda: Net(_fused_swiglu, both=nn.Linear(6, 10), down=nn.Linear(5, 2)),
    (6,),
    cut=("x", "both"),
)
entry(
    "maxout",
    lambda: Net(
        lambda m, x: m.c(torch.maximum(m.a(x), m.b(x))),
        a=nn.Linear(6, 5),
        b=nn.Linear(6, 5),
        c=nn.Linear(5, 2),
    ),
    (6,),
    cut=("x", "a|b"),
)
entry(
    "maxout-reshaped",
    lambda: Net(lambda m, x: m.c(m.a(x).reshape(-1, 5, 2).amax(-1)), a=nn.Linear(6, 10), c=nn.Linear(5, 2)),
    (6,),
    cut=("x",),
)


class Experts(nn.Module):
    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(3)
        )
        self.stacked = stacked

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.gate(x), -1)
        if self.stacked:
            return (torch.stack([e(x) for e in self.experts], 1) * share[:, :, None]).sum(1)
        return sum(share[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))


for _stacked in (False, True):
    entry(
        f"mixture-of-experts-{'stacked' if _stacked else 'summed'}",
        lambda stacked=_stacked: Experts(stacked),
        (6,),
        cut=("x", "experts.0.0", "experts.1.0", "experts.2.0"),
    )
entry(
    "bilinear",
    lambda: Net(lambda m, x: m.c(m.pair(m.a(x).tanh(), m.b(x).tanh())), a=nn.Linear(6, 4), b=nn.Linear(6, 3),
                pair=nn.Bilinear(4, 3, 5), c=nn.Linear(5, 2)),
    (6,),
    cut=("x",),
)  # fmt: skip
entry(
    "in-place-ops",
    lambda: Net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x), inplace=True)), inplace=True).mul_(2).add_(0.5)),
        a=nn.Linear(6, 5), b=nn.Linear(5, 4), c=nn.Linear(4, 2),
    ),
    (6,),
    cut=("x", "a", "b"),
)  # fmt: skip


def _in_place_residual(m: Net, x: Tensor) -> Tensor:
    stream = m.a(x)
    stream += F.relu(m.b(stream))
    stream *= torch.sigmoid(m.c(x))
    return m.d(stream)


entry(
    "in-place-residual",
    lambda: Net(
        _in_place_residual, a=nn.Linear(6, 5), b=nn.Linear(5, 5), c=nn.Linear(6, 5), d=nn.Linear(5, 2)
    ),
    (6,),
    cut=("x", "a|b|c"),
)

# --------------------------------------------------------------------------- raw and shared weights

entry(
    "einsum",
    lambda: Net(
        lambda m, x: m.out(torch.relu(torch.einsum("bi,io->bo", x, m.W) + m.b)),
        W=weight(6, 5),
        b=weight(5),
        out=nn.Linear(5, 2),
    ),
    (6,),
    cut=("x",),
)
entry(
    "matmul-parameter",
    lambda: Net(lambda m, x: torch.relu(x @ m.W + m.b) @ m.V, W=weight(6, 5), b=weight(5), V=weight(5, 2)),
    (6,),
    cut=("x",),
)
entry(
    "functional-linear",
    lambda: Net(
        lambda m, x: F.linear(torch.tanh(F.linear(x, m.W, m.b)), m.V),
        W=weight(5, 6),
        b=weight(5),
        V=weight(2, 5),
    ),
    (6,),
    cut=("x",),
)
entry(
    "scaled-by-parameter",
    lambda: Net(lambda m, x: m.b(m.scale * torch.tanh(m.a(x * m.first))), a=nn.Linear(6, 5), b=nn.Linear(5, 2),
                scale=weight(5), first=weight(6)),
    (6,),
    cut=("x", "a"),
)  # fmt: skip
entry(
    "per-feature-network",
    lambda: Net(
        lambda m, x: torch.einsum("bfh,fho->bo", torch.relu(x[:, :, None] * m.W + m.b), m.V),
        W=weight(5, 4), b=weight(5, 4), V=weight(5, 4, 2),
    ),
    (5,),
)  # fmt: skip
entry(
    "weight-norm",
    lambda: nn.Sequential(
        *(parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU()),
        *(parametrizations.weight_norm(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 2)),
    ),
    (6,),
    cut=("x",),
)
entry(
    "spectral-norm",
    lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 2)),
    (6,),
)
entry(
    "shared-linear-twice",
    lambda: Net(
        lambda m, x: m.out(torch.tanh(m.same(torch.tanh(m.same(torch.tanh(m.a(x))))))),
        a=nn.Linear(6, 5), same=nn.Linear(5, 5), out=nn.Linear(5, 2),
    ),
    (6,),
    cut=("x",),
)  # fmt: skip
entry(
    "siamese",
    lambda: Net(
        lambda m, x, y: m.out((m.tower(x) - m.tower(y)).abs()),
        tower=nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), out=nn.Linear(4, 2),
    ),
    (5,),
    (5,),
    axes=(-1, -1),
    names=("x", "y"),
    cut=("tower.0", "tower.2"),
)  # fmt: skip
entry(
    "tied-autoencoder",
    lambda: Net(lambda m, x: F.linear(torch.tanh(m.enc(x)), m.enc.weight.t()), enc=nn.Linear(6, 4)),
    (6,),
)
entry(
    "shared-batchnorm",
    lambda: Net(
        lambda m, x: m.out(m.norm(m.a(x)).relu() + m.norm(m.b(x)).tanh()),
        a=nn.Linear(6, 5), b=nn.Linear(6, 5), norm=nn.BatchNorm1d(5), out=nn.Linear(5, 2),
    ),
    (6,),
    cut=("x", "a|b"),
)  # fmt: skip

# --------------------------------------------------------------------------- shapes

entry(
    "reshape-to-channels",
    lambda: Net(
        lambda m, x: m.out(torch.relu(m.conv(torch.tanh(m.a(x)).view(-1, 3, 4))).flatten(1)),
        a=nn.Linear(6, 12), conv=nn.Conv1d(3, 5, 3), out=nn.Linear(10, 2),
    ),
    (6,),
    cut=("x", "conv"),
)  # fmt: skip
entry(
    "unflatten-module",
    lambda: nn.Sequential(
        nn.Linear(6, 12), nn.Unflatten(1, (4, 3)), nn.Linear(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)
    ),
    (6,),
    cut=("x", "2"),
)
entry(
    "permute-between-layers",
    lambda: Net(
        lambda m, x: m.out(m.conv(torch.relu(m.a(x)).permute(0, 2, 1)).relu().transpose(1, 2).mean(1)),
        a=nn.Linear(6, 5), conv=nn.Conv1d(5, 4, 2), out=nn.Linear(4, 2),
    ),
    (4, 6),
    cut=("x", "a", "conv"),
)  # fmt: skip
entry(
    "tokens-flattened",
    lambda: Net(lambda m, x: m.b(torch.relu(m.a(x)).flatten(1)), a=nn.Linear(4, 3), b=nn.Linear(15, 2)),
    (5, 4),
    cut=("x", "a"),
)
entry(
    "tokens-flattened-transposed",
    lambda: Net(
        lambda m, x: m.b(torch.relu(m.a(x)).transpose(1, 2).reshape(x.shape[0], -1)),
        a=nn.Linear(4, 3),
        b=nn.Linear(15, 2),
    ),
    (5, 4),
    cut=("x", "a"),
)
entry(
    "sequence-input-flattened-at-once",
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 2)),
    (5, 4),
    cut=("x", "1"),
)
entry(
    "hidden-regrouped",
    lambda: Net(lambda m, x: m.c(m.b(torch.tanh(m.a(x)).view(-1, 3, 4)).flatten(1)), a=nn.Linear(6, 12), b=nn.Linear(4, 4),
                c=nn.Linear(12, 2)),
    (6,),
    cut=("x", "b"),
)  # fmt: skip
entry(
    "mlp-mixer",
    lambda: Net(
        lambda m, x: m.out((h := m.a(x) + m.t2(m.t1(m.a(x).transpose(1, 2)).relu()).transpose(1, 2)).mean(1) + h.amax(1)),
        a=nn.Linear(6, 5), t1=nn.Linear(4, 7), t2=nn.Linear(7, 4), out=nn.Linear(5, 2),
    ),
    (4, 6),
    cut=("x", "t1", "a"),
)  # fmt: skip
entry(
    "channel-shuffle",
    lambda: Net(
        lambda m, x: m.out(m.b(m.a(x).view(-1, 2, 3, 5).transpose(1, 2).reshape(-1, 6, 5).relu()).mean(2)),
        a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 4, 1), out=nn.Linear(4, 2),
    ),
    (3, 5),
    axes=(1,),
    cut=("x", "b"),
)  # fmt: skip
entry(
    "pixel-shuffle",
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.PixelShuffle(2),
        nn.ReLU(),
        nn.Conv2d(2, 3, 3),
        nn.Flatten(),
        nn.Linear(108, 2),
    ),
    (3, 4, 4),
    axes=(1,),
    cut=("x", "3"),
)

# --------------------------------------------------------------------------- convolution over time


class TCNBlock(nn.Module):
    def __init__(self, before: int, after: int, dilation: int, normed: bool) -> None:
        super().__init__()
        self.chop = 2 * dilation
        wrap = parametrizations.weight_norm if normed else lambda layer: layer
        self.conv1 = wrap(nn.Conv1d(before, after, 3, padding=self.chop, dilation=dilation))
        self.conv2 = wrap(nn.Conv1d(after, after, 3, padding=self.chop, dilation=dilation))
        self.down = nn.Conv1d(before, after, 1) if before != after else None
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(torch.relu(self.conv1(x)[:, :, : -self.chop].contiguous()))
        y = self.drop(torch.relu(self.conv2(y)[:, :, : -self.chop].contiguous()))
        return torch.relu(y + (x if self.down is None else self.down(x)))


class TCN(nn.Module):
    def __init__(self, normed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            TCNBlock(4, 6, 1, normed), TCNBlock(6, 6, 2, normed), TCNBlock(6, 5, 4, normed)
        )
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x)[:, :, -1])


_TCN_SETS = (
    *("x", "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"),
    *("blocks.0.conv2|blocks.0.down|blocks.1.conv2", "blocks.2.conv2|blocks.2.down"),
)
entry("tcn", TCN, (4, 10), axes=(1,), cut=_TCN_SETS)
entry("tcn-weight-norm", lambda: TCN(True), (4, 10), axes=(1,), cut=("x",))
entry(
    "conv1d-channels-last-input",
    lambda: Net(
        lambda m, x: m.out(torch.relu(m.b(torch.relu(m.a(x.transpose(1, 2))))).flatten(1)),
        a=nn.Conv1d(4, 5, 3), b=nn.Conv1d(5, 3, 2, stride=2), out=nn.Linear(9, 2),
    ),
    (8, 4),
    cut=("x", "a", "b"),
)  # fmt: skip
entry(
    "conv1d-pools-and-padding",
    lambda: nn.Sequential(
        *(
            nn.ConstantPad1d(2, 1.5),
            nn.Conv1d(3, 5, 3, padding=1),
            nn.BatchNorm1d(5),
            nn.Sigmoid(),
            nn.MaxPool1d(2),
        ),
        *(nn.ReplicationPad1d(1), nn.Conv1d(5, 4, 3, padding=1, padding_mode="circular"), nn.SiLU()),
        *(nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(12, 2)),
    ),
    (3, 8),
    axes=(1,),
    cut=("x", "1", "6"),
)
entry(
    "attention-pooling-over-time",
    lambda: Net(
        lambda m, x: m.out((torch.softmax(m.score(torch.tanh(h := m.a(x))), 1) * h).sum(1)),
        a=nn.Linear(6, 5), score=nn.Linear(5, 1), out=nn.Linear(5, 2),
    ),
    (4, 6),
    cut=("x", "a"),
)  # fmt: skip
entry(
    "statistics-pooling-over-time",
    lambda: Net(
        lambda m, x: m.out(torch.cat([(h := torch.relu(m.a(x))).mean(2), h.std(2), h.amax(2)], 1)),
        a=nn.Conv1d(4, 5, 3), out=nn.Linear(15, 2),
    ),
    (4, 8),
    axes=(1,),
    cut=("x", "a"),
)  # fmt: skip

# --------------------------------------------------------------------------- convolution over images


class BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 4, 1))
        self.layer2 = nn.Sequential(BasicBlock(4, 6, 2))
        self.avgpool = nn.Identity() if flat else nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(24 if flat else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


_RESNET_SETS = (
    *("x", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"),
    *("conv1|layer1.0.conv2|layer1.1.conv2", "layer2.0.conv2|layer2.0.downsample.0"),
)
for _flat in (False, True):
    entry(
        f"resnet-{'flatten' if _flat else 'global-pool'}",
        lambda flat=_flat: ResNet(flat),
        (3, 8, 8),
        axes=(1,),
        cut=_RESNET_SETS,
    )


def _dense_conv(m: Net, x: Tensor) -> Tensor:
    stem = m.stem(x)
    one = m.a(torch.relu(m.na(stem)))
    two = m.b(torch.relu(m.nb(torch.cat([stem, one], 1))))
    down = F.avg_pool2d(m.transition(torch.relu(m.nt(torch.cat([stem, one, two], 1)))), 2)
    return m.out(F.adaptive_avg_pool2d(torch.relu(down), 1).flatten(1))


entry(
    "densenet-conv",
    lambda: Net(
        _dense_conv,
        stem=nn.Conv2d(3, 4, 3, padding=1), na=nn.BatchNorm2d(4), a=nn.Conv2d(4, 3, 3, padding=1),
        nb=nn.BatchNorm2d(7), b=nn.Conv2d(7, 3, 3, padding=1), nt=nn.BatchNorm2d(10),
        transition=nn.Conv2d(10, 5, 1), out=nn.Linear(5, 2),
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "stem", "a", "b", "transition"),
)  # fmt: skip


def _convnet(*layers: nn.Module, width: int = 5) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


entry(
    "depthwise-separable",
    lambda: _convnet(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6)),
        *(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU()),
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "0", "6"),
)
entry(
    "depthwise-on-the-input",
    lambda: _convnet(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU()),
    (4, 6, 6),
    axes=(1,),
    cut=("2",),
)
entry(
    "depthwise-multiplier",
    lambda: _convnet(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 5, 1)
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "4"),
)
entry(
    "grouped-convolution",
    lambda: _convnet(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 5, 1)
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "4"),
)
entry(
    "groupnorm",
    lambda: _convnet(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.ReLU()),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "3"),
    refused={"?0": "GroupNorm"},
)
entry(
    "groupnorm-one-group",
    lambda: _convnet(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.ReLU()),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "3"),
    refused={"0": "GroupNorm"},
)
entry(
    "groupnorm-group-of-one",
    lambda: _convnet(nn.Conv2d(3, 6, 3), nn.GroupNorm(6, 6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU()),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "3"),
    refused={"?0": "GroupNorm"},
)
entry(
    "instancenorm",
    lambda: _convnet(
        *(nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 5, 3)),
        *(nn.InstanceNorm2d(5, track_running_stats=True), nn.ReLU()),
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "0", "3"),
)
entry(
    "instancenorm-plain",
    lambda: _convnet(
        nn.InstanceNorm2d(3), nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3)
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "1", "4"),
)
entry(
    "layernorm-over-image",
    lambda: _convnet(nn.Conv2d(3, 5, 3), nn.LayerNorm([5, 4, 4]), nn.ReLU()),
    (3, 6, 6),
    axes=(1,),
    cut=("x",),
    refused={"0": "LayerNorm"},
)
entry(
    "convnext-block",
    lambda: Net(
        lambda m, x: m.out(
            (h := m.stem(x)).mean((2, 3)) + m.pw2(F.gelu(m.pw1(m.norm(m.dw(h).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2).mean((2, 3))
        ),
        stem=nn.Conv2d(3, 6, 2, 2), dw=nn.Conv2d(6, 6, 3, padding=1, groups=6), norm=nn.LayerNorm(6),
        pw1=nn.Linear(6, 9), pw2=nn.Linear(9, 6), out=nn.Linear(6, 2),
    ),
    (3, 8, 8),
    axes=(1,),
    cut=("x", "pw1"),
    refused={"stem|dw": "LayerNorm"},
)  # fmt: skip


def _squeeze_excite(m: Net, x: Tensor) -> Tensor:
    h = torch.relu(m.conv(x))
    s = torch.sigmoid(m.fc2(torch.relu(m.fc1(h.mean((2, 3))))))
    return m.out((m.after(h * s[:, :, None, None])).relu().amax((2, 3)))


entry(
    "squeeze-excitation",
    lambda: Net(
        _squeeze_excite,
        conv=nn.Conv2d(3, 6, 3), fc1=nn.Linear(6, 4), fc2=nn.Linear(4, 6), after=nn.Conv2d(6, 5, 1), out=nn.Linear(5, 2),
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "conv|fc2", "fc1", "after"),
)  # fmt: skip


class InvertedResidual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 2 * before
        self.use_res_connect = stride == 1 and before == after
        self.conv = nn.Sequential(
            *(nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)),
            *(
                nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU6(inplace=True),
            ),
            *(nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6())
        self.features = nn.Sequential(InvertedResidual(4, 4, 1), InvertedResidual(4, 6, 2))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(
            F.adaptive_avg_pool2d(self.features(self.stem(x)), (1, 1)).reshape(x.shape[0], -1)
        )


entry(
    "inverted-residual",
    MobileNet,
    (3, 8, 8),
    axes=(1,),
    cut=("x", "features.0.conv.0", "features.1.conv.0", "stem.0|features.0.conv.6", "features.1.conv.6"),
)
entry(
    "conv-transpose-decoder",
    lambda: nn.Sequential(
        *(nn.Linear(5, 24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2)), nn.ConvTranspose2d(6, 5, 2, 2)),
        *(
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.ConvTranspose2d(5, 4, 3, 2, 1, 1),
            nn.ReLU(),
            nn.Conv2d(4, 1, 3, padding=1),
        ),
    ),
    (5,),
    cut=("x", "3", "6"),
)


def _unet(m: Net, x: Tensor) -> Tensor:
    one = torch.relu(m.e1(x))
    two = torch.relu(m.e2(F.max_pool2d(one, 2)))
    low = torch.relu(m.mid(F.max_pool2d(two, 2)))
    up = torch.relu(m.d2(torch.cat([m.up(low), two], 1)))
    up = F.interpolate(up, scale_factor=2, mode="nearest")
    return m.out(torch.relu(m.d1(torch.cat([up, one], 1))))


entry(
    "unet",
    lambda: Net(
        _unet,
        e1=nn.Conv2d(3, 4, 3, padding=1), e2=nn.Conv2d(4, 5, 3, padding=1), mid=nn.Conv2d(5, 6, 3, padding=1),
        up=nn.Upsample(scale_factor=2, mode="bilinear"), d2=nn.Conv2d(11, 5, 3, padding=1),
        d1=nn.Conv2d(9, 4, 3, padding=1), out=nn.Conv2d(4, 2, 1),
    ),
    (3, 8, 8),
    axes=(1,),
    cut=("x", "e1", "e2", "mid", "d2", "d1"),
)  # fmt: skip
entry(
    "unet-transposed",
    lambda: Net(
        lambda m, x: m.out(torch.cat([m.up(F.relu(m.mid(F.max_pool2d(h := F.relu(m.e(x)), 2)))), h], 1)),
        e=nn.Conv2d(3, 4, 3, padding=1), mid=nn.Conv2d(4, 6, 3, padding=1), up=nn.ConvTranspose2d(6, 5, 2, 2),
        out=nn.Conv2d(9, 2, 1),
    ),
    (3, 8, 8),
    axes=(1,),
    cut=("x", "e", "mid", "up"),
)  # fmt: skip
entry(
    "conv-flatten-mlp",
    lambda: nn.Sequential(
        *(
            nn.ZeroPad2d(1),
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.ReflectionPad2d(1),
            nn.Conv2d(4, 5, 3),
        ),
        *(
            nn.BatchNorm2d(5),
            nn.Tanh(),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(5, 6),
            nn.Dropout1d(0.1),
            nn.Linear(6, 2),
        ),
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "1", "5", "10"),
)
entry(
    "inception-branches",
    lambda: Net(
        lambda m, x: m.out(torch.cat([m.a(x), m.b2(F.relu(m.b1(x))), m.c(F.max_pool2d(x, 3, 1, 1))], 1).relu().mean((-2, -1))),
        a=nn.Conv2d(3, 4, 1), b1=nn.Conv2d(3, 3, 1), b2=nn.Conv2d(3, 5, 3, padding=1), c=nn.Conv2d(3, 2, 1), out=nn.Linear(11, 2),
    ),
    (3, 6, 6),
    axes=(1,),
    cut=("x", "a", "b1", "b2", "c"),
)  # fmt: skip
entry(
    "conv3d",
    lambda: nn.Sequential(
        nn.Conv3d(3, 4, 2),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 5, 1),
        nn.Flatten(),
        nn.Linear(5, 2),
    ),
    (3, 4, 4, 4),
    axes=(1,),
    cut=("x", "0", "4"),
)
entry(
    "image-columns-flattened",
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 2)),
    (3, 4, 4),
    axes=(1,),
    cut=("x", "1"),
)

# --------------------------------------------------------------------------- recurrent


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.Module], use: str, first: int = 0, **keywords: Any) -> None:
        super().__init__()
        self.entry = nn.Linear(4, first) if first else None
        self.rnn = cell(first or 4, 5, batch_first=True, **keywords)
        directions = 2 if keywords.get("bidirectional") else 1
        self.use = use
        steps = 3 if use == "flat" else 1
        self.out = nn.Linear(keywords.get("proj_size", 5) * directions * steps, 2)

    def forward(self, x: Tensor) -> Tensor:
        series, state = self.rnn(x if self.entry is None else torch.relu(self.entry(x)))
        final = state[0] if isinstance(state, tuple) else state
        if self.use == "last":
            return self.out(series[:, -1, :])
        if self.use == "state":
            return self.out(final[-1])
        if self.use == "states":
            return self.out(torch.cat([final[-2], final[-1]], dim=1))
        if self.use == "flat":
            return self.out(series.flatten(1))
        return self.out(series)


for _cell in (nn.LSTM, nn.GRU, nn.RNN):
    _name = _cell.__name__.lower()
    for _use in ("last", "state", "sequence"):
        entry(f"{_name}-{_use}", lambda c=_cell, u=_use: Recurrent(c, u), (3, 4), cut=("x", "rnn*"))
    entry(
        f"{_name}-two-layers",
        lambda c=_cell: Recurrent(c, "last", num_layers=2, dropout=0.1),
        (3, 4),
        cut=("x", "rnn*"),
    )
    entry(
        f"{_name}-bidirectional",
        lambda c=_cell: Recurrent(c, "sequence", bidirectional=True),
        (3, 4),
        cut=("x", "rnn*"),
    )
entry(
    "lstm-bidirectional-states",
    lambda: Recurrent(nn.LSTM, "states", bidirectional=True),
    (3, 4),
    cut=("x", "rnn*"),
)
entry(
    "gru-two-layers-bidirectional-state",
    lambda: Recurrent(nn.GRU, "states", bidirectional=True, num_layers=2),
    (3, 4),
    cut=("x", "rnn*"),
)
entry(
    "gru-bidirectional-one-direction",  # torch-pruning does not come back from this graph
    lambda: Net(
        lambda m, x: m.out(m.a(m.rnn(x)[1][-1])),
        rnn=nn.GRU(3, 4, batch_first=True, bidirectional=True),
        a=nn.Linear(4, 5),
        out=nn.Linear(5, 2),
    ),
    (2, 3),
    cut=("x", "a"),
)
entry("lstm-after-linear", lambda: Recurrent(nn.LSTM, "last", first=6), (3, 4), cut=("x", "entry", "rnn*"))
entry(
    "gru-flattened",
    lambda: Recurrent(nn.GRU, "flat", first=6, bias=False),
    (3, 4),
    cut=("x", "entry", "rnn*"),
)
entry("lstm-projected", lambda: Recurrent(nn.LSTM, "last", proj_size=3), (3, 4), cut=("x",))
entry("rnn-relu", lambda: Recurrent(nn.RNN, "state", nonlinearity="relu"), (3, 4), cut=("x", "rnn*"))
entry(
    "lstm-time-first",
    lambda: Net(
        lambda m, x: m.out(m.rnn(x.transpose(0, 1))[1][0][0]), rnn=nn.LSTM(4, 5), out=nn.Linear(5, 2)
    ),
    (3, 4),
    cut=("x", "rnn*"),
)
entry(
    "two-lstms",
    lambda: Net(
        lambda m, x: m.out(m.b(m.a(x)[0])[0][:, -1]),
        a=nn.LSTM(4, 5, batch_first=True),
        b=nn.LSTM(5, 4, batch_first=True),
        out=nn.Linear(4, 2),
    ),
    (3, 4),
    cut=("x", "a*", "b*"),
)
entry(
    "conv-then-gru",
    lambda: Net(
        lambda m, x: m.out(m.rnn(torch.relu(m.conv(x)).transpose(1, 2))[0].mean(1)),
        conv=nn.Conv1d(4, 6, 3, padding=1), rnn=nn.GRU(6, 5, batch_first=True), out=nn.Linear(5, 2),
    ),
    (4, 6),
    axes=(1,),
    cut=("x", "conv", "rnn*"),
)  # fmt: skip
entry(
    "lstm-residual",
    lambda: Net(
        lambda m, x: m.out((h := torch.relu(m.a(x))) + m.rnn(h)[0]).mean(1),
        a=nn.Linear(4, 5), rnn=nn.LSTM(5, 5, batch_first=True), out=nn.Linear(5, 2),
    ),
    (3, 4),
    cut=("x",),
)  # fmt: skip
entry(
    "lstm-layernorm",
    lambda: Net(
        lambda m, x: m.out(m.norm(m.rnn(x)[0][:, -1])),
        rnn=nn.LSTM(4, 5, batch_first=True),
        norm=nn.LayerNorm(5),
        out=nn.Linear(5, 2),
    ),
    (3, 4),
    cut=("x",),
    refused={"rnn*": ""},
)


def _cell_loop(m: Net, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 5)
    for t in range(x.shape[1]):
        h = m.cell(x[:, t], h)
    return m.out(h)


entry("gru-cell-loop", lambda: Net(_cell_loop, cell=nn.GRUCell(4, 5), out=nn.Linear(5, 2)), (3, 4))

# --------------------------------------------------------------------------- attention


class TimmAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, fused: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = fused
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))


class NanoAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.n_head, self.n_embd = n_head, n_embd
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        q = q.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        v = v.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = F.softmax(att.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf")), dim=-1)
        return self.c_proj((att @ v).transpose(1, 2).contiguous().view(b, t, c))


class SeparateAttention(nn.Module):
    """Queries from ``x``, keys and values from ``memory``, in the manner of transformers."""

    def __init__(self, dim: int, heads: int, fused: bool = False) -> None:
        super().__init__()
        self.head_size, self.fused = dim // heads, fused
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        q, k, v = (
            layer(source).view(*source.shape[:-1], -1, self.head_size).transpose(1, 2)
            for layer, source in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.head_size), -1) @ v
        mixed = mixed.transpose(1, 2)
        return self.dense(mixed.reshape(*mixed.shape[:-2], -1))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, dim: int, normed: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim) if normed else nn.Identity()
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim) if normed else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(dim, 10), nn.Linear(10, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TokenNet(nn.Module):
    def __init__(self, *blocks: nn.Module, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(6, dim)
        self.pos = nn.Parameter(torch.zeros(1, 4, dim))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.pos).mean(dim=1))


for _name, _attention in {
    "timm": lambda: TimmAttention(8, 2),
    "timm-fused": lambda: TimmAttention(8, 4, True),
    "nanogpt": lambda: NanoAttention(8, 2),
    "separate": lambda: SeparateAttention(8, 2),
    "separate-fused": lambda: SeparateAttention(8, 2, True),
}.items():
    entry(
        f"attention-{_name}",
        lambda attention=_attention: TokenNet(Block(attention(), 8), Block(attention(), 8)),
        (4, 6),
        cut=("x", "blocks.0.fc1", "blocks.1.fc1"),
        refused={"embed": "LayerNorm"},
    )
    entry(
        f"attention-{_name}-no-norm",
        lambda attention=_attention: TokenNet(Block(attention(), 8, normed=False)),
        (4, 6),
        cut=("x", "blocks.0.fc1"),
    )
entry(
    "cross-attention",
    lambda: Net(
        lambda m, x, y: m.out(m.attn(m.a(x), m.b(y)).mean(1)),
        a=nn.Linear(5, 8), b=nn.Linear(4, 8), attn=SeparateAttention(8, 2), out=nn.Linear(8, 2),
    ),
    (3, 5),
    (6, 4),
    axes=(-1, -1),
    names=("x", "y"),
    cut=("x", "y"),
)  # fmt: skip
entry(
    "multihead-attention-module",
    lambda: Net(
        lambda m, x: m.out(m.attn(h := m.a(x), h, h, need_weights=False)[0].mean(1)),
        a=nn.Linear(5, 8), attn=nn.MultiheadAttention(8, 2, batch_first=True), out=nn.Linear(8, 2),
    ),
    (3, 5),
    cut=("x",),
)  # fmt: skip
for _first in (False, True):
    entry(
        f"transformer-encoder-{'pre' if _first else 'post'}",
        lambda first=_first: Net(
            lambda m, x: m.out(m.encoder(m.entry(x)).mean(1)),
            entry=nn.Linear(6, 8),
            encoder=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, norm_first=first),
                2,
                enable_nested_tensor=False,
            ),
            out=nn.Linear(8, 2),
        ),
        (4, 6),
        cut=("x", "encoder.layers.0.linear1", "encoder.layers.1.linear1"),
        refused={"entry": "LayerNorm"},
    )
entry(
    "linear-attention",
    lambda: Net(
        lambda m, x: m.out((F.elu(m.q(x)) + 1) @ ((F.elu(m.k(x)) + 1).transpose(1, 2) @ m.v(x))).mean(1),
        q=nn.Linear(5, 4), k=nn.Linear(5, 4), v=nn.Linear(5, 6), out=nn.Linear(6, 2),
    ),
    (3, 5),
    cut=("x", "v"),
)  # fmt: skip


class Tokenizer(nn.Module):
    """FT-Transformer: a token for each number, one for each category, and a class token."""

    def __init__(self, categories: Sequence[int] = ()) -> None:
        super().__init__()
        self.weight, self.bias, self.cls = weight(5, 8), weight(5, 8), weight(1, 1, 8)
        self.embeddings = nn.ModuleList(nn.Embedding(n, 8) for n in categories)
        self.block = Block(SeparateAttention(8, 2), 8)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        tokens = [self.cls.expand(x.shape[0], -1, -1), x[:, :, None] * self.weight + self.bias]
        if codes is not None:
            tokens += [e(codes[:, i])[:, None] for i, e in enumerate(self.embeddings)]
        return self.head(self.block(torch.cat(tokens, 1))[:, 0])


entry("ft-transformer", Tokenizer, (5,), cut=("x", "block.fc1"))

# --------------------------------------------------------------------------- numbers and categories

SIZES = (4, 3, 6)


def numbers_and_codes(generator: torch.Generator, batch: int) -> Inputs:
    codes = [torch.randint(n, (batch,), generator=generator) for n in SIZES]
    return torch.randn((batch, 5), generator=generator), torch.stack(codes, 1)


def codes_only(generator: torch.Generator, batch: int) -> Inputs:
    return numbers_and_codes(generator, batch)[1:]


class Tabular(nn.Module):
    def __init__(self, shared: bool, norm: bool = False, numbers_first: bool = True) -> None:
        super().__init__()
        widths = (3, 3, 3) if shared else (2, 3, 4)
        self.shared, self.numbers_first = shared, numbers_first
        if shared:
            self.table = nn.Embedding(sum(SIZES), 3)
            self.register_buffer("offsets", torch.tensor([0, *SIZES[:-1]]).cumsum(0))
        else:
            self.tables = nn.ModuleList(nn.Embedding(n, w) for n, w in zip(SIZES, widths, strict=True))
        self.norm = nn.BatchNorm1d(5 + sum(widths)) if norm else nn.Identity()
        self.first = nn.Linear(5 + sum(widths), 7)
        self.last = nn.Linear(7, 2)

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        if self.shared:
            codes = self.table(x_cat + self.offsets).flatten(1)
        else:
            codes = torch.cat([table(x_cat[:, i]) for i, table in enumerate(self.tables)], dim=1)
        parts = [x_num, codes] if self.numbers_first else [codes, x_num]
        return self.last(torch.relu(self.first(self.norm(torch.cat(parts, 1)))))


_TABULAR = {"axes": (1, 1), "names": ("x_num", "x_cat"), "inputs": numbers_and_codes}
for _shared in (False, True):
    for _norm in (False, True):
        for _first in (True, False):
            entry(
                f"tabular-{'one-table' if _shared else 'tables'}{'-batchnorm' if _norm else ''}{'' if _first else '-codes-first'}",
                lambda s=_shared, n=_norm, f=_first: Tabular(s, n, f),
                cut=("x_num", "x_cat", "first"),
                **_TABULAR,
            )
entry("ft-transformer-with-codes", lambda: Tokenizer(SIZES), cut=("x_num", "block.fc1"), **_TABULAR)
entry(
    "codes-only",
    lambda: Net(lambda m, c: m.b(torch.relu(m.a(m.t(c + m.shift).flatten(1)))), t=nn.Embedding(13, 3),
                shift=torch.tensor([0, 4, 7]), a=nn.Linear(9, 5), b=nn.Linear(5, 2)),
    axes=(1,),
    names=("x_cat",),
    inputs=codes_only,
    cut=("x_cat", "a"),
)  # fmt: skip
entry(
    "one-hot-codes",
    lambda: Net(
        lambda m, n, c: m.b(torch.relu(m.a(torch.cat([n] + [F.one_hot(c[:, i], s).to(n.dtype) for i, s in enumerate(SIZES)], 1)))),
        a=nn.Linear(18, 5), b=nn.Linear(5, 2),
    ),
    **_TABULAR,
)  # fmt: skip
entry(
    "embedding-sum-over-features",
    lambda: Net(
        lambda m, n, c: m.out(torch.relu(m.lin(n) + m.table(c + m.shift).sum(1))),
        lin=nn.Linear(5, 4), table=nn.Embedding(13, 4), out=nn.Linear(4, 2), shift=torch.tensor([0, 4, 7]),
    ),
    **_TABULAR,
)  # fmt: skip


def token_ids(generator: torch.Generator, batch: int) -> Inputs:
    return (torch.randint(11, (batch, 5), generator=generator),)


entry(
    "token-embedding-mlp",
    lambda: Net(
        lambda m, ids: m.out(torch.relu(m.fc(m.embed(ids))).mean(1)),
        embed=nn.Embedding(11, 6),
        fc=nn.Linear(6, 5),
        out=nn.Linear(5, 2),
    ),
    axes=(None,),
    names=("ids",),
    inputs=token_ids,
    cut=("fc", "embed"),
)
entry(
    "token-embedding-flattened",
    lambda: Net(lambda m, ids: m.out(torch.relu(m.fc(m.embed(ids).flatten(1)))), embed=nn.Embedding(11, 4), fc=nn.Linear(20, 5), out=nn.Linear(5, 2)),
    axes=(None,),
    names=("ids",),
    inputs=token_ids,
    cut=("fc", "embed"),
)  # fmt: skip
entry(
    "embedding-bag",
    lambda: Net(lambda m, ids: m.out(torch.relu(m.fc(m.bag(ids)))), bag=nn.EmbeddingBag(11, 6), fc=nn.Linear(6, 5), out=nn.Linear(5, 2)),
    axes=(None,),
    names=("ids",),
    inputs=token_ids,
    cut=("fc",),
)  # fmt: skip
entry(
    "tied-language-model",
    lambda: Net(
        lambda m, ids: F.linear(torch.tanh(m.fc(m.embed(ids))), m.embed.weight),
        embed=nn.Embedding(11, 6),
        fc=nn.Linear(6, 6),
    ),
    axes=(None,),
    names=("ids",),
    inputs=token_ids,
)

# --------------------------------------------------------------------------- several inputs and outputs

entry(
    "two-inputs",
    lambda: Net(
        lambda m, x, y: m.out(torch.cat([torch.relu(m.a(x)), y, torch.tanh(m.b(y))], 1)),
        a=nn.Linear(5, 4), b=nn.Linear(3, 4), out=nn.Linear(11, 2),
    ),
    (5,),
    (3,),
    axes=(-1, -1),
    names=("applicant", "loan"),
    cut=("applicant", "loan", "a", "b"),
)  # fmt: skip
entry(
    "two-inputs-added",
    lambda: Net(lambda m, x, y: m.out(torch.relu(m.a(x + y))), a=nn.Linear(5, 4), out=nn.Linear(4, 2)),
    (5,),
    (5,),
    axes=(-1, -1),
    names=("x", "y"),
    cut=("a",),
)
entry(
    "image-and-table",
    lambda: Net(
        lambda m, image, row: m.out(torch.cat([torch.relu(m.conv(image)).flatten(1), torch.relu(m.fc(row))], 1)),
        conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(5, 4), out=nn.Linear(20, 2),
    ),
    (3, 4, 4),
    (5,),
    axes=(1, 1),
    names=("image", "row"),
    cut=("image", "row", "conv", "fc"),
)  # fmt: skip
entry(
    "masked-input-passes-whole",
    lambda: Net(
        lambda m, x, mask: m.out((torch.relu(m.a(x)) * mask[:, :, None]).sum(1)),
        a=nn.Linear(6, 5),
        out=nn.Linear(5, 2),
    ),
    (4, 6),
    (4,),
    axes=(-1, None),
    names=("x", "mask"),
    cut=("x", "a"),
)
entry(
    "outputs-tuple",
    lambda: Net(
        lambda m, x: (m.mean(h := torch.relu(m.a(x))), F.softplus(m.var(h))),
        a=nn.Linear(6, 5),
        mean=nn.Linear(5, 2),
        var=nn.Linear(5, 1),
    ),
    (6,),
    cut=("x", "a"),
)
entry(
    "outputs-dict",
    lambda: Net(
        lambda m, x: {"logits": m.mean(h := torch.relu(m.a(x))), "extra": m.var(torch.tanh(m.b(h)))},
        a=nn.Linear(6, 5), b=nn.Linear(5, 4), mean=nn.Linear(5, 2), var=nn.Linear(4, 1),
    ),
    (6,),
    cut=("x", "a", "b"),
)  # fmt: skip
entry(
    "outputs-hidden-too",
    lambda: Net(lambda m, x: (m.b(h := torch.relu(m.a(x))), h), a=nn.Linear(6, 5), b=nn.Linear(5, 2)),
    (6,),
    cut=("x",),
)

# --------------------------------------------------------------------------- transformers, from configs alone


class HuggingFace(nn.Module):
    """A model of transformers with one tensor as output."""

    def __init__(self, model: nn.Module, *keywords: str) -> None:
        super().__init__()
        self.model = model
        self.keywords = keywords

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.keywords, inputs, strict=True)), return_dict=False)[0]


_TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10}


def bert() -> nn.Module:
    t = need("transformers")
    config = t.BertConfig(vocab_size=11, max_position_embeddings=8, num_labels=2, **_TINY)
    return HuggingFace(t.BertForSequenceClassification(config), "input_ids", "attention_mask")


def vit() -> nn.Module:
    t = need("transformers")
    config = t.ViTConfig(image_size=8, patch_size=4, num_channels=3, num_labels=2, **_TINY)
    return HuggingFace(t.ViTForImageClassification(config), "pixel_values")


def gpt2() -> nn.Module:
    t = need("transformers")
    config = t.GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_inner=10,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return HuggingFace(t.GPT2LMHeadModel(config), "input_ids")


def ids_and_mask(generator: torch.Generator, batch: int) -> Inputs:
    mask = torch.ones(batch, 5, dtype=torch.int64)
    mask[1:, 4:] = 0
    return (*token_ids(generator, batch), mask)


entry(
    "hf-bert",
    bert,
    axes=(None, None),
    names=("input_ids", "attention_mask"),
    inputs=ids_and_mask,
    cut=("*intermediate.dense|*mlp.fc1",),
    refused={"*word_embeddings": "LayerNorm"},
)
entry(
    "hf-vit", vit, (3, 8, 8), axes=(1,), names=("pixel_values",), refused={"*patch_embeddings*": "LayerNorm"}
)
entry("hf-gpt2", gpt2, axes=(None,), names=("input_ids",), inputs=token_ids, refused={"*wte": "LayerNorm"})
