import gzip
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from glprune.data import load_data
from glprune.errors import DataError, GlpruneError, RecipeError
from glprune.schema.recipe_loading import load_recipe

BASE = """\
task: {task}
model: {{factory: "a.py:build"}}
data: {data}
target: {{lambda: 1}}
"""


def recipe_of(tmp_path, data, task="binary"):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE.format(task=task, data=data))
    return load_recipe(path)


def frame(rows=40):
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=rows),
        "b": rng.normal(size=rows),
        "c": np.arange(rows),
        "y": ["no", "yes"] * (rows // 2),
    }


def save(tmp_path, columns, name="x.parquet"):
    pq.write_table(pa.table(columns), tmp_path / name)


def test_columns_are_matched_by_name_in_files_of_other_order(tmp_path):
    columns = frame()
    save(tmp_path, columns, "train.parquet")
    save(tmp_path, {k: columns[k] for k in ("y", "c", "b", "a")}, "valid.parquet")
    save(tmp_path, {k: columns[k] for k in ("b", "y", "a", "c")}, "test.parquet")
    data = load_data(
        recipe_of(tmp_path, "{train: train.parquet, valid: valid.parquet, test: test.parquet, target: y}")
    )
    assert data.columns == ("a", "b", "c")
    for part in (data.train, data.valid, data.test):
        np.testing.assert_array_equal(part.inputs[0][:, 0].numpy(), columns["a"].astype(np.float32))
        np.testing.assert_array_equal(part.inputs[0][:, 2].numpy(), columns["c"].astype(np.float32))


def test_features_stand_in_the_order_of_the_recipe_and_patterns_in_file_order(tmp_path):
    save(tmp_path, {"p2": [1.0, 2] * 20, "z": [3.0, 5] * 20, "p1": [4.0, 7] * 20, "y": [0, 1] * 20})
    data = load_data(recipe_of(tmp_path, '{file: x.parquet, target: y, features: [z, "p*"]}'))
    assert data.columns == ("z", "p2", "p1")


def test_a_feature_joins_its_columns_by_name_or_pattern(tmp_path):
    save(tmp_path, frame())
    data = load_data(recipe_of(tmp_path, '{file: x.parquet, target: y, feature_groups: {ac: [a, "c*"]}}'))
    assert [(f.name, f.columns) for f in data.features] == [("ac", (0, 2)), ("b", (1,))]


def test_shares_are_stratified_disjoint_and_the_same_for_a_seed(tmp_path):
    columns = frame(100) | {"y": ["yes"] * 20 + ["no"] * 80}
    save(tmp_path, columns)
    first, again = (load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}")) for _ in range(2))
    assert [s.rows for s in (first.train, first.valid, first.test)] == [60, 20, 20]
    assert [int(s.target.sum()) for s in (first.train, first.valid, first.test)] == [12, 4, 4]
    rows = torch.cat([s.inputs[0][:, 2] for s in (first.train, first.valid, first.test)])
    assert sorted(rows.tolist()) == list(range(100))
    assert torch.equal(first.train.inputs[0], again.train.inputs[0])


def test_a_split_column_decides_the_rows(tmp_path):
    save(tmp_path, frame() | {"s": ["train"] * 20 + ["valid"] * 10 + ["test"] * 10})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, split: {column: s}}"))
    assert data.columns == ("a", "b", "c")
    assert data.test.inputs[0][:, 2].tolist() == list(range(30, 40))


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], ["0", "1"]])
def test_labels_are_one_whatever_their_type(tmp_path, values):
    save(tmp_path, frame() | {"y": values * 20})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, classes: [1, 0]}"))
    assert data.classes == ("1", "0")
    assert float(data.train.target.double().mean()) == 0.5
    raw = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))
    assert raw.classes == ("0", "1")
    assert any("data.classes is not given" in n for n in raw.notes)


def test_booleans_are_features_and_labels(tmp_path):
    save(tmp_path, frame() | {"b": [True, False] * 20, "y": [True, False] * 20})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))
    assert data.classes == ("False", "True")
    assert set(data.train.inputs[0][:, 1].tolist()) == {0.0, 1.0}


def test_standardisation_is_stated_and_splits_stay_raw(tmp_path):
    save(tmp_path, frame())
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, standardize: train}"))
    train = data.train.inputs[0].double()
    assert torch.allclose(data.standardization[0].mean, train.mean(0))
    assert torch.allclose(data.standardization[0].std, train.std(0, unbiased=False))
    assert float(train[:, 2].max()) > 30
    assert load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}")).standardization == (None,)


