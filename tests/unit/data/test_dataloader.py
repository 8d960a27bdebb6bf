"""Batches of a user's loader: those without rows are passed over, and a consumer may stop at any of them."""

import pytest
import torch

from glprune.data.dataloader import LoaderSplit
from glprune.errors import DataError
from glprune.schema.recipe import InputSpec
from glprune.search.worker_setup import indexable_split

X = torch.arange(24.0).reshape(8, 3)
Y = torch.tensor([0, 1] * 4)


def split(loader, rows=8, kind="binary"):
    return LoaderSplit(loader, (InputSpec(name="features", axis=-1),), kind, rows, "the loader")


@pytest.mark.parametrize("empty", [(X[:0], Y[:0]), (X[:0], torch.empty(0)), (X[:0], torch.empty(0, 1))])
def test_batches_without_rows_are_passed_over(empty):
    batches = [empty, (X[:5], Y[:5]), empty, (X[5:], Y[5:]), empty]
    found = list(split(batches).batches(None, None))
    assert [len(y) for _, y in found] == [5, 3]
    assert torch.equal(torch.cat([x for (x,), _ in found]), X)


def test_a_consumer_may_stop_and_the_loader_is_closed():
    closed = []

    class Rows:
        def __iter__(self):
            try:
                yield X[:4], Y[:4]
                yield X[4:], Y[4:]
            finally:
                closed.append(True)

    batches = split(Rows()).batches(None, None)
    next(batches)
    batches.close()
    del batches
    assert closed == [True]


def test_an_error_of_the_consumer_is_not_the_loaders():
    def consume():
        for _ in split([(X, Y)]).batches(None, None):
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        consume()


@pytest.mark.parametrize(
    "error", [SystemExit(0), GeneratorExit(), BaseException("odd"), StopAsyncIteration()]
)
def test_what_a_loader_ends_with_is_its_error(error):
    class Rows:
        def __iter__(self):
            yield X, Y
            raise error

    with pytest.raises(DataError, match=r"^the loader failed \(\w+: .* at test_dataloader.py:\d+\)\.$"):
        list(split(Rows()).batches(None, None))


def test_a_loader_that_fills_one_buffer_is_read_right():
    class Rows:
        def __iter__(self):
            buffer = torch.empty(2, 3)
            for n in range(0, 8, 2):
                yield buffer.copy_(X[n : n + 2]), Y[n : n + 2]

    inputs, target = next(indexable_split(split(Rows()), 0).batches(8, None))
    assert torch.equal(inputs[0], X)
    assert torch.equal(target, Y)
