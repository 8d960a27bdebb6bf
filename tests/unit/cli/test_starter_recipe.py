"""The recipe that ``glprune init`` writes: what it guesses, what it leaves open, and that it loads."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from glprune.cli.main import main
from glprune.data import load_data
from glprune.schema.recipe import RefitSpec, TrainSpec
from glprune.schema.recipe_loading import load_recipe

ROWS = 120
SPLIT = ["train"] * 60 + ["valid"] * 30 + ["test"] * 30


def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "customer_id": np.arange(ROWS) + 1000,
            "age": rng.integers(18, 80, ROWS),
            "income": rng.normal(size=ROWS),
            "churned": rng.integers(0, 2, ROWS),
            "part": SPLIT,
        }
    )


def initialised(tmp_path, columns, *options, suffix="csv"):
    """The recipe of a file, and its text."""
    if suffix == "csv":
        columns.to_csv(tmp_path / "data.csv", index=False)
    else:
        pq.write_table(
            columns if isinstance(columns, pa.Table) else pa.Table.from_pandas(columns),
            tmp_path / "data.parquet",
        )
    out = tmp_path / "recipe.yaml"
    done = CliRunner().invoke(main, ["init", str(tmp_path / f"data.{suffix}"), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    return load_recipe(out), out.read_text()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_split_and_identifiers_are_no_targets(tmp_path, suffix):
    recipe, _ = initialised(tmp_path, frame(), suffix=suffix)
    assert recipe.data.target == "churned"
    assert recipe.data.split.column == "part"
    assert recipe.data.exclude == ["customer_id"]
    assert load_data(recipe).columns == ("age", "income")


@pytest.mark.parametrize("of", ["large text", "categories"])
def test_a_split_column_of_any_type_of_text_is_seen(tmp_path, of):
    text = pa.array(SPLIT, pa.large_string())
    table = pa.table(
        {
            "a": np.linspace(0, 1, ROWS),
            "y": [0, 1] * 60,
            "part": text if of == "large text" else text.dictionary_encode(),
        }
    )
    recipe, _ = initialised(tmp_path, table, suffix="parquet")
    assert (recipe.data.split.column, recipe.data.target) == ("part", "y")
    assert load_data(recipe).columns == ("a",)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("id", np.arange(ROWS)),
        ("patientId", np.random.default_rng(1).permutation(10 * ROWS)[:ROWS]),
        ("sample.ID", [f"s{i}" for i in range(ROWS)]),
        ("n", np.arange(ROWS) + 7),
        ("hash", [f"{i * 7919:x}!" for i in range(ROWS)]),
        ("visit_id", np.arange(ROWS) // 1.5 // 1),
    ],
)
def test_an_identifier_at_the_end_is_neither_target_nor_feature(tmp_path, name, values):
    values = np.array(values).astype(int) if name == "visit_id" else values
    recipe, text = initialised(tmp_path, frame().drop(columns="customer_id").assign(**{name: values}))
    assert recipe.data.target == "churned"
    assert recipe.data.exclude == [name]
    assert f'#   "{name}": seems to name the rows' in text


@pytest.mark.parametrize(
    ("name", "values"),
    [("paid", np.arange(ROWS) % 7), ("region_id", np.arange(ROWS) % 5), ("speed", np.arange(ROWS) / 3)],
)
def test_a_column_that_repeats_or_measures_is_a_feature(tmp_path, name, values):
    recipe, _ = initialised(tmp_path, frame().assign(**{name: values}), "--target", "churned")
    assert name in load_data(recipe).columns


def test_the_target_can_be_named(tmp_path):
    recipe, text = initialised(tmp_path, frame(), "--target", "age")
    assert (recipe.data.target, recipe.task) == ("age", "regression")
    assert 'target: "age"\n' in text
    assert "churned" in load_data(recipe).columns
    assert "logits" not in text


def test_training_has_its_defaults(tmp_path):
    recipe, text = initialised(tmp_path, frame())
    assert recipe.train == TrainSpec()
    assert recipe.refit == RefitSpec()
    assert "train:" not in text.replace("{train: 0.6", "")
    assert text.endswith("seed: 0\n")
    assert not text.endswith("\n\n")


def one_hot(values, prefix, **how):
    return pd.get_dummies(pd.Series(values), prefix=prefix, dtype=int, **how)


@pytest.mark.parametrize(
    ("how", "levels"),
    [
        ({}, 3),
        ({"drop_first": True}, 2),
        ({"dummy_na": True}, 4),
        ({"prefix_sep": "="}, 3),
        ({"prefix_sep": "__"}, 3),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_one_hot_columns_are_a_feature_also_without_a_level_or_a_value(tmp_path, how, levels, missing):
    rng = np.random.default_rng(2)
    job = np.where(
        rng.random(ROWS) < 0.2 * missing, None, rng.choice(["no", "full_time", "half_time_x"], ROWS)
    )
    size = rng.choice(["s", "m", "l"], ROWS)
    columns = pd.concat([one_hot(job, "job_kind", **how), one_hot(size, "job_size", **how), frame()], axis=1)
    recipe, text = initialised(tmp_path, columns, "--target", "churned")
    groups = {f.name: len(f.columns) for f in load_data(recipe).features if len(f.columns) > 1}
    assert groups["job_kind"] == levels
    assert set(groups) == {"job_kind", "job_size"}
    assert "at most one is 1 in a row" in text


def test_one_hot_columns_with_empty_cells_are_a_feature_and_the_cells_are_named(tmp_path):
    group = one_hot(["a", "b", "c"] * 40, "kind").astype(float)
    group.iloc[4] = np.nan
    recipe, text = initialised(tmp_path, pd.concat([group, frame()], axis=1), "--target", "churned")
    assert recipe.data.feature_groups == {"kind": "kind_*"}
    assert '# CHECK: "kind_a" is empty, NaN or infinite in 1 row; a run refuses them' in text


def test_flags_that_hold_at_once_are_no_feature(tmp_path):
    flags = pd.DataFrame({"has_car": [0, 1] * 60, "has_house": [0, 1, 1] * 40, "has_boat": [0] * ROWS})
    recipe, _ = initialised(tmp_path, pd.concat([flags, frame()], axis=1), "--target", "churned")
    assert recipe.data.feature_groups == {}


def test_the_last_of_some_one_hot_columns_is_no_target(tmp_path):
    columns = pd.concat([frame(), one_hot(["a", "b", "c"] * 40, "kind")], axis=1)
    recipe, _ = initialised(tmp_path, columns)
    assert recipe.data.target == "churned"


def test_texts_are_offered_for_encoding_with_their_values(tmp_path):
    columns = frame().assign(
        color=["red", "green", "blue", "\x1b[2J"] * 30, word=[f"w{i % 99}" for i in range(ROWS)]
    )
    recipe, text = initialised(tmp_path, columns, "--target", "churned")
    assert recipe.data.exclude == ["customer_id", "color", "word"]
    assert '#   "color": 4 texts (\\u001b[2J, blue, green, ...)' in text
    assert '#   "word": 99 texts (w0, w1, w10, ...)' in text
    assert 'pandas.get_dummies(rows, columns=["color", "word"], prefix_sep="=", dtype=int)' in text
    encoded = pd.get_dummies(columns, columns=["color"], prefix_sep="=", dtype=int).drop(columns="word")
    (tmp_path / "recipe.yaml").unlink()
    again, _ = initialised(tmp_path, encoded, "--target", "churned")
    assert again.data.feature_groups == {"color": "color=*"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_empty_texts_are_counted_and_their_codes_fit_an_embedding(tmp_path, suffix):
    columns = frame()
    columns["town"] = (["Bern", "Chur", "Basel", None] * ROWS)[:ROWS]
    _, text = initialised(tmp_path, columns, "--target", "churned", suffix=suffix)
    assert '"town": 3 texts (Basel, Bern, Chur), empty in 30 rows' in text
    code = text.partition("codes for an embedding: ")[2].partition(",")[0]
    codes = eval(code, {"rows": columns, "name": "town"})
    assert (codes.min(), codes.nunique()) == (0, 4)


def test_what_cannot_be_encoded_is_excluded_with_its_reason(tmp_path):
    columns = (
        frame()
        .drop(columns="part")
        .assign(
            number=["?" if i == 16 else str(i) for i in range(ROWS)],
            day=pd.date_range("2020-01-01", periods=ROWS).astype(str),
            fold=["train", "train", "val"] * 40,
            nothing=None,
        )
    )
    recipe, text = initialised(tmp_path, columns, "--target", "churned")
    assert recipe.data.exclude == ["customer_id", "number", "day", "fold", "nothing"]
    assert "\"number\": not numeric ('number' holds '?' in row 17); fill or drop what is missing" in text
    assert '"fold": may be the split; write train, valid and test to use it for data.split' in text
    assert "get_dummies" not in text


def test_rows_without_a_label_are_counted_and_are_no_class(tmp_path):
    columns = frame()
    columns["churned"] = columns["churned"].map({0: "no", 1: "yes"})
    columns.loc[5, "churned"] = None
    recipe, text = initialised(tmp_path, columns)
    assert recipe.data.classes == ["no", "yes"]
    assert (
        "# CHECK: a run refuses rows without a label. The target is empty in 1 row, first in row 6; drop"
        in text
    )
    assert "under data.classes" not in text


@pytest.mark.parametrize("missing", ["NA", "None", "null"])
def test_a_class_that_reads_like_a_missing_value_is_offered_as_one(tmp_path, missing):
    columns = frame()
    columns["churned"] = (["high", "low", missing] * ROWS)[:ROWS]
    recipe, text = initialised(tmp_path, columns)
    assert recipe.data.classes == ["high", "low"]
    assert f"empty in 40 rows, first in row 3 ('{missing}'); drop them, or list '{missing}' under" in text
    three = [
        "task=multiclass",
        "target.max_drop.metric=accuracy",
        f'data.classes=["high", "low", "{missing}"]',
    ]
    listed = load_recipe(tmp_path / "recipe.yaml", three)
    assert load_data(listed).classes == ("high", "low", missing)


def test_every_text_for_a_missing_value_is_named(tmp_path):
    columns = frame()
    columns["churned"] = (["high", "low", "NA", "?", None] * ROWS)[:ROWS]
    assert (
        "('NA' and '?'); drop them, or list 'NA' and '?' under data.classes."
        in initialised(tmp_path, columns)[1]
    )


@pytest.mark.parametrize("labels", [["b", "a", "c"], [10, 9, 2], ["x y", "é", "#"]])
def test_three_classes_are_written_for_a_check_in_the_order_of_a_run(tmp_path, labels):
    columns = frame()
    columns["churned"] = (labels * ROWS)[:ROWS]
    recipe, text = initialised(tmp_path, columns)
    assert recipe.data.classes == sorted(labels)
    assert "# CHECK: in the order of the network's outputs; this order is only sorted" in text
    guessed = load_data(recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": None})}))
    assert load_data(recipe).classes == guessed.classes == tuple(map(str, sorted(labels)))


def test_no_classes_are_written_for_numbers(tmp_path):
    columns = frame()
    columns["churned"] = np.random.default_rng(1).normal(size=ROWS)
    assert "classes:" not in initialised(tmp_path, columns)[1]


@pytest.mark.parametrize(
    ("content", "options", "code", "message"),
    [
        (
            "a,b\n1,2\n3,4\n",
            ["--target", "bb"],
            2,
            "--target: data.csv has no column 'bb'. Did you mean 'b'?",
        ),
        ("a,b\n1,2\n3,2\n", [], 4, "data.csv: target 'b' has 1 value; name another column with --target."),
        (
            "a,b\n1,yes\n3,NA\n",
            [],
            4,
            "data.csv: target 'b' has 1 value and is empty in 1 row, first in row 2 ('NA'); drop them, or list "
            "'NA' under data.classes; name another column with --target.",
        ),
        (",b\n0,2\n1,4\n", [], 4, "data.csv: column 1 has no name; if it numbers the rows, remove it, else"),
        (
            "1.5,2\n0,2\n1,4\n",
            [],
            4,
            "data.csv: no column has a name. The names are numbers ('1.5', '2'); does",
        ),
        (
            "a;b\n1;2\n",
            [],
            4,
            "data.csv: the columns are separated by semicolons ('a;b'); save it with commas",
        ),
    ],
)
def test_what_no_recipe_can_be_written_for_is_one_line(
    tmp_path, monkeypatch, content, options, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text(content)
    done = CliRunner().invoke(main, ["init", "data.csv", *options])
    assert done.exit_code == code
    assert done.stderr.startswith(f"glprune: {message}"), done.stderr
    assert (len(done.stderr.splitlines()), done.stdout) == (1, "")