@pytest.mark.parametrize(("listed", "scaled"), [("[c, a]", [0, 2]), ('["[bc]"]', [1, 2]), ("[b]", [1])])
def test_listed_columns_alone_are_standardised(tmp_path, listed, scaled):
    save(tmp_path, frame())
    (found,) = load_data(
        recipe_of(tmp_path, f"{{file: x.parquet, target: y, standardize: {listed}}}")
    ).standardization
    (whole,) = load_data(
        recipe_of(tmp_path, "{file: x.parquet, target: y, standardize: train}")
    ).standardization
    others = [n for n in range(3) if n not in scaled]
    assert torch.equal(found.mean[scaled], whole.mean[scaled])
    assert torch.equal(found.std[scaled], whole.std[scaled])
    assert set(found.mean[others].tolist()) <= {0.0}
    assert set(found.std[others].tolist()) <= {1.0}


@pytest.mark.parametrize(
    ("listed", "fragment"),
    [
        ("[a, zz]", "no column 'zz'"),
        ("[y]", "'y' feeds no input of the network"),
        ("[d]", "'d' feeds no input of the network"),
        ("[]", "a list of at least 1"),
        ("trian", "'none' or 'train' or a list"),
        ("[1]", "should be text"),
    ],
)
def test_a_list_of_other_columns_is_refused_with_its_line(tmp_path, listed, fragment):
    save(tmp_path, frame() | {"d": [1.0, 2.0] * 20})
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+") as caught:
        load_data(recipe_of(tmp_path, f"{{file: x.parquet, target: y, exclude: [d], standardize: {listed}}}"))
    assert fragment in str(caught.value)


def test_a_constant_column_is_refused_where_it_is_listed_alone(tmp_path):
    save(tmp_path, frame() | {"b": [1.0] * 40})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, standardize: [a, c]}"))
    assert any("'b' is" in n and "constant" in n for n in data.notes)
    with pytest.raises(DataError, match="'b' is constant"):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, standardize: [a, b]}"))


def test_constant_columns_are_noted_and_cannot_be_standardised(tmp_path):
    save(tmp_path, frame() | {"b": [1.0] * 40})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))
    assert any("'b' is" in n and "constant" in n for n in data.notes)
    with pytest.raises(DataError, match="'b' is constant"):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, standardize: train}"))


@pytest.mark.parametrize(
    ("change", "data", "fragment"),
    [
        ({"a": [None] + [1.0] * 39}, "{file: x.parquet, target: y}", "first in row 1"),
        (
            {"a": [1.0] * 7 + [float("nan")] * 33},
            "{file: x.parquet, target: y}",
            "33 empty, NaN or Inf in 'a', first in row 8",
        ),
        ({"a": [float("inf")] * 40}, "{file: x.parquet, target: y}", "'a' is not finite"),
        ({"a": ["x"] * 40}, "{file: x.parquet, target: y}", "'a' is not numeric ('a' holds 'x' in row 1)"),
        ({"y": ["no", None] * 20}, "{file: x.parquet, target: y}", "empty in 20 rows, first in row 2"),
        ({"y": ["no"] * 40}, "{file: x.parquet, target: y}", "has 1 value ('no')"),
        ({"y": ["a", "b", "c", "d"] * 10}, "{file: x.parquet, target: y}", "has 4 values"),
        ({}, "{file: x.parquet, target: y, classes: [no, maybe]}", "holds 'yes' (row 2)"),
        ({}, "{file: x.parquet, target: yy}", "no column 'yy'. Did you mean 'y'?"),
        ({}, "{file: x.parquet, target: y, features: [a, bb]}", "no column 'bb'. Did you mean 'b'?"),
        ({}, '{file: x.parquet, target: y, features: ["q*"]}', "no column 'q*'"),
        ({}, "{file: x.parquet, target: y, features: [a, y]}", "'y' is the target"),
        ({}, "{file: x.parquet, target: y, exclude: [a, b, c]}", "no feature column is left"),
        ({}, "{file: x.parquet, target: y, feature_groups: {g: [a, b], h: [b]}}", "'b' is also in 'g'"),
        ({}, "{file: x.parquet, target: y, feature_groups: {c: [a, b]}}", "rename the group"),
        ({}, "{file: absent.parquet, target: y}", "No such file"),
        ({}, "{file: x.xlsx, target: y}", "No such file"),
        ({}, "{file: x.parquet, target: y, split: {column: c}}", "split column 'c' holds '0' in row 1"),
    ],
)
def test_defects_are_named_in_one_line(tmp_path, change, data, fragment):
    save(tmp_path, frame() | change)
    with pytest.raises(GlpruneError) as caught:
        load_data(recipe_of(tmp_path, data))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError | RecipeError)


