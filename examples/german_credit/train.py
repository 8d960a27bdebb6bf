"""Train the credit network on data.csv and save model.pt (a state dict).

Columns are standardised with mean and standard deviation (ddof 0) of the training rows, which is
what `data.standardize: train` does in the recipe.

Run: python examples/german_credit/train.py
"""

import copy
import csv
from pathlib import Path

import numpy as np
import torch
from network import build
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

HERE = Path(__file__).parent


def load() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    with (HERE / "data.csv").open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    features = [i for i, name in enumerate(header) if name not in ("credit", "split")]
    x = np.array([[float(row[i]) for i in features] for row in rows])
    y = np.array([row[header.index("credit")] == "bad" for row in rows], dtype=np.float32)
    split = np.array([row[header.index("split")] for row in rows])
    train = x[split == "train"]
    x = ((x - train.mean(0)) / train.std(0)).astype(np.float32)
    return {
        s: (torch.from_numpy(x[split == s]), torch.from_numpy(y[split == s]))
        for s in ("train", "valid", "test")
    }


def train(data: dict[str, tuple[torch.Tensor, torch.Tensor]], seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    x, y = data["train"]
    network = build(x.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    best, best_loss = copy.deepcopy(network), float("inf")
    for _ in range(150):
        network.train()
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(network(x[rows])[:, 0], y[rows]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            loss = float(
                functional.binary_cross_entropy_with_logits(network(data["valid"][0])[:, 0], data["valid"][1])
            )
        if loss < best_loss:
            best, best_loss = copy.deepcopy(network), loss
    return best.eval()


def main() -> None:
    data = load()
    network = train(data)
    for name, (x, y) in data.items():
        with torch.no_grad():
            print(f"{name}: AUROC {float(binary_auroc(network(x)[:, 0], y.long())):.4f} on {len(y)} rows")
    torch.save(network.state_dict(), HERE / "model.pt")


if __name__ == "__main__":
    main()
