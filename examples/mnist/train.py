"""Train the digit network on data.parquet and save model.pt (a state dict).

Run: python examples/mnist/train.py
"""

import copy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from network import build
from torch.nn import functional

HERE = Path(__file__).parent


def load() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    table = pq.read_table(HERE / "data.parquet")
    pixels = [name for name in table.column_names if name not in ("digit", "split")]
    x = np.stack([table[name].to_numpy() for name in pixels], axis=1).astype(np.float32)
    y = table["digit"].to_numpy().astype(np.int64)
    split = np.array(table["split"].to_pylist())
    return {
        s: (torch.from_numpy(x[split == s]), torch.from_numpy(y[split == s]))
        for s in ("train", "valid", "test")
    }


def accuracy(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())


def train(data: dict[str, tuple[torch.Tensor, torch.Tensor]], seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    x, y = data["train"]
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    best, best_score = copy.deepcopy(network), 0.0
    for _ in range(60):
        network.train()
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
        network.eval()
        score = accuracy(network, *data["valid"])
        if score > best_score:
            best, best_score = copy.deepcopy(network), score
    return best.eval()


def main() -> None:
    data = load()
    network = train(data)
    for name, (x, y) in data.items():
        print(f"{name}: accuracy {accuracy(network, x, y):.4f} on {len(y)} rows")
    torch.save(network.state_dict(), HERE / "model.pt")


if __name__ == "__main__":
    main()