HALF = np.array([0.0, 1.0] * 20, np.float16)
LABELS = ["no", "yes"] * 19
KINDS_OF_TEXT = {
    "text": lambda values: pa.array(values, pa.string()),
    "large text": lambda values: pa.array(values, pa.large_string()),
    "categories": lambda values: pa.array(values, pa.string()).dictionary_encode(),
    "categories of large text": lambda values: pa.array(values, pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "csv.gz"])
@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("binary", [0.0, 1.0] * 19 + [float("nan"), 1.0]),
        ("binary", [0.0, 1.0] * 19 + [None, 1.0]),
        ("binary", [*LABELS, None, "yes"]),
        ("binary", [*LABELS, "", "yes"]),
        ("multiclass", [*LABELS, " ", "maybe"]),
        ("multiclass", [*LABELS, "nan", "maybe"]),
        ("multiclass", [*LABELS, "NA", "maybe"]),
        ("multiclass", [True, False] * 19 + [None, True]),
        ("regression", [0.5, 1.5] * 19 + [float("nan"), 1.0]),
        ("regression", [0, 1] * 19 + [None, 1]),
    ],
)
def test_an_empty_label_is_refused_with_its_row_in_every_kind_of_file(tmp_path, suffix, task, values):
    frame_ = pd.DataFrame(frame() | {"y": pd.array(values) if None in values else values})
    if suffix == "parquet":
        pq.write_table(pa.table(frame() | {"y": values}), tmp_path / "x.parquet")
    else:
        frame_.to_csv(tmp_path / f"x.{suffix}", index=False, sep="\t" if suffix == "tsv" else ",")
    with pytest.raises(
        DataError, match=r"target 'y' is empty in 1 row, first in row 39( \('(nan|NA)'\))?; drop"
    ):
        load_data(recipe_of(tmp_path, f"{{file: x.{suffix}, target: y}}", task))


def test_the_name_of_a_class_may_be_a_mark_of_missing_values_if_the_recipe_lists_it(tmp_path):
    save(tmp_path, frame() | {"y": ["NA", "EU"] * 20})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, classes: [EU, NA]}"))
    assert data.train.target.bincount().tolist() == [12, 12]
    with pytest.raises(
        DataError, match=r"first in row 1 \('NA'\); drop them, or list 'NA' under data.classes"
    ):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))


def test_a_listed_mark_of_missing_values_may_have_blanks_and_none_is_offered_to_regression(tmp_path):
    save(tmp_path, frame() | {"y": ["NA ", "EU"] * 20})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, classes: [EU, 'NA ']}"))
    assert data.train.target.bincount().tolist() == [12, 12]
    save(tmp_path, frame() | {"y": ["?", "1.5"] * 20})
    with pytest.raises(DataError, match=r"empty in 20 rows, first in row 1 \('\?'\); drop them\.$"):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}", "regression"))


@pytest.mark.parametrize("kind", KINDS_OF_TEXT)
def test_text_of_every_type_is_a_target_a_split_and_a_protected_column(tmp_path, kind):
    of = KINDS_OF_TEXT[kind]
    split = ["train"] * 20 + ["valid"] * 10 + ["test"] * 10
    own = {"s": of(split), "y": of(["no", "yes"] * 20), "p": of([None, "u", "v", ""] * 10)}
    save(tmp_path, frame() | own)
    path = tmp_path / "recipe.yaml"
    text = BASE.format(task="binary", data="{file: x.parquet, target: y, split: {column: s}, exclude: [p]}")
    path.write_text(text + "policy: {protected: [p]}\n")
    data = load_data(load_recipe(path))
    assert (data.train.rows, data.classes) == (20, ("no", "yes"))
    assert data.protected[0].labels == ("missing", "u", "v")
    assert data.protected[0].values["test"].tolist() == [2, 0] + [0, 1, 2, 0] * 2


