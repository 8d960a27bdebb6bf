import pytest
import torch
from torch import nn

from glprune.measure import macs


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_multiply_accumulates_of_recurrent_layers_are_those_of_their_products(kind, gates):
    steps, inputs, width = 10, 4, 8
    layer = kind(inputs, width, batch_first=True).eval()
    assert macs(layer, (torch.randn(3, steps, inputs),)) == steps * gates * width * (inputs + width)


def test_multiply_accumulates_of_linear_and_convolution():
    network = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(35, 2)).eval()
    assert macs(network, (torch.randn(2, 3, 7),)) == 7 * 5 * 3 * 3 + 35 * 2
