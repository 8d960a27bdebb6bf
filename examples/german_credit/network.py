"""The credit network: standardised columns in, the logit of class 'bad' out."""

from torch import nn


def build(columns: int = 61) -> nn.Module:
    return nn.Sequential(
        nn.Linear(columns, 32),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 1),
    )
