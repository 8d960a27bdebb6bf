"""all-MiniLM-L6-v2: word pieces of a sentence in, a unit vector of 384 numbers for its meaning out.

BERT (Devlin et al. 2019) with six layers, as distilled by Wang et al. (MiniLM, 2020) and trained by the
authors of sentence-transformers, with the tensor names of Hugging Face's files.
"""

import math

import torch
from torch import nn
from torch.nn import functional

WORDS = 30522
POSITIONS = 512
WIDTH = 384
NEURONS = 1536
HEADS = 12
LAYERS = 6
EPS = 1e-12


class Embeddings(nn.Module):
    """A vector for each word piece and its place."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        first_sentence = self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(places) + first_sentence)


class SelfAttention(nn.Module):
    """Every token looks at every other; the size of a head is fixed, their number is what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.size) + padding
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """A dense layer added to what came before it, normalised."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPS)

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Layer(nn.Module):
    """Attention, then a perceptron, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Residual(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, NEURONS)})
        self.output = Residual(NEURONS)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        x = self.attention["output"](self.attention["self"](x, padding), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """The mean over a sentence's tokens, scaled to length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        present = attention_mask.to(self.embeddings.word_embeddings.weight.dtype)
        padding = (1 - present)[:, None, None, :] * -1e9
        x = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, padding)
        mean = (x * present[:, :, None]).sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def build() -> nn.Module:
    return MiniLM()