def test_numbers_of_16_bits_and_categories_of_numbers_are_features_targets_and_protected(tmp_path):
    category = pa.array([3, 4] * 20).dictionary_encode()
    save(tmp_path, frame() | {"a": HALF, "b": category, "y": HALF, "p": HALF})
    path = tmp_path / "recipe.yaml"
    data = "{file: x.parquet, target: y, exclude: [p]}"
    path.write_text(BASE.format(task="binary", data=data) + "policy: {protected: [p]}\n")
    found = load_data(load_recipe(path))
    assert found.classes == ("0", "1")
    assert set(found.train.inputs[0][:, 1].tolist()) == {3.0, 4.0}
    assert set(found.protected[0].values["test"].tolist()) == {0.0, 1.0}
    assert load_data(recipe_of(tmp_path, data, "regression")).train.target.max() == 1.0


def test_splits_that_are_one_file_and_names_that_are_numbers_are_noted(tmp_path):
    save(tmp_path, frame())
    save(tmp_path, frame() | {"a": [0.5] * 40}, "other.parquet")
    same = "{train: x.parquet, valid: other.parquet, test: x.parquet, target: y}"
    notes = load_data(recipe_of(tmp_path, same)).notes
    assert "data.train and data.test are the same file; what is measured on test is not held out." in notes
    assert len([n for n in notes if "same file" in n]) == 1
    written(tmp_path, header="", rows=ROWS[2:])
    notes = load_data(recipe_of(tmp_path, "{file: x.csv}", "distillation")).notes
    assert "x.csv: The names are numbers ('0.5', '4', '0'); does the file begin with a header?" in notes


def test_files_of_a_folder_may_store_a_column_as_text_and_as_categories(tmp_path):
    (tmp_path / "shards").mkdir()
    for number, kind in enumerate(KINDS_OF_TEXT.values()):
        save(tmp_path, frame() | {"y": kind(["no", "yes"] * 20)}, f"shards/{number}.parquet")
    assert load_data(recipe_of(tmp_path, "{file: shards, target: y}")).train.rows == 96


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "cannot be read"),
        (b"a,b,y\n", "no rows"),
        (b"a,b,y\n1,2,0\n1,2\n", "row 2 has 2 cells and the header 3"),
        (b"a,a,y\n1,2,0\n", "'a' is there twice"),
        (b"a,b,y\n1,\xff\xfe,0\n2,3,1\n", "not numeric"),
    ],
)
def test_broken_csv_is_one_line(tmp_path, content, fragment):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(GlpruneError) as caught:
        load_data(recipe_of(tmp_path, "{file: x.csv, target: y}"))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


ROWS = [(i / 4, i * i, i % 2) for i in range(40)]


def written(tmp_path, separator=",", decimal=".", name="x.csv", header="a,b,y", rows=ROWS):
    lines = [separator.join(str(v).replace(".", decimal) for v in row) for row in rows]
    text = "\n".join([*([header.replace(",", separator)] if header else []), *lines, ""])
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wt") as stream:
        stream.write(text)


def changed(row, value):
    return [(value, *r[1:]) if i == row else r for i, r in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"separator": ";"}, "the columns are separated by semicolons ('a;b;y'); save it with commas between"),
        ({"separator": ";", "decimal": ","}, "separated by semicolons"),
        ({"separator": "\t"}, "separated by tabs (.*); save it with commas .*, or give its name the end .tsv"),
        ({"separator": "|"}, "separated by vertical bars"),
        ({"separator": " "}, "separated by spaces"),
        ({"separator": ";", "name": "x.tsv"}, "separated by semicolons"),
        ({"separator": ";", "name": "x.csv.gz"}, "separated by semicolons"),
        ({"decimal": ","}, "row 1 has 4 cells and the header 3; quote texts that hold ',', write decimal points"),
        ({"rows": changed(16, "?")}, "column 'a' is not numeric ('a' holds '?' in row 17); fill or drop what"),
        ({"rows": changed(39, "n/a ")}, "'a' holds 'n/a ' in row 40); fill or drop what is missing"),
        ({"rows": changed(16, '"1,5"')}, "'a' holds '1,5' in row 17); write decimal points, and no other commas"),
        ({"rows": changed(16, '"1,234.5"')}, "'a' holds '1,234.5' in row 17); write decimal points, and no"),
        ({"rows": changed(16, "12 kg")}, "'a' holds '12 kg' in row 17); encode as numbers"),
        ({"rows": changed(16, "2020-01-31")}, "'a' holds '2020-01-31' in row 17); encode dates as numbers"),
        ({"rows": [("2020-01-31", *r[1:]) for r in ROWS]}, "'a' holds 2020-01-31 in row 1); encode as numbers"),
        ({"rows": [("", *r[1:]) for r in ROWS]}, "column 'a' is not numeric ('a' is empty); fill it"),
        ({"rows": changed(16, "")}, "'a' is not finite: 1 empty, NaN or Inf in 'a', first in row 17"),
        ({"rows": changed(16, "-inf")}, "'a' is not finite: 1 empty, NaN or Inf in 'a', first in row 17"),
        ({"header": ",b,y"}, "column 1 has no name; if it numbers the rows, remove it"),
        ({"header": ""}, "'0' is there twice; rename one. The names are numbers ('0.0', '0', '0'); does the"),
        ({"header": "", "rows": ROWS[2:]}, "no column 'y'. The names are numbers ('0.5', '4', '0'); does the"),
        ({"header": "", "rows": [(*r[:2], "u" if r[2] else "v") for r in ROWS]}, "the first row holds values"),
        ({"header": "a,b,yy"}, "no column 'y'. Did you mean 'yy'?"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_one_line_with_the_first_bad_value_and_a_hint(tmp_path, how, message):
    written(tmp_path, **how)
    with pytest.raises(GlpruneError) as caught:
        load_data(recipe_of(tmp_path, f"{{file: {how.get('name', 'x.csv')}, target: y}}"))
    assert re.search(message.translate({ord(c): "\\" + c for c in "()[]?"}), str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "separator"), [("x.csv", ","), ("x.tsv", "\t"), ("x.csv.gz", ","), ("X.TSV.GZ", "\t")]
)
def test_files_with_tabs_and_compressed_files_are_read(tmp_path, name, separator):
    written(tmp_path, separator, name=name)
    data = load_data(recipe_of(tmp_path, f"{{file: {name}, target: y}}"))
    assert data.columns == ("a", "b")


