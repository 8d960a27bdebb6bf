"""A whole run over very many input features: 100,000 columns, 1,000 rows, ten of them that matter.

Run: python benchmarks/wide_inputs.py
     python benchmarks/wide_inputs.py --columns 25000 --threads 1
Wall and processor seconds by stage, from reading the Parquet file to the report. Data are made and the
network is trained beforehand, in the working folder, which may be deleted.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from features import machine, versions
from torch import nn
from torch.nn import functional

import glprune
from glprune.schema.recipe import Recipe

HERE = Path(__file__).parent
TRUE, ROWS, HIDDEN = 10, 1000, 64
NETWORK = f"""
from torch import nn
def build(columns):
    return nn.Sequential(nn.Linear(columns, {HIDDEN}), nn.ReLU(), nn.Linear({HIDDEN}, 1))
"""


def prepare(columns: int, work: Path) -> None:
    """Write a planted regression and a network trained on it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, columns)).astype(np.float32)
    y = x[:, :TRUE].sum(axis=1) + 0.1 * rng.normal(size=ROWS).astype(np.float32)
    names = {f"x{n}": pa.array(x[:, n]) for n in range(columns)}
    pq.write_table(pa.table(names | {"y": pa.array(y)}), work / "data.parquet")
    (work / "network.py").write_text(NETWORK, encoding="utf-8")
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    network: nn.Module = scope["build"](columns)
    inputs, target = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        functional.mse_loss(network(inputs)[:, 0], target).backward()
        optimizer.step()
    torch.save(network.state_dict(), work / "model.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--columns", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("glprune-out") / "wide")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "wide.json")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    prepare(given.columns, given.work)
    recipe = Recipe(
        task="regression",
        model={
            "factory": f"{given.work.resolve()}/network.py:build",
            "arguments": {"columns": given.columns},
        },
        data={"file": str((given.work / "data.parquet").resolve()), "target": "y"},
        target={"max_features": TRUE},
        threads=given.threads,
    )
    wall, processor = time.perf_counter(), time.process_time()
    result = glprune.run(recipe, given.work / "model.pt", given.work / "bundle", overwrite=True)
    kept = [f.name for f in result.report.features if f.status == "kept"]
    record = {
        "columns": given.columns,
        "rows": ROWS,
        "threads": given.threads,
        "seconds": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "stages": result.report.timing.seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "kept": len(kept),
        "true": len({f"x{n}" for n in range(TRUE)} & set(kept)),
        "metrics": [m.model_dump() for m in result.report.performance],
    }
    content = {"machine": machine(), "versions": versions(), "record": record}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, seconds in record["stages"].items():
        print(f"{name:12} {seconds:8.1f} s")
    print(
        f"{given.columns:,} columns, {ROWS:,} rows, {given.threads} threads: {record['seconds']:.0f} s "
        f"({record['processor']:.0f} s of processor time), {record['megabytes']:,.0f} MB at most; kept "
        f"{record['kept']}, {record['true']} of {TRUE} true ones"
    )


if __name__ == "__main__":
    main()
