"""Every type of Arrow in every role of a column: it works, or is refused in one line."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glprune.cli.starter_recipe import starter_recipe
from glprune.data import load_data
from glprune.errors import GlpruneError
from glprune.schema.recipe_loading import load_recipe

N = 60
TWO = ["u", "v"] * (N // 2)
COLUMNS = {
    "int": np.arange(N) % 5,
    "bool": np.arange(N) % 2 == 0,
    "uint64": np.arange(N, dtype=np.uint64) + 2**63,
    "half": (np.arange(N) % 2).astype(np.float16),
    "half with gaps": pa.array([None, 1.0] * (N // 2)).cast(pa.float16()),
    "nan": [float("nan")] * N,
    "inf": [float("inf")] * N,
    "decimal": pa.array([Decimal(i % 2) for i in range(N)], pa.decimal128(5, 2)),
    "decimal256": pa.array([1, 2] * (N // 2)).cast(pa.decimal256(40, 2)),
    "date": pa.array((np.arange(N) % 30).astype("M8[D]")),
    "stamp": pa.array((np.arange(N) % 30).astype("M8[ns]")),
    "duration": pa.array((np.arange(N) % 30).astype("m8[s]")),
    "time": pa.array([i % 30 for i in range(N)], pa.int32()).cast(pa.time32("s")),
    "text": TWO,
    "large text": pa.array(TWO, pa.large_string()),
    "text view": pa.array(TWO).cast(pa.string_view()),
    "categories": pa.array(TWO).dictionary_encode(),
    "categories of numbers": pa.array([1, 2] * (N // 2)).dictionary_encode(),
    "categories with gaps": pa.array([None, "a"] * (N // 2)).dictionary_encode(),
    "bytes": [b"a", b"\xff"] * (N // 2),
    "large bytes": pa.array([b"a"] * N, pa.large_binary()),
    "bytes view": pa.array([b"a"] * N, pa.binary_view()),
    "two bytes": pa.array([b"ab"] * N, pa.binary(2)),
    "null": pa.nulls(N),
    "list": [[1]] * N,
    "struct": [{"a": 1}] * N,
    "map": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64())),
}
RECIPE = """\
task: {task}
model:
  factory: "a.py:build"
  inputs: [{{name: x, dtype: {dtype}}}]
data: {{file: x.parquet, target: {target}, features: [{feature}]{split}}}
target: {{max_features: 1}}
search: path
policy: {{protected: [{protected}]}}
"""
ROLES = {
    "feature": {"feature": "z"},
    "code": {"feature": "z", "dtype": "int"},
    "label": {"target": "z"},
    "value": {"target": "z", "task": "regression"},
    "split": {"split": ", split: {column: z}"},
    "protected": {"protected": "z"},
}
TAKEN = {
    "feature": {"int", "bool", "half", "decimal", "decimal256", "categories of numbers"},
    "label": {"bool", "half", "decimal", "decimal256", "text", "large text", "text view", "categories", "categories of numbers"},
    "value": {"int", "bool", "half", "decimal", "decimal256", "categories of numbers"},
    "code": {"int", "bool", "half", "decimal", "decimal256", "categories of numbers"},
    "protected": set(COLUMNS) - {"uint64", "list", "struct", "map", "bytes", "large bytes", "bytes view", "two bytes"},
    "split": set(),
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_any_type_is_taken_or_refused_in_one_line(tmp_path, kind, role):
    pq.write_table(
        pa.table({"f": np.arange(N) % 7, "y": np.arange(N) % 2, "z": COLUMNS[kind]}), tmp_path / "x.parquet"
    )
    own = {"task": "binary", "dtype": "float", "target": "y", "feature": "f", "split": "", "protected": "f"}
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(**own | ROLES[role]))
    if kind in TAKEN[role]:
        assert load_data(load_recipe(path)).train.rows > 0
        return
    with pytest.raises(GlpruneError, match="'z'") as caught:
        load_data(load_recipe(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_recipe_is_written_beside_a_column_of_any_type(tmp_path, kind):
    pq.write_table(
        pa.table({"f": np.arange(N) % 7, "z": COLUMNS[kind], "y": np.arange(N) % 2}), tmp_path / "x.parquet"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(starter_recipe(tmp_path / "x.parquet", tmp_path))
    recipe = load_recipe(path)
    assert recipe.data.target == "y"
    assert ("z" in recipe.data.exclude) == (kind not in TAKEN["feature"] | {"half with gaps", "nan", "inf"})