@pytest.mark.parametrize(
    "header", ['"a","b","y"', '"a;b;c","b d e",y', "0,1,y", "a,b,y", "400.5,401.5,y", "a b,c d;e;f;g,y"]
)
def test_names_in_quotes_with_separators_and_of_numbers_are_names(tmp_path, header):
    written(tmp_path, header=header)
    data = load_data(recipe_of(tmp_path, "{file: x.csv, target: y}"))
    assert data.columns == tuple(n.strip('"') for n in header.split(",")[:2])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK\x03\x04\x14", "this is an Excel workbook or another zip archive; save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1", "this is an Excel workbook"),
        (b"PAR1\x15\x04", "this is a Parquet file; give its name the end .parquet"),
        (b"ARROW1\0\0", "this is an Arrow or Feather file"),
        (gzip.compress(b"a,b,y\n1,2,0\n", mtime=0), "this is compressed; give its name the end .csv.gz"),
        ("a,b,y\n1,2,0\n".encode("utf-16"), "this is text in UTF-16; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.xlsx"])
def test_a_file_of_another_kind_is_known_by_its_first_bytes(tmp_path, raw, message, name):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_data(recipe_of(tmp_path, f"{{file: {name}, target: y}}"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "split column 's' is empty in row 7; use train, valid and test"),
        ("", "split column 's' is empty in row 7"),
        ("nan", "split column 's' is empty in row 7"),
        ("Train", "split column 's' holds 'Train' in row 7"),
        ("valid ", "split column 's' holds 'valid ' in row 7"),
    ],
)
def test_a_split_that_is_none_is_refused_with_its_row(tmp_path, value, message):
    split = ["train", "valid", "test", "test"] * 10
    save(tmp_path, frame() | {"s": [*split[:6], value, *split[7:]]})
    with pytest.raises(DataError, match=message):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, split: {column: s}}"))


@pytest.mark.parametrize("absent", ["train", "valid", "test"])
def test_a_split_without_a_row_is_refused(tmp_path, absent):
    others = [s for s in ("train", "valid", "test") if s != absent]
    save(tmp_path, frame() | {"s": [s for s in others for _ in range(20)]})
    with pytest.raises(DataError, match=f"the {absent} split has 0 rows; it needs at least 2"):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y, split: {column: s}}"))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    lines = "a,b,y\n" + "\n".join(f"{i},{i * i},{i % 2}" for i in range(40))
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert load_data(recipe_of(tmp_path, "{file: x.csv, target: y}")).columns == ("a", "b")


def test_a_truncated_parquet_file_is_one_line(tmp_path):
    save(tmp_path, frame())
    raw = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))


def test_a_folder_of_parquet_files_is_one_table(tmp_path):
    (tmp_path / "shards").mkdir()
    save(tmp_path, frame(), "shards/0.parquet")
    save(tmp_path, frame(), "shards/1.parquet")
    data = load_data(recipe_of(tmp_path, "{file: shards, target: y}"))
    assert sum(s.rows for s in (data.train, data.valid, data.test)) == 80


