"""Batches of a user's loader: those without rows are passed over, and a consumer may stop at any of them."""

from dataclasses import replace

import pytest
import torch

from glprune.data.dataloader import Fingerprint, LoaderSplit
from glprune.errors import DataError
from glprune.schema.recipe import InputSpec
from glprune.search.worker_setup import indexable_split

X = torch.arange(24.0).reshape(8, 3)
Y = torch.tensor([0, 1] * 4)


def split(loader, ordered=True, kind="binary"):
    first = Fingerprint()
    first.add((X, Y))
    return LoaderSplit(loader, (InputSpec(name="features", axis=-1),), kind, first, ordered, "the loader")


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


CHANGED = (
    "^the loader: other values or targets in a later pass than in the first; let the loader yield the same"
)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_rows_may_come_in_batches_of_any_size(size):
    batches = [(X[n : n + size], Y[n : n + size]) for n in range(0, 8, size)]
    assert sum(len(y) for _, y in split(batches).batches(None, None)) == 8


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        (X.flip(0), Y),  # inputs of other rows than the targets
        (X, 1 - Y),
        (X.roll(1, 1), Y),
        (X + 1e-3 * torch.eye(8, 3), Y),
        (torch.cat([X[:7], X[:1]]), torch.cat([Y[:7], Y[:1]])),  # one row twice, another not
        (torch.cat([X[:6], X[7:], X[6:7]]), Y),
    ],
)
def test_a_pass_with_other_rows_than_the_first_is_refused(rows, ordered):
    with pytest.raises(DataError, match=CHANGED):
        list(split([rows], ordered).batches(None, None))


def test_only_training_rows_may_come_in_another_order():
    batches = [(X.flip(0), Y.flip(0))]
    assert len(list(split(batches, ordered=False).batches(None, None))) == 1
    with pytest.raises(DataError, match=r"^the loader: another order of the rows in a later pass"):
        list(split(batches).batches(None, None))


class Random:
    """Rows that are drawn and changed at random, as by a sampler with replacement and an augmentation."""

    def __iter__(self):
        drawn = torch.randint(8, (8,))
        yield X[drawn] + torch.randn(8, 3), Y[drawn]


def test_what_is_random_in_training_is_the_same_whenever_it_measures():
    first = Fingerprint()
    torch.manual_seed(0)
    first.add(next(iter(Random())))
    random = replace(split(Random()), first=first)
    torch.manual_seed(5)
    measured = [next(iter(random.batches(None, None)))[0][0] for _ in range(2)]
    assert torch.equal(*measured)
    generator = torch.Generator().manual_seed(0)
    trained = [next(iter(random.batches(None, generator)))[0][0] for _ in range(2)]
    assert not torch.equal(*trained)
    assert len(list(random.batches(None, None))) == 1


@pytest.mark.parametrize("target", [Y.float(), torch.empty(8, 0), Y > 0])
def test_a_fingerprint_takes_all_types_and_goes_by_values(target):
    rows = (X.reshape(8, 1, 3), torch.arange(8), X[:, 0] > 3, target)
    one, two, other = Fingerprint(), Fingerprint(), Fingerprint()
    one.add(rows)
    for part in (slice(0, 5), slice(5, 8)):
        two.add([x[part] for x in rows])
    other.add([rows[0], rows[1].flip(0), *rows[2:]])
    assert one == two
    assert one.content != other.content
