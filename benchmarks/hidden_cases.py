"""The cases of hidden.py: a data set and a network of which hidden units are removed.

The data come out of installed packages, as in sets.py. Every network takes rows of columns and gives them
their shape itself, so that one file serves every method.
"""

from __future__ import annotations

import ast
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataset import DataSet, Split, names, package, shares, singles
from network import build
from sets import images, mnist, onehot, vowels
from torch import Tensor, nn
from torch.nn import functional

LIBRARIES = ("numpy", "scipy", "sklearn", "torch")  # whose docstrings are the text
SENTENCES, TOKENS, WORDS = 400, 16, 512  # of a library; of a sentence; that are told apart
CEPSTRA = 12  # channels of JapaneseVowels


@dataclass(frozen=True)
class InSteps(DataSet):
    """A data set that says how many rows a training step has: a twentieth."""

    batch: int = 0

    @classmethod
    def of(cls, data: DataSet) -> InSteps:
        """The same set; twenty steps make an epoch, for which glprune goes through the rows once."""
        return cls(**vars(data) | {"batch": math.ceil(len(data.train.x) / 20)})


@dataclass(frozen=True)
class Case:
    """A data set and its network.

    Attributes:
        data: Draws the data set of a seed.
        network: The function of this file that makes the untrained network; None: the perceptron of the set.
        recipe: Sections of glprune's recipe beside those of every case.
        heads: Attention heads of a layer, for torch-pruning.
    """

    data: Callable[[int], DataSet]
    network: Callable[[], nn.Module] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    heads: int = 0

    def fresh(self, data: DataSet) -> nn.Module:
        """The untrained network."""
        return self.network() if self.network else build(data.train.x.shape[1], data.hidden, data.outputs)