@pytest.mark.slow
def test_a_hundred_thousand_columns_load(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(40, 100_000)).astype(np.float32)
    names = [f"x{i}" for i in range(matrix.shape[1])]
    table = pa.Table.from_arrays([*map(pa.array, matrix.T), pa.array([0, 1] * 20)], names=[*names, "y"])
    pa.parquet.write_table(table, tmp_path / "x.parquet", compression="none", use_dictionary=False)
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))
    assert len(data.columns) == 100_000
    assert data.train.inputs[0].shape == (24, 100_000)


LOADER = """
import torch
from torch.utils.data import DataLoader, TensorDataset
def make(split):
    g = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
    x = torch.randn(20, 3, generator=g)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=6, shuffle=True)
def short(split):
    return [(torch.zeros(4), torch.zeros(4))]
def broken(split):
    raise KeyError("no such table")
def nan(split):
    return [(torch.full((4, 3), float("nan")), torch.zeros(4))]
def labelled(*labels):
    return [(torch.zeros(2, 3), torch.tensor(labels[i:i + 2])) for i in range(0, len(labels), 2)]
def empty(split):
    return labelled(0., 1., 1., float("nan"))
def infinite(split):
    return labelled(0., 1., float("inf"), 0.)
def half(split):
    return labelled(0., 1., 0.5, 0.)
def negative(split):
    return labelled(0, 1, 1, -1)
def huge(split):
    return labelled(0, 1, 10**12, 1)
"""


def test_a_loader_streams_with_seeded_shuffling(tmp_path):
    (tmp_path / "l.py").write_text(LOADER)
    data = load_data(recipe_of(tmp_path, '{loader: "l.py:make", features: [p, q, r]}'))
    assert data.columns == ("p", "q", "r")
    assert (data.train.rows, data.classes) == (20, ("0", "1"))

    def order(seed):
        batches = data.train.batches(None, torch.Generator().manual_seed(seed))
        return torch.cat([x[0] for x, _ in batches])

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("short", "do not fit"),
        ("broken", "KeyError"),
        ("nan", "NaN or Inf in batch: input 'features' in row 1; fill or drop them"),
        ("absent", "'absent'"),
        ("empty", "class label nan in row 4 is not a whole number"),
        ("infinite", "class label inf in row 3 is not a whole number"),
        ("half", "class label 0.5 in row 3 is not a whole number"),
        ("negative", "class -1 is below 0 in row 4"),
        ("huge", "class 1000000000000 is above 1,000,000 in row 3"),
    ],
)
def test_a_wrong_loader_is_one_line(tmp_path, name, fragment):
    (tmp_path / "l.py").write_text(LOADER)
    with pytest.raises(GlpruneError) as caught:
        load_data(recipe_of(tmp_path, f'{{loader: "l.py:{name}"}}'))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_target_of_a_loader_is_refused_with_its_row(tmp_path):
    (tmp_path / "l.py").write_text(LOADER)
    with pytest.raises(DataError, match="NaN or Inf in batch: the target in row 4; fill or drop them"):
        load_data(recipe_of(tmp_path, '{loader: "l.py:empty"}', "regression"))


WEARING = """
import torch
class Rows:
    passes = 0
    def __iter__(self):
        self.passes += 1
        yield torch.zeros(4, 3), torch.arange(4) % 2
        if self.passes == 2:
            raise TimeoutError("the store is gone")
        if self.passes == 3:
            yield torch.zeros(4), torch.arange(4) % 2
def make(split):
    return Rows()
"""


def test_a_loader_that_fails_later_is_one_line(tmp_path):
    (tmp_path / "l.py").write_text(WEARING)
    train = load_data(recipe_of(tmp_path, '{loader: "l.py:make"}')).train
    with pytest.raises(
        DataError, match=r"recipe.yaml:\d+: data.loader: split 'train' failed \(TimeoutError: the store"
    ):
        list(train.batches(None, None))
    with pytest.raises(DataError, match=r"split 'train': tensors of shape \(4,\) do not fit"):
        list(train.batches(None, None))
    assert len(list(train.batches(None, None))) == 1


INPUTS = """\
task: {task}
model: {{factory: "a.py:build", inputs: {inputs}}}
data: {data}
target: {{lambda: 1}}
"""
TWO = "[{name: u, columns: [b]}, {name: v, columns: [c, a], dtype: int}]"


