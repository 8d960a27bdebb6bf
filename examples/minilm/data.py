"""Sentences of Python's documentation for the sentence encoder, as word pieces; see make_data.py."""

from functools import cache
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, StackDataset

FILE = Path(__file__).parent / "data.parquet"


@cache
def sentences(split: str) -> dict[str, Tensor]:
    """Word pieces and which of them are there, int64, both (rows, longest sentence)."""
    table = pq.read_table(FILE)
    rows = table.filter(pc.equal(table["split"], split))["pieces"].to_pylist()
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def loader(split: str) -> DataLoader:
    return DataLoader(StackDataset(**sentences(split)), batch_size=50, shuffle=split == "train")