class ConvNet(nn.Module):
    """3 x 3 convolutions with BatchNorm on square images, mean over positions, a perceptron."""

    def __init__(self, side: int, layers: Sequence[tuple[int, int]], hidden: Sequence[int]) -> None:
        super().__init__()
        self.side = side
        body: list[nn.Module] = []
        widths = [1, *(width for width, _ in layers)]
        for (a, b), (_, stride) in zip(pairwise(widths), layers, strict=True):
            body += [convolution(a, b, stride), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.head = build(widths[-1], hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(-1, 1, self.side, self.side)).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions and what skips them: the input, or a 1 x 1 convolution of it."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(convolution(a, b, stride), nn.BatchNorm2d(b), nn.ReLU())
        self.second = nn.Sequential(convolution(b, b, 1), nn.BatchNorm2d(b))
        skip = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        self.skip = nn.Identity() if (a, stride) == (b, 1) else skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


class ResNet(nn.Module):
    """ResNet-20: a convolution and three stages of three blocks, on images of 8 x 8 pixels."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(1, widths[0], 1), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        for a, b in pairwise([widths[0], *widths]):
            blocks += [Block(a, b, 1 if not blocks else 2), Block(b, b, 1), Block(b, b, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x.reshape(-1, 1, 8, 8))).mean((2, 3)))


class Recurrent(nn.Module):
    """Two GRUs, one after the other, and a linear layer on the last state."""

    def __init__(self, columns: int, first: int, second: int, outputs: int) -> None:
        super().__init__()
        self.columns = columns
        self.first = nn.GRU(columns, first, batch_first=True)
        self.second = nn.GRU(first, second, batch_first=True)
        self.head = nn.Linear(second, outputs)

    def forward(self, x: Tensor) -> Tensor:
        series = x.unflatten(1, (self.columns, -1)).mT
        return self.head(self.second(self.first(series)[0])[0][:, -1])


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each with a residual and LayerNorm after it, as in BERT."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.head_width, self.scale = width // heads, (width // heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.widen, self.narrow, self.last = (
            nn.Linear(width, inner),
            nn.Linear(inner, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(2, (-1, self.head_width)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = q @ k.mT * self.scale + mask
        x = self.norm(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        return self.last(x + self.narrow(functional.gelu(self.widen(x))))


class Encoder(nn.Module):
    """A transformer encoder laid out as BERT: words and places, layers, the state of the first token."""

    def __init__(self, width: int, heads: int, inner: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS + 2, width), nn.Embedding(TOKENS, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner) for _ in range(layers))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens == 0)[:, None, None] * -1e4
        x = self.norm(self.words(tokens) + self.places(torch.arange(TOKENS)))
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def convolution(a: int, b: int, stride: int) -> nn.Conv2d:
    """A 3 x 3 convolution without bias, as before BatchNorm."""
    return nn.Conv2d(a, b, 3, stride, 1, bias=False)


def convnet() -> nn.Module:
    """8, 16, 16 channels on MNIST."""
    return ConvNet(28, ((8, 2), (16, 2), (16, 1)), ())


def digits_convnet() -> nn.Module:
    """12, 24, 24 channels and a hidden layer of 32 on 8 x 8 digits."""
    return ConvNet(8, ((12, 1), (24, 2), (24, 1)), (32,))


def resnet() -> nn.Module:
    """A ResNet-20 of half the usual widths."""
    return ResNet((8, 16, 32))


def gru() -> nn.Module:
    """Two GRUs of 48 and 32 units on series of 12 channels, 9 classes."""
    return Recurrent(CEPSTRA, 48, 32, 9)


def encoder() -> nn.Module:
    """Two layers, two heads, 64 wide, 128 inside."""
    return Encoder(64, 2, 128, 2, len(LIBRARIES))


def mlp_data(seed: int) -> DataSet:
    """MNIST-5000 for a perceptron of two hidden layers, 256 and 128."""
    return replace(mnist(seed), hidden=(256, 128))


def series(seed: int) -> DataSet:
    """JapaneseVowels for a recurrent network: the columns are 12 channels of 25 samples."""
    return InSteps.of(vowels(seed))


def digits(seed: int) -> DataSet:
    """1,797 digits of scikit-learn, 8 x 8 pixels from 0 to 1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return labelled("digits", (x / 16).astype(np.float32), y, seed)


def docstrings(seed: int) -> DataSet:
    """First sentences of docstrings, a number for each word; the class is the library they come from."""
    found = [list(islice(sentences(package(name)), SENTENCES)) for name in LIBRARIES]
    rows = np.array([encoded(words) for of_library in found for words in of_library])
    y = np.repeat(np.arange(len(LIBRARIES)), [len(of_library) for of_library in found])
    return labelled("docstrings", rows, y, seed)


def labelled(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> DataSet:
    """A set of classes whose columns are not scaled one by one."""
    parts = shares(y, (0.6, 0.2, 0.2), seed, stratified=True)
    splits = [Split(x[p], y[p].astype(np.int64)) for p in parts]
    features = singles(names(x.shape[1]))
    data = DataSet(name, "multiclass", *splits, features=features, support=None, ks=(), hidden=())
    return InSteps.of(data)


def sentences(folder: Path) -> Iterator[tuple[str, ...]]:
    """The words of docstrings' first sentences, of public functions and classes, each sentence once."""
    seen = set()
    for file in sorted(folder.rglob("*.py")):
        if "test" in str(file.relative_to(folder)):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            first = re.split(r"\.\s|\n\s*\n", ast.get_docstring(node) or "")[0]
            words = tuple(re.findall(r"[a-z]+", first.lower()))[: TOKENS - 1]
            if len(words) >= 4 and words not in seen:
                seen.add(words)
                yield words


def encoded(words: Sequence[str]) -> list[int]:
    """Token numbers of a sentence: 1 for its beginning, a hash for each word, 0 where it has ended."""
    tokens = [1, *(2 + zlib.crc32(word.encode()) % WORDS for word in words)]
    return tokens + [0] * (TOKENS - len(tokens))


_TOKENS = {"name": "tokens", "axis": None, "dtype": "int"}
CASES: dict[str, Case] = {
    "mlp": Case(mlp_data),
    "onehot": Case(onehot),
    "conv": Case(images, convnet),
    "digits": Case(digits, digits_convnet),
    "resnet": Case(digits, resnet),
    "gru": Case(series, gru),
    "encoder": Case(docstrings, encoder, {"model": {"inputs": [_TOKENS]}, "allow_inexact": True}, heads=2),
}