def several(tmp_path, inputs, data, task="regression"):
    path = tmp_path / "recipe.yaml"
    path.write_text(INPUTS.format(task=task, inputs=inputs, data=data))
    return load_recipe(path)


def whole(rows=40):
    return frame(rows) | {"a": [1, 2] * (rows // 2), "y": np.linspace(0, 1, rows)}


def test_columns_go_to_their_inputs_and_are_numbered_through(tmp_path):
    save(tmp_path, whole())
    data = load_data(several(tmp_path, TWO, "{file: x.parquet, target: y, feature_groups: {both: [a, c]}}"))
    assert data.columns == ("b", "c", "a")
    assert data.spans == (range(0, 1), range(1, 3))
    assert [(f.name, f.columns) for f in data.features] == [("b", (0,)), ("both", (1, 2))]
    u, v = data.train.inputs
    assert (u.dtype, v.dtype) == (torch.float32, torch.int64)
    assert set(v[:, 1].tolist()) == {1, 2}


def test_codes_in_a_list_are_refused_and_other_inputs_get_a_layer_that_changes_nothing(tmp_path):
    save(tmp_path, whole())
    with pytest.raises(RecipeError, match="'a' feeds an input of dtype: int, whose codes"):
        load_data(several(tmp_path, TWO, "{file: x.parquet, target: y, standardize: [a]}"))
    two = "[{name: u, columns: [b]}, {name: v, columns: [c, a]}]"
    data = load_data(several(tmp_path, two, "{file: x.parquet, target: y, standardize: [c]}"))
    assert data.standardization[0].mean.tolist() == [0.0]
    assert data.standardization[1].std.tolist()[1] == 1.0 != data.standardization[1].std.tolist()[0]


def test_codes_are_not_standardised_and_may_be_constant(tmp_path):
    save(tmp_path, whole() | {"a": [3] * 40})
    data = load_data(several(tmp_path, TWO, "{file: x.parquet, target: y, standardize: train}"))
    assert data.standardization[0] is not None
    assert data.standardization[1] is None
    assert any("'a' is" in n for n in data.notes)


PAST = 2**53 + 1


def test_codes_keep_every_digit_whatever_the_columns_beside_them_are(tmp_path):
    from decimal import Decimal

    columns = whole() | {"a": [PAST, PAST - 1] * 20, "c": [1.0, 2.0] * 20}
    for beside in ([1.0, 2.0] * 20, [True, False] * 20, pa.array([Decimal(PAST), Decimal(3)] * 20)):
        save(tmp_path, columns | {"c": beside})
        data = load_data(several(tmp_path, TWO, "{file: x.parquet, target: y}"))
        assert data.inputs[1].columns == ("c", "a")
        found = data.train.inputs[1]
        assert found.dtype == torch.int64
        assert set(found[:, 1].tolist()) == {PAST, PAST - 1}
    assert set(found[:, 0].tolist()) == {PAST, 3}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([2.0**60, 1.0] * 20, "'a' holds 1.152921504606847e+18 in row 1; above 2^53 neighbouring numbers"),
        (np.array([3, 2**24 + 2] * 20, np.float32), "'a' holds 16777218.0 in row 2; above 2^24"),
        (
            np.array([2**63] * 40, np.uint64),
            "'a' feeds an input of dtype: int and holds 9.22337e+18 in row 1",
        ),
        ([float(2**62), 0.5] * 20, "'a' feeds an input of dtype: int and holds 0.5 in row 2"),
    ],
)
def test_codes_that_cannot_be_told_apart_are_refused(tmp_path, column, message):
    save(tmp_path, whole() | {"a": column})
    with pytest.raises(DataError) as caught:
        load_data(several(tmp_path, TWO, "{file: x.parquet, target: y}"))
    assert message in str(caught.value)


def test_classes_past_2_53_stay_apart_and_numbers_of_that_size_are_no_targets(tmp_path):
    save(tmp_path, frame() | {"y": [PAST, PAST - 1] * 20})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))
    assert data.classes == (str(PAST - 1), str(PAST))
    assert data.train.target.bincount().tolist() == [12, 12]
    with pytest.raises(
        DataError, match=r"column 'y' holds 9007199254740993 in row 1; .*; scale the target\."
    ):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}", task="regression"))
    save(tmp_path, frame() | {"y": [2.0**53 + 2, 1.0] * 20})
    with pytest.raises(DataError, match="write the classes as whole numbers"):
        load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))


