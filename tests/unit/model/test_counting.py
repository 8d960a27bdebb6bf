import pytest
import torch
from torch import nn

from glprune.errors import DataError, ModelError
from glprune.model.counting import macs
from glprune.model.task import concat_batches


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_multiply_accumulates_of_recurrent_layers_are_those_of_their_products(kind, gates):
    steps, inputs, width = 10, 4, 8
    layer = kind(inputs, width, batch_first=True).eval()
    assert macs(layer, (torch.randn(3, steps, inputs),)) == steps * gates * width * (inputs + width)


def test_multiply_accumulates_of_linear_and_convolution():
    network = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(35, 2)).eval()
    assert macs(network, (torch.randn(2, 3, 7),)) == 7 * 5 * 3 * 3 + 35 * 2


def batches(*sizes, width=2):
    return [((torch.full((n, width), float(n)), torch.arange(n)), torch.ones(n)) for n in sizes]


def test_outputs_of_batches_are_joined_in_order():
    (first, second), target = concat_batches(batches(3, 1), 4)
    assert first[:, 0].tolist() == [3, 3, 3, 1]
    assert second.tolist() == [0, 1, 2, 0]
    assert second.dtype == torch.int64
    assert len(target) == 4


def test_batches_of_another_shape_or_another_number_of_rows_are_refused():
    with pytest.raises(ModelError, match="change their shape from batch to batch"):
        concat_batches([*batches(3), *batches(1, width=3)], 4)
    for rows in (3, 5):
        with pytest.raises(DataError, match=f"hold {rows} rows at first and 4 later"):
            concat_batches(batches(3, 1), rows)
