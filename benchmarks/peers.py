"""The peers, a small function each: they take a problem and emit fields for each k."""

from __future__ import annotations

import time

import numpy as np
import torch
from answers import Answer, Emit, Method, Problem
from network import loss
from sets import DataSet
from torch import Tensor

REPEATS = 5  # of a permutation


def at_random(problem: Problem, emit: Emit) -> None:
    """Fields drawn at random."""
    start = time.perf_counter()
    rank(problem, emit, np.random.default_rng(problem.seed).random(len(problem.data.fields)), start)


def magnitude(problem: Problem, emit: Emit) -> None:
    """Norm of a field's weights in the first layer of the trained network (columns are standardised)."""
    start = time.perf_counter()
    weight = first_weight(problem).numpy()
    rank(problem, emit, by_field(problem.data, (weight**2).sum(0)), start)


def permutation(problem: Problem, emit: Emit) -> None:
    """Rise of the validation loss when a field's columns are shuffled together, mean of 5 shuffles.

    The first layer is linear, so what a shuffle changes is added to its sums: the same figure, sooner.
    """
    start = time.perf_counter()
    data, generator = problem.data, torch.Generator().manual_seed(problem.seed)
    x, y = torch.from_numpy(data.valid.x), torch.from_numpy(data.valid.y)
    first, rest = problem.network[0], problem.network[1:]
    rise = np.zeros(len(data.fields))
    with torch.no_grad():
        sums = first(x)
        for field, (_, columns) in enumerate(data.fields):
            part, weight = x[:, columns], first.weight[:, columns].T
            for _ in range(REPEATS):
                shuffled = part[torch.randperm(len(x), generator=generator)]
                rise[field] += float(loss(rest(sums + (shuffled - part) @ weight), y, data.task))
    rank(problem, emit, rise, start)


def rank(problem: Problem, emit: Emit, importance: np.ndarray, start: float) -> None:
    """Answer each k with its most important fields."""
    order = np.argsort(-importance, kind="stable")
    for k in problem.data.ks:
        emit(Answer(k, tuple(sorted(order[:k].tolist())), time.perf_counter() - start))


def by_field(data: DataSet, importance: np.ndarray) -> np.ndarray:
    """The sum of an importance of columns over each field's columns."""
    return np.array([importance[list(columns)].sum() for _, columns in data.fields])


def first_weight(problem: Problem) -> Tensor:
    """Weights of the first layer, (hidden, columns)."""
    return problem.network[0].weight.detach()


PEERS: dict[str, Method] = {
    "permutation": permutation,
    "magnitude": magnitude,
    "random": at_random,
}