def test_ordinary_whole_numbers_are_rounded_to_float32(tmp_path):
    save(tmp_path, frame() | {"c": 2**53 - np.arange(40)})
    data = load_data(recipe_of(tmp_path, "{file: x.parquet, target: y}"))
    assert data.train.inputs[0][:, 2].unique().tolist() == [2.0**53]


def test_columns_of_an_input_without_an_axis_are_no_features(tmp_path):
    save(tmp_path, whole())
    inputs = "[{name: u, columns: [b]}, {name: v, columns: [c, a], dtype: int, axis: null}]"
    data = load_data(several(tmp_path, inputs, "{file: x.parquet, target: y}"))
    assert data.columns == ("b",)
    assert data.inputs[1].columns == ("c", "a")
    assert data.spans[1] == range(1, 1)


@pytest.mark.parametrize(
    ("inputs", "data", "fragment"),
    [
        ("[{name: u, columns: [b]}, {name: v, columns: [b]}]", "", "column 'b' feeds 'u' and 'v'"),
        ("[{name: u, columns: [b]}, {name: v, columns: [d]}]", "", "columns of 'v': no column 'd'"),
        ("[{name: u, columns: [b]}, {name: v, columns: [y]}]", "", "'y' is the target"),
        ("[{name: u, columns: [b]}]", ", features: [a, b]", "column 'a' is in no input's columns"),
        (TWO, ", feature_groups: {g: [a, b]}", "the columns of a feature must feed one input"),
        ("[{name: u, columns: [b], dtype: int}]", "", "'b' feeds an input of dtype: int and holds"),
    ],
)
def test_wrong_columns_are_named_in_one_line(tmp_path, inputs, data, fragment):
    save(tmp_path, whole())
    with pytest.raises(GlpruneError) as caught:
        load_data(several(tmp_path, inputs, f"{{file: x.parquet, target: y{data}}}"))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_no_code_is_named_with_its_row(tmp_path):
    save(tmp_path, whole() | {"a": [1.0] * 7 + [2.5] + [1.0] * 32})
    with pytest.raises(DataError, match=r"'a' feeds .* holds 2.5 in row 8"):
        load_data(several(tmp_path, TWO, "{file: x.parquet, target: y}"))


SEVERAL = """
import torch
ids, mask, x = torch.arange(12).view(4, 3).int(), torch.ones(4, 3, dtype=torch.bool), torch.zeros(4, 2).double()
def named(split): return [({"x": x, "mask": mask, "ids": ids}, torch.rand(4))]
def tuples(split): return [((ids, mask, x), torch.rand(4, 1))]
def short(split): return [((ids, mask), torch.rand(4))]
def rows(split): return [((ids, mask, x[:2]), torch.rand(4))]
def other(split): return [((ids, mask, x), torch.rand(4)), ((ids, mask, x[:, :1]), torch.rand(4))]
def floats(split): return [((ids.float(), mask, x), torch.rand(4))]
def alone(split): return [(ids, mask, x)]
"""
THREE = "[{name: ids, axis: null, dtype: int}, {name: mask, axis: null}, {name: x}]"


@pytest.mark.parametrize(
    ("loader", "task"), [("named", "regression"), ("tuples", "regression"), ("alone", "distillation")]
)
def test_a_loader_yields_named_inputs_of_any_type(tmp_path, loader, task):
    (tmp_path / "l.py").write_text(SEVERAL)
    data = load_data(several(tmp_path, THREE, f'{{loader: "l.py:{loader}"}}', task))
    assert data.columns == ("x.0", "x.1")
    (inputs, target) = next(data.train.batches(None, None))
    assert [x.dtype for x in inputs] == [torch.int64, torch.bool, torch.float32]
    assert target.shape == ((4, 0) if task == "distillation" else (4,))


@pytest.mark.parametrize(
    ("loader", "fragment"),
    [
        ("short", "should hold 3 input tensor(s); it holds 2: Tensor, Tensor"),
        ("rows", "input 'x' has 2 rows, 'ids' has 4"),
        ("other", "the number of features changes"),
        ("floats", "input 'ids' has dtype: int"),
        ("alone", "not a pair"),
    ],
)
def test_a_wrong_batch_of_several_inputs_is_one_line(tmp_path, loader, fragment):
    (tmp_path / "l.py").write_text(SEVERAL)
    with pytest.raises(DataError) as caught:
        load_data(several(tmp_path, THREE, f'{{loader: "l.py:{loader}"}}'))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
