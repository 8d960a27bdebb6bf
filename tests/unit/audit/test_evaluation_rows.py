"""The rows that ``glprune evaluate`` reads: which of a file, what is wrong with them, and what is not measured."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from glprune.audit.evaluation.array_rows import read_arrays, read_loader
from glprune.audit.evaluation.evaluate import Options, evaluate
from glprune.audit.evaluation.file_rows import read_file
from glprune.audit.evaluation.subject import open_subject
from glprune.cli.main import main
from glprune.errors import DataError, UsageError, did_you_mean
from glprune.schema.recipe_loading import load_recipe
from glprune.tables.files import open_table
from glprune.tables.remedies import for_auditor, or_list
from glprune.tables.validation import check_columns
from tests.bundle_fixtures import copied, follow, seal

FOLDS = ["train"] * 150 + ["valid"] * 40 + ["test"] * 50


@pytest.fixture(scope="module")
def table(audited):
    assert audited["kept"]
    return pq.read_table(audited.folder / "data.parquet")


def with_column(table, name, values):
    return (
        table.append_column(name, pa.array(values))
        if name not in table.column_names
        else table.set_column(table.column_names.index(name), name, pa.array(values))
    )


def measured(found):
    return {(f.where, f.model, f.name): f.found for f in found.figures}


@pytest.fixture(scope="module")
def subjects(audited):
    """Opened bundles by name."""
    opened = {}

    def subject(name):
        if name not in opened:
            opened[name] = open_subject(audited[name], None)
        return opened[name]

    return subject


def refused(read, *arguments):
    """Return the one line that reading ends with."""
    with pytest.raises(DataError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def divided(audited, producer, tmp_path):
    """A bundle whose recipe splits by the column ``fold``."""
    copy = copied(audited["kept"], tmp_path / "divided")
    recipe = copy / "recipe.resolved.yaml"
    recipe.write_text(load_recipe(recipe, ["data.split.column=fold"]).to_yaml())
    follow(copy)
    seal(copy, producer[0])
    return copy.folder


def test_another_file_with_the_split_column_gives_its_test_rows(divided, table, tmp_path):
    path = tmp_path / "own.csv"
    pa.csv.write_csv(with_column(table, "fold", FOLDS), path)
    pa.csv.write_csv(table.slice(190, 50), tmp_path / "test.csv")
    default, wanted = evaluate(divided, path), evaluate(divided, tmp_path / "test.csv")
    assert default.rows == 50
    assert measured(default) == measured(wanted)
    assert "240 rows, the 50 are taken that the column 'fold' calls test" in default.notes[0]
    for split, rows in (("test", 50), ("valid", 40), ("train", 150), ("all", 240)):
        assert evaluate(divided, path, options=Options(split=split)).rows == rows
    assert not any("are taken" in n for n in evaluate(divided, path, options=Options(split="valid")).notes)


def test_a_split_column_with_other_values_takes_all_rows_and_says_so(divided, table, tmp_path):
    path = tmp_path / "own.csv"
    pa.csv.write_csv(with_column(table, "fold", ["2024"] * 240), path)
    found = evaluate(divided, path)
    assert found.rows == 240
    assert "all rows are taken" in found.notes[0]
    with pytest.raises(UsageError, match="split column 'fold' holds '2024' in row 1"):
        evaluate(divided, path, options=Options(split="test"))
    pa.csv.write_csv(with_column(table, "fold", ["train"] * 240), tmp_path / "train.csv")
    found = evaluate(divided, tmp_path / "train.csv")
    assert found.rows == 240
    with pytest.raises(UsageError, match="its column 'fold' calls no row test"):
        evaluate(divided, tmp_path / "train.csv", options=Options(split="test"))


def test_the_file_of_the_run_in_another_format_is_split_by_the_seed_on_request(audited, table, tmp_path):
    path = tmp_path / "data.csv"
    pa.csv.write_csv(table, path)
    everything = evaluate(audited["kept"], path)
    assert everything.rows == 240
    assert "as many rows as train, valid and test" in everything.notes[0]
    test = evaluate(audited["kept"], path, options=Options(split="test"))
    of_run = evaluate(audited["kept"], audited.folder / "data.parquet")
    assert (test.kind, of_run.kind) == ("own rows", "test rows")
    found, wanted = measured(test), measured(of_run)  # changes are measured again on the run's own file alone
    assert len(found) > 100
    assert found == pytest.approx({key: wanted[key] for key in found}, abs=1e-6)
    pa.csv.write_csv(table.slice(0, 100), tmp_path / "part.csv")
    assert not evaluate(audited["kept"], tmp_path / "part.csv").notes
    with pytest.raises(UsageError, match="--split test needs the data file of the report"):
        evaluate(audited["kept"], tmp_path / "part.csv", options=Options(split="test"))


def test_other_splits_of_the_file_of_the_run_are_own_rows(audited):
    found = evaluate(audited["kept"], audited.folder / "data.parquet", options=Options(split="valid"))
    assert (found.kind, found.rows) == ("own rows", 48)
    assert "its valid rows, split as its recipe says" in found.evidence
    assert any(f.where.startswith("h = ") and f.found is not None for f in found.figures)


def test_a_loader_of_rows_that_the_report_read_from_a_file_is_told_so(audited, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def rows(split):\n"
        "    assert split == 'valid', split\n"
        "    return [(np.zeros((6, 8), 'f4'), np.array([0, 1] * 3))]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = evaluate(audited["kept"], loader="own.py:rows", options=Options(split="valid"))
    assert "come from a file" in found.evidence
    with pytest.raises(UsageError, match="a loader is called with one split"):
        evaluate(audited["kept"], loader="own.py:rows", options=Options(split="all"))


def arrays(table, **changes):
    features = np.stack([table[name].to_numpy() for name in "abcdefgh"], axis=1).astype(np.float32)
    found = {
        "features": features,
        "target": np.array(table["y"].to_pylist()),
        "kind": table["kind"].to_numpy(),
        "h": table["h"].to_numpy(),
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


WRONG_ARRAYS = {
    "no rows": (
        {"features": np.zeros((0, 8), "f4"), "target": np.zeros(0, int), "kind": None, "h": None},
        "no rows.",
    ),
    "an attribute of other rows": (
        {"kind": np.zeros(7)},
        "array 'kind' has shape (7,); one value for each of 240 rows",
    ),
    "an attribute of several columns": (
        {"h": np.zeros((240, 8))},
        "array 'h' has shape (240, 8); one value for each",
    ),
    "an attribute of one value": ({"h": np.float64(3)}, "array 'h' has shape (); one value"),
    "a target of other rows": ({"target": np.zeros(239, int)}, "array 'target' has shape (239,); one value"),
    "a target of NaN": (
        {"target": np.full(240, np.nan)},
        "array 'target' holds nan in row 1; give the number",
    ),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_arrays_of_another_length_or_shape_are_refused(name, subjects, table, tmp_path):
    changes, message = WRONG_ARRAYS[name]
    np.savez(tmp_path / "own.npz", **arrays(table, **changes))
    assert message in refused(read_arrays, subjects("kept"), tmp_path / "own.npz")


def test_a_cut_file_of_arrays_ends_the_command_in_one_line(audited, table, tmp_path):
    np.savez(tmp_path / "own.npz", **arrays(table))
    (tmp_path / "own.npz").write_bytes((tmp_path / "own.npz").read_bytes()[:900])
    result = CliRunner().invoke(main, ["evaluate", str(audited["kept"]), "--data", str(tmp_path / "own.npz")])
    assert result.exit_code == 2, result.output
    assert "own.npz: cannot be read as arrays" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_cut_or_damaged_file_of_arrays_ends_in_one_line(share, compressed, subjects, table, tmp_path):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "own.npz", **arrays(table))
    raw = (tmp_path / "own.npz").read_bytes()
    half = int(len(raw) * max(share, 0.1))
    for n, content in enumerate(
        (raw[: int(len(raw) * share)], raw[:half] + b"\xff" * 200 + raw[half + 200 :])
    ):
        path = tmp_path / f"bad{n}.npz"
        path.write_bytes(content)
        assert "cannot be read as arrays" in refused(read_arrays, subjects("kept"), path)


def test_a_column_of_arrays_is_one_value_for_each_row_too(audited, table, tmp_path):
    flat, upright = arrays(table), arrays(table, kind=table["kind"].to_numpy()[:, None], other=np.zeros(3))
    np.savez(tmp_path / "flat.npz", **flat)
    np.savez(tmp_path / "upright.npz", **upright)
    found = [evaluate(audited["kept"], tmp_path / f"{name}.npz") for name in ("flat", "upright")]
    assert measured(found[0]) == measured(found[1])
    assert not found[0].notes
    assert found[1].notes == ("array 'other' is not used: no input, target or attribute of the report.",)


@pytest.mark.parametrize("values", [["x"] * 240, [99] * 240, [None] * 240])
@pytest.mark.parametrize("form", ["csv", "npz"])
def test_an_attribute_of_unknown_values_is_named_as_not_evaluated(values, form, audited, table, tmp_path):
    path = tmp_path / f"own.{form}"
    if form == "csv":
        pa.csv.write_csv(with_column(table, "kind", values), path)
    else:
        np.savez(path, **arrays(table, kind=np.array([np.nan if v is None else v for v in values])))
    found = evaluate(audited["kept"], path)
    [line] = [line for line in found.not_evaluated if line.startswith("Segments by kind: ")]
    shown = {"x": "they hold 'x'", 99: "they hold 99"}
    assert shown.get(values[0], "all are empty" if form == "npz" else "") in line
    assert not any(f.where.startswith("kind") for f in found.figures)
    assert any(f.where.startswith("h = ") for f in found.figures)


def test_an_attribute_that_is_not_in_the_data_is_named(audited, table, tmp_path):
    pa.csv.write_csv(table.drop_columns(["kind"]), tmp_path / "own.csv")
    found = evaluate(audited["kept"], tmp_path / "own.csv")
    assert "Segments by kind: it is not in the data." in found.not_evaluated


LOADERS = {
    "other columns in a later batch": (
        "[(np.zeros((4, 8), 'f4'), np.zeros(4, int)), (np.zeros((4, 5), 'f4'), np.zeros(4, int))]",
        "has 5 columns in batch 2 and 8 in the first",
    ),
    "the kept columns in a later batch": (
        "[(np.zeros((4, 8), 'f4'), np.zeros(4, int)), (np.zeros((4, KEPT), 'f4'), np.zeros(4, int))]",
        "columns in batch 2 and 8 in the first",
    ),
    "another number of axes": (
        "[(np.zeros((4, 8), 'f4'), np.zeros(4, int)), (np.zeros(8, 'f4'), np.zeros(1, int))]",
        "has shape (8,)",
    ),
    "a target of other rows": (
        "[(np.zeros((4, 8), 'f4'), np.zeros(3, int))]",
        "has shape (3,); one value for each of 4",
    ),
    "no batch": ("[]", "no rows."),
    "no row": ("[(np.zeros((0, 8), 'f4'), np.zeros(0, int))]", "no rows."),
    "no list": ("7", "TypeError"),
    "no pair": ("[np.zeros((4, 8))]", "not a pair"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_batches_that_do_not_fit_end_in_one_line(name, audited, subjects, tmp_path, monkeypatch):
    batches, message = LOADERS[name]
    kept = json.loads((audited["kept"] / "plan.json").read_text())["inputs"][0]["kept"]
    code = f"import numpy as np\nKEPT = {len(kept)}\ndef rows(split):\n    return {batches}\n"
    (tmp_path / "own.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert message in refused(read_loader, subjects("kept"), "own.py:rows")


REMEDIES = {
    "text in a column": (
        {"b": ["low"] * 240},
        "column 'b' is not numeric ('b' holds 'low' in row 1); encode as numbers.",
    ),
    "other classes": (
        {"y": ["0", "1"] * 120},
        "target 'y' holds '0' (row 1), which is no class of the report (no, yes).",
    ),
    "labels that are missing": ({"y": ["no", "NA"] * 120}, "first in row 2 ('NA'); drop them."),
    "numbers past float32": ({"b": [1e39] * 240}, "beyond float32 (3.4e+38); scale the column."),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_no_remedy_lies_in_the_recipe(name, subjects, table, tmp_path):
    changes, message = REMEDIES[name]
    for column, values in changes.items():
        table = with_column(table, column, values)
    pa.csv.write_csv(table, tmp_path / "own.csv")
    assert refused(read_file, subjects("kept"), tmp_path / "own.csv").endswith(message)


def test_a_path_is_not_relative_to_the_recipe(subjects):
    line = refused(read_file, subjects("kept"), Path("none.csv"))
    assert line.endswith("name a file or a folder of Parquet.")


def test_remedies_in_the_recipe_are_left_out_and_others_stay():
    message = f"column 'a' is empty; fill it{or_list('exclude')}; or drop the rows."
    assert for_auditor(message) == "column 'a' is empty; fill it; or drop the rows."
    assert for_auditor("drop them" + or_list("classes", "'NA' and 'n/a'") + ".") == "drop them."


def renamed(table, names):
    return table.rename_columns([names.get(name, name) for name in table.column_names])


def test_missing_columns_are_all_listed_with_unused_names_of_any_case(subjects, table, tmp_path):
    kept = [name for part in subjects("mixed").plan.inputs for name in part.columns if len(name) == 1]
    pa.csv.write_csv(renamed(table, {name: name.upper() for name in kept}), tmp_path / "own.csv")
    line = refused(read_file, subjects("mixed"), tmp_path / "own.csv")
    assert f"column {', '.join(map(repr, kept))} are missing" in line
    assert all(f"{name.upper()!r} for {name!r}" in line for name in kept)
    pa.csv.write_csv(renamed(table, {"place": "other"}), tmp_path / "one.csv")
    line = refused(read_file, subjects("mixed"), tmp_path / "one.csv")
    assert line.endswith("column 'place' is missing.")  # and no column that the network reads already


def test_many_missing_columns_are_listed(tmp_path):
    names = [f"column{n}" for n in range(40)]
    pa.csv.write_csv(pa.table({"COLUMN1": [1.0], "column0": [2.0]}), tmp_path / "own.csv")
    line = refused(check_columns, open_table(tmp_path / "own.csv"), names)
    assert "'column29'" in line
    assert "and 9 more are missing" in line
    assert "Did you mean 'COLUMN1'" in line


def test_case_does_not_matter_for_similar_names():
    assert did_you_mean("mean_radius", ["mean_fractal", "MEAN_RADIUS"]) == " Did you mean 'MEAN_RADIUS'?"
    assert did_you_mean("Age", ["AGE", "age"]) == " Did you mean 'AGE'?"
    assert did_you_mean("x", ["other"]) == ""


def test_one_row_is_called_one_row(audited, table, tmp_path):
    pa.csv.write_csv(table.slice(0, 1), tmp_path / "own.csv")
    result = CliRunner().invoke(main, ["evaluate", str(audited["kept"]), "--data", str(tmp_path / "own.csv")])
    assert result.output.startswith("1 row of ")


def test_a_network_that_is_no_onnx_file_is_named_with_a_remedy(audited):
    arguments = [
        "--data",
        str(audited.folder / "data.parquet"),
        "--original",
        str(audited.folder / "plain.pt"),
    ]
    result = CliRunner().invoke(main, ["evaluate", str(audited["kept"]), *arguments])
    assert result.exit_code == 2
    assert "plain.pt: not an ONNX model; give the original network as ONNX" in result.output
    assert result.output.count("\n") == 1
