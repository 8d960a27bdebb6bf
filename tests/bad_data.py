"""Bad data files, labels, splits and loaders, as spreadsheets, exports and other programs leave them."""

from __future__ import annotations

import gzip
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from tests.bad_inputs import (
    INSPECT,
    NETWORKS,
    RECIPE,
    Bad,
    Make,
    content,
    csv,
    of_table,
    recipe,
    recoded,
    table,
)


def rows(folder: Path) -> list[list[str]]:
    """The cells of the data, with the header."""
    return [line.split(",") for line in (folder / "data.csv").read_text().splitlines()]


def rewritten(separator: str = ",", decimal: str = ".", header: bool = True, name: str = "data.csv") -> Make:
    """The data with other separators, or without a header."""

    def make(folder: Path) -> None:
        lines = [separator.join(row).replace(".", decimal) for row in rows(folder)]
        (folder / name).write_text("\n".join(lines if header else lines[1:]) + "\n")

    return make


def cell(row: int, column: int, value: str) -> Make:
    """The data with another cell; row 0 is the header."""

    def make(folder: Path) -> None:
        cells = rows(folder)
        cells[row][column] = value
        (folder / "data.csv").write_text("\n".join(map(",".join, cells)) + "\n")

    return make


def column(index: int, values: str, count: int = 60) -> Make:
    """The data with another column, which repeats some values."""

    def make(folder: Path) -> None:
        cells, new = rows(folder), values.split("|")
        for n in range(1, count + 1):
            cells[n][index] = new[(n - 1) % len(new)]
        (folder / "data.csv").write_text("\n".join(map(",".join, cells)) + "\n")

    return make


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def named(raw: bytes, name: str) -> Make:
    """A file with these bytes that the recipe reads."""
    return both(content(raw, name), recipe("data.csv", name))


def packed(name: str, keep: float = 1.0) -> Make:
    """The data compressed, perhaps cut short."""

    def make(folder: Path) -> None:
        raw = gzip.compress((folder / "data.csv").read_bytes())
        named(raw[: int(len(raw) * keep)], name)(folder)

    return make


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "data.zip", "w") as file:
        file.write(folder / "data.csv", "data.csv")
    recipe("data.csv", "data.zip")(folder)


def feather(folder: Path) -> None:
    pyarrow.feather.write_feather(pa.table({"a": [1.0], "y": [0]}), folder / "data.feather")
    recipe("data.csv", "data.feather")(folder)


def split_by(values: object, **columns: object) -> Make:
    """A Parquet file with a column of splits."""

    def make(folder: Path) -> None:
        table(folder, s=values, **columns)
        new = "data.parquet\n  split: {column: s}"
        (folder / "recipe.yaml").write_text(RECIPE.replace("data.csv", new))

    return make


def files(valid: dict[str, object], test: dict[str, object] | None = None) -> Make:
    """A file for each split, of which some have other columns."""

    def make(folder: Path) -> None:
        own = {"a": np.arange(60) % 7, "b": np.arange(60) % 5, "c": np.arange(60) / 3, "y": np.arange(60) % 2}
        for name, changes in (("train", {}), ("valid", valid), ("test", test or {})):
            left = {k: v for k, v in (own | changes).items() if v is not None}
            pq.write_table(pa.table(left), folder / f"{name}.parquet")
        new = "train: train.parquet\n  valid: valid.parquet\n  test: test.parquet"
        recipe("file: data.csv", new)(folder)

    return make


def shards(**second: object) -> Make:
    """A folder of two files, of which the second has another column."""

    def make(folder: Path) -> None:
        (folder / "rows").mkdir()
        own = {"a": np.arange(60) % 7, "b": np.arange(60) / 5, "c": np.arange(60) / 3, "y": np.arange(60) % 2}
        for n, changes in enumerate(({}, second)):
            pq.write_table(pa.table(own | changes), folder / "rows" / f"{n}.parquet")
        recipe("data.csv", "rows")(folder)

    return make


def loader(labels: str, x: str = "torch.zeros(3, 3)", task: str = "binary") -> Make:
    """A loader that yields two batches of three rows; ``labels`` are those of the second."""
    code = (
        f"import torch\ndef rows(split):\n    x = {x}\n"
        f"    return [(torch.zeros(3, 3), torch.tensor([0, 1, 0])), (x, {labels})]\n"
    )
    text = RECIPE.replace("file: data.csv\n  target: y", "loader: networks.py:rows").replace("binary", task)
    text = text.replace("  classes: [0, 1]\n", "")
    return both(content(NETWORKS + code, "networks.py"), content(text))


def regression(*makes: Make) -> Make:
    """The same task with numbers for labels."""

    def make(folder: Path) -> None:
        for change in makes:
            change(folder)
        path = folder / "recipe.yaml"
        path.write_text(path.read_text().replace("binary", "regression").replace("  classes: [0, 1]\n", ""))

    return make


def without_classes(*makes: Make) -> Make:
    """The labels are those of the data."""

    def make(folder: Path) -> None:
        for change in makes:
            change(folder)
        path = folder / "recipe.yaml"
        path.write_text(path.read_text().replace("  classes: [0, 1]\n", ""))

    return make


FIX = "save it with commas between columns and points in numbers, or as Parquet"
NOT_A = "data.csv: column 'a' is not numeric "
ENCODE = "encode as numbers, or list under data.exclude."
SPLIT = ["train", "valid", "test", "test"] * 15
GAP = [0.0, 1.0] * 29 + [float("nan"), 1.0]
TEXTS = ["no", "yes"] * 30
KIND = "give .csv, .tsv, .parquet or a folder of Parquet"
LOADER = "recipe.yaml:5: data.loader: split 'train': "

FORMS = [
    Bad("semicolons", INSPECT, 4, f"data.csv: the columns are separated by semicolons ('a;b;c;y'); {FIX}.", rewritten(";")),
    Bad("semicolons and decimal commas", INSPECT, 4, f"data.csv: the columns are separated by semicolons ('a;b;c;y'); {FIX}.", rewritten(";", ",")),
    Bad("tabs", INSPECT, 4, f"data.csv: the columns are separated by tabs ('a\\tb\\tc\\ty'); {FIX}, or give its name the end .tsv.", rewritten("\t")),
    Bad("vertical bars", INSPECT, 4, f"data.csv: the columns are separated by vertical bars ('a|b|c|y'); {FIX}.", rewritten("|")),
    Bad("colons", INSPECT, 2, "recipe.yaml:6: data.target: no column 'y'. The only column is 'a:b:c:y': .csv has commas between columns, and .tsv has tabs.", rewritten(":")),
    Bad("spaces", INSPECT, 4, f"data.csv: the columns are separated by spaces ('a b c y'); {FIX}.", rewritten(" ")),
    Bad("semicolons in a file of tabs", INSPECT, 4, f"data.tsv: the columns are separated by semicolons ('a;b;c;y'); {FIX}.", both(rewritten(";", name="data.tsv"), recipe("data.csv", "data.tsv"))),
    Bad("commas in a file of tabs", INSPECT, 2, "recipe.yaml:6: data.target: no column 'y'. The only column is 'a,b,c,y': .csv has commas between columns, and .tsv has tabs.", both(rewritten(name="data.tsv"), recipe("data.csv", "data.tsv"))),
    Bad("semicolons in a compressed file", INSPECT, 4, "data.csv.gz: the columns are separated by semicolons...", both(rewritten(";"), packed("data.csv.gz"))),
    Bad("decimal commas between commas", INSPECT, 4, "data.csv: row 1 has 7 cells and the header 4; quote texts that hold ',', write decimal points, and check that the file is whole.", rewritten(decimal=",")),
    Bad("decimal comma in quotes", INSPECT, 4, NOT_A + "('a' holds '1,5' in row 7); write decimal points, and no other commas.", cell(7, 0, '"1,5"')),
    Bad("thousands between commas", INSPECT, 4, NOT_A + "('a' holds '1,234.5' in row 7); write decimal points, and no other commas.", cell(7, 0, '"1,234.5"')),
    Bad("question mark among numbers", INSPECT, 4, NOT_A + "('a' holds '?' in row 17); fill or drop what is missing.", cell(17, 0, "?")),
    Bad("N/A among numbers with a blank", INSPECT, 4, NOT_A + "('a' holds 'n/a ' in row 60); fill or drop what is missing.", cell(60, 0, "n/a ")),
    Bad("unit among numbers", INSPECT, 4, f"{NOT_A}('a' holds '12 kg' in row 17); {ENCODE}", cell(17, 0, "12 kg")),
    Bad("words for yes and no", INSPECT, 4, f"{NOT_A}('a' holds 'yes' in row 1); {ENCODE}", column(0, "yes|no")),
    Bad("dates", INSPECT, 4, f"{NOT_A}('a' holds 2020-01-31 in row 1); {ENCODE}", column(0, "2020-01-31|2020-02-29")),
    Bad("dates of another country", INSPECT, 4, NOT_A + "('a' holds '31.01.2020' in row 1); encode dates as numbers, or list under data.exclude.", column(0, "31.01.2020|29.02.2020")),
    Bad("times", INSPECT, 4, f"{NOT_A}('a' holds 12:30:00 in row 1); {ENCODE}", column(0, "12:30|13:45")),
    Bad("empty column", INSPECT, 4, NOT_A + "('a' is empty); fill it, or list under data.exclude.", column(0, "")),
    Bad("empty cell", INSPECT, 4, "data.csv: column 'a' is not finite: 1 empty, NaN or Inf in 'a', first in row 7; fill or drop them.", cell(7, 0, "")),
    Bad("NaN in a cell", INSPECT, 4, "data.csv: column 'a' is not finite: 1 empty, NaN or Inf in 'a', first in row 7; fill or drop them.", cell(7, 0, "NaN")),
    Bad("infinity in a cell", INSPECT, 4, "data.csv: column 'a' is not finite: 1 empty, NaN or Inf in 'a', first in row 7; fill or drop them.", cell(7, 0, "-inf")),
    Bad("number past float32", INSPECT, 4, "data.csv: column 'a' holds 1e+39 in row 7, beyond float32 (3.4e+38); scale the column, or list it under data.exclude.", cell(7, 0, "1e39")),
    Bad("numbers past float32 in Parquet", INSPECT, 4, "data.parquet: column 'b' holds -1e+300 in row 2, beyond float32 (3.4e+38); scale the column, or list it under data.exclude.", of_table(b=[1.0, -1e300, 1e300] * 20)),
    Bad("decimals past float32", INSPECT, 4, "data.parquet: column 'b' holds 1e+39 in row 1, beyond float32 (3.4e+38); scale the column, or list it under data.exclude.", of_table(b=pa.array([Decimal(10) ** 39, Decimal(1)] * 30, pa.decimal256(60, 0)))),
    Bad("number past float32 after a gap", INSPECT, 4, "data.parquet: column 'b' is not finite: 20 empty, NaN or Inf in 'b', first in row 1; fill or drop them.", of_table(b=[None, -1e300, 1e300] * 20)),
    Bad("target past float32", INSPECT, 4, "data.parquet: target 'y' holds 1e+39 in row 2, beyond float32 (3.4e+38); scale the target.", regression(of_table(y=[1.0, 1e39] * 30))),
    Bad("whole number past 2^53", INSPECT, 4, "data.csv: column 'a' holds 9007199254740993 in row 1; above 2^53...", column(0, "9007199254740993")),
    Bad("bad columns by the dozen", INSPECT, 4, f"data.parquet: column 'a', 'b', 'c' and 1 more are not numeric ('a' holds 'x' in row 1); {ENCODE}", of_table(a=["x"] * 60, b=["x"] * 60, c=["x"] * 60, d=["x"] * 60)),
    Bad("numbers as text", INSPECT, 4, "data.parquet: column 'a' is not numeric ('a' holds '1.5' in row 1); write the texts as numbers.", of_table(a=["1.5", "2"] * 30)),
    Bad("categories of text", INSPECT, 4, f"data.parquet: column 'a' is not numeric ('a' holds 'u' in row 1); {ENCODE}", of_table(a=pa.array(["u", "v"] * 30).dictionary_encode())),
    Bad("time stamps", INSPECT, 4, f"data.parquet: column 'a' is not numeric ('a' holds 1970-01-01 00:00:00 in row 1); {ENCODE}", of_table(a=pa.array(np.zeros(60, "M8[s]")))),
    Bad("bytes", INSPECT, 4, f"data.parquet: column 'a' is not numeric ('a' holds b'\\xff' in row 1); {ENCODE}", of_table(a=[b"\xff"] * 60)),
    Bad("numbers without a header", INSPECT, 2, "recipe.yaml:6: data.target: no column 'y'. The names are numbers ('0.1257', '-0.1321', '0.6404' and 1 more); does the file begin with a header?", rewritten(header=False)),
    Bad("labels without a header", INSPECT, 4, "data.csv: the first row holds values (0.1257, -0.1321, 0.6404, no), not names; write a header row.", both(column(3, "no|yes"), rewritten(header=False))),
    Bad("equal numbers without a header", INSPECT, 4, "data.csv: column '1.5' is there twice; rename one. The names are numbers ('1.5', '1.5', '0.6404' and 1 more); does the file begin with a header?", both(cell(1, 0, "1.5"), cell(1, 1, "1.5"), rewritten(header=False))),
    Bad("column without a name", INSPECT, 4, "data.csv: column 1 has no name; if it numbers the rows, remove it, else name it.", cell(0, 0, "")),
    Bad("column named by a blank", INSPECT, 4, "data.csv: column 3 has no name; if it numbers the rows, remove it, else name it.", cell(0, 2, " ")),
    Bad("name with a blank before it", INSPECT, 2, "recipe.yaml:6: data.target: no column 'y'. Did you mean ' y'?", cell(0, 3, " y")),
    Bad("one cell too many", INSPECT, 4, "data.csv: row 7 has 5 cells and the header 4; quote...", cell(7, 0, "1,2")),
    Bad("comment before the header", INSPECT, 4, "data.csv: row 1 has 4 cells and the header 1; quote...", csv("a,b,c,y\n", "# made on Monday\na,b,c,y\n")),
    Bad("zip named .csv", INSPECT, 4, "data.csv: this is an Excel workbook or another zip archive; save the sheet as CSV (UTF-8).", content(b"PK\x03\x04\x14\0\6\0", "data.csv")),
    Bad("old workbook named .csv", INSPECT, 4, "data.csv: this is an Excel workbook; save the sheet as CSV (UTF-8).", content(b"\xd0\xcf\x11\xe0\xa1\xb1", "data.csv")),
    Bad("workbook", INSPECT, 4, f"data.xlsx: kind '.xlsx'; {KIND} (this is an Excel workbook or another zip archive; save the sheet as CSV (UTF-8)).", named(b"PK\x03\x04\x14\0\6\0", "data.xlsx")),
    Bad("zip of a CSV", INSPECT, 4, f"data.zip: kind '.zip'; {KIND} (this is an Excel workbook or another zip archive; save the sheet as CSV (UTF-8)).", zipped),
    Bad("Feather", INSPECT, 4, f"data.feather: kind '.feather'; {KIND} (this is an Arrow or Feather file; save it as Parquet).", feather),
    Bad("HDF5", INSPECT, 4, f"data.h5: kind '.h5'; {KIND} (this is an HDF5 file; save it as CSV or Parquet).", named(b"\x89HDF\r\n\x1a\n", "data.h5")),
    Bad("JSON", INSPECT, 4, f"data.json: kind '.json'; {KIND}.", named(b'[{"a": 1}]', "data.json")),
    Bad("data without a suffix", INSPECT, 4, f"data: kind 'unknown'; {KIND}.", named(b"a,b,c,y\n1,2,3,0\n", "data")),
    Bad("gzip named .csv", INSPECT, 4, "data.csv: this is compressed; give its name the end .csv.gz.", content(gzip.compress(b"a,b\n1,2\n"), "data.csv")),
    Bad("gzip of nothing known", INSPECT, 4, f"data.gz: kind '.gz'; {KIND}.", packed("data.gz")),
    Bad("gzip cut short", INSPECT, 4, "data.csv.gz: cannot be read (...).", packed("data.csv.gz", 0.5)),
    Bad("text named .csv.gz", INSPECT, 4, "data.csv.gz: cannot be read (...).", named(b"a,b,c,y\n1,2,3,0\n", "data.csv.gz")),
    Bad("Parquet named .csv", INSPECT, 4, "data.csv: this is a Parquet file; give its name the end .parquet.", content(b"PAR1\x15\x04", "data.csv")),
    Bad("CSV named .parquet", INSPECT, 4, "data.parquet: cannot be read (...).", both(rewritten(name="data.parquet"), recipe("data.csv", "data.parquet"))),
    Bad("CSV in UTF-16 of another order", INSPECT, 4, "data.csv: this is text in UTF-16; save it as UTF-8.", recoded("utf-16")),
]  # fmt: skip

LABELS = [
    Bad("empty label", INSPECT, 4, "data.csv: target 'y' is empty in 1 row, first in row 7; drop them.", cell(7, 3, "")),
    Bad("empty label among words", INSPECT, 4, "data.csv: target 'y' is empty in 20 rows, first in row 3; drop them.", without_classes(column(3, "no|yes|"))),
    Bad("blank label among words", INSPECT, 4, "data.csv: target 'y' is empty in 20 rows, first in row 3; drop them.", without_classes(column(3, "no|yes| "))),
    Bad("label that is NaN in a CSV file", INSPECT, 4, "data.csv: target 'y' is empty in 1 row, first in row 7; drop them.", cell(7, 3, "NaN")),
    Bad("label that is NaN in Parquet", INSPECT, 4, "data.parquet: target 'y' is empty in 1 row, first in row 59; drop them.", of_table(y=GAP)),
    Bad("label that is NaN without classes", INSPECT, 4, "data.parquet: target 'y' is empty in 1 row, first in row 59; drop them.", without_classes(of_table(y=GAP))),
    Bad("label that is NaN of 16 bits", INSPECT, 4, "data.parquet: target 'y' is empty in 1 row, first in row 59; drop them.", of_table(y=np.array(GAP, np.float16))),
    Bad("label that is nan as text", INSPECT, 4, "data.parquet: target 'y' is empty in 1 row, first in row 2 ('nan'); drop them, or list 'nan' under data.classes.", without_classes(of_table(y=["no", "nan", *TEXTS[2:]]))),
    Bad("label that is NA", INSPECT, 4, "data.csv: target 'y' is empty in 20 rows, first in row 3 ('NA'); drop them, or list 'NA' under data.classes.", without_classes(column(3, "no|yes|NA"))),
    Bad("label missing in categories", INSPECT, 4, "data.parquet: target 'y' is empty in 1 row, first in row 1; drop them.", without_classes(of_table(y=pa.array([None, *TEXTS[1:]]).dictionary_encode()))),
    Bad("label missing in true and false", INSPECT, 4, "data.parquet: target 'y' is empty in 1 row, first in row 1; drop them.", without_classes(of_table(y=[None, *[True, False] * 29, True]))),
    Bad("label empty in the validation file", INSPECT, 4, "valid.parquet: target 'y' is empty in 1 row, first in row 59; drop them.", files({"y": GAP})),
    Bad("labels with blanks behind them", INSPECT, 4, "data.csv: target 'y' has 3 values ('no', 'yes', 'yes '); task: binary needs two.", without_classes(column(3, "no|yes|yes "))),
    Bad("labels by the dozen", INSPECT, 4, "data.csv: target 'y' has 6 values ('0', '1', '2', '3', '4', ...); task: binary needs two.", without_classes(column(3, "0|1|2|3|4|5"))),
    Bad("label that is not listed", INSPECT, 4, "data.csv: target 'y' holds '2' (row 7), which data.classes does not list (0, 1).", cell(7, 3, "2")),
    Bad("infinite label", INSPECT, 4, "data.parquet: column 'y' holds inf in row 1; ...", of_table(y=[float("inf"), 1.0] * 30)),
    Bad("value missing", INSPECT, 4, "data.csv: target 'y' is empty in 1 row, first in row 7; drop them.", regression(cell(7, 3, ""))),
    Bad("value that is NaN in Parquet", INSPECT, 4, "data.parquet: target 'y' is empty in 1 row, first in row 59; drop them.", regression(of_table(y=GAP))),
    Bad("value that is infinite", INSPECT, 4, "data.parquet: target 'y' is not finite in row 2.", regression(of_table(y=[1.0, float("inf")] * 30))),
    Bad("value that is a question mark", INSPECT, 4, "data.csv: target 'y' is empty in 1 row, first in row 17 ('?'); drop them...", regression(cell(17, 3, "?"))),
    Bad("value that is a word", INSPECT, 4, "data.csv: target 'y' is not numeric ('y' holds 'low' in row 17); encode as numbers, or list under data.exclude; a regression target holds numbers.", regression(cell(17, 3, "low"))),
    Bad("value that is a date", INSPECT, 4, "data.csv: target 'y' is not numeric ('y' holds 2020-01-31 in row 1); ...; a regression target holds numbers.", regression(column(3, "2020-01-31|2020-02-29"))),
    Bad("split that is empty", INSPECT, 4, "data.parquet: split column 's' is empty in row 60; use train, valid and test.", split_by([*SPLIT[:59], None])),
    Bad("split that is blank", INSPECT, 4, "data.parquet: split column 's' is empty in row 60; use train, valid and test.", split_by([*SPLIT[:59], ""])),
    Bad("split with a capital", INSPECT, 4, "data.parquet: split column 's' holds 'Train' in row 1; use train, valid and test.", split_by(["Train", *SPLIT[1:]])),
    Bad("split of another name", INSPECT, 4, "data.parquet: split column 's' holds 'val' in row 2; use train, valid and test.", split_by(["train", "val", "test"] * 20)),
    Bad("split by number", INSPECT, 4, "data.parquet: split column 's' holds '0' in row 1; use train, valid and test.", split_by([0, 1, 2] * 20)),
    Bad("split without validation rows", INSPECT, 4, "recipe.yaml:4: data: the valid split has 0 rows; it needs at least 2.", split_by(["train", "test"] * 30)),
    Bad("split with one test row", INSPECT, 4, "recipe.yaml:4: data: the test split has 1 row; it needs at least 2.", split_by(["test"] + ["train", "valid", "train"] * 19 + ["train", "train"])),
    Bad("split with one class", INSPECT, 4, "recipe.yaml:4: data: the train split holds only class '0'; nothing can be measured.", split_by(["train", "valid", "train", "test"] * 15, y=[0, 0, 0, 1] * 15)),
    Bad("split column that is not there", INSPECT, 2, "recipe.yaml:6: data.split: no column 'part'.", recipe("data.csv", "data.csv\n  split: {column: part}")),
    Bad("split column that is the target", INSPECT, 4, "data.csv: split column 'y' holds '1' in row 1; use train, valid and test.", recipe("data.csv", "data.csv\n  split: {column: y}")),
    Bad("column missing in the validation file", INSPECT, 4, "valid.parquet: column 'b' is missing.", files({"b": None})),
    Bad("column misspelt in the test file", INSPECT, 4, "test.parquet: column 'b' is missing. Did you mean 'bb'?", files({}, {"b": None, "bb": np.arange(60)})),
    Bad("target missing in the test file", INSPECT, 4, "test.parquet: target column 'y' is missing.", files({}, {"y": None})),
    Bad("text in the test file", INSPECT, 4, f"test.parquet: column 'b' is not numeric ('b' holds 'x' in row 1); {ENCODE}", files({}, {"b": ["x"] * 60})),
    Bad("label of the test file alone", INSPECT, 4, "test.parquet: target 'y' holds '2' (row 3), which data.classes does not list (0, 1).", files({}, {"y": np.arange(60) % 3})),
    Bad("column missing in a folder's file", INSPECT, 4, "rows/1.parquet: column 'd' is not in 0.parquet.", shards(d=np.arange(60))),
    Bad("text in a folder's file", INSPECT, 4, "rows/1.parquet: column 'b' is string, in 0.parquet it is double; write all files with one schema.", shards(b=["x"] * 60)),
    Bad("gap in a folder's file", INSPECT, 4, "rows: column 'b' is not finite: 1 empty, NaN or Inf in 'b', first in row 59 of 1.parquet; fill or drop them.", shards(b=GAP)),
    Bad("label empty in a folder's file", INSPECT, 4, "rows: target 'y' is empty in 1 row, first in row 60 of 1.parquet; drop them.", shards(y=[*[0, 1] * 29, 0, None])),
    Bad("constant column to standardise", INSPECT, 4, "column 'a' is constant on the training rows, so it cannot be standardised; list under data.exclude.", both(column(0, "1.5"), recipe("target: y", "target: y\n  standardize: train"))),
    Bad("loader's label is NaN", INSPECT, 4, LOADER + "class label nan in row 5 is not a whole number; yield the classes as 0, 1 and so on.", loader("torch.tensor([0, float('nan'), 1])")),
    Bad("loader's label is a half", INSPECT, 4, LOADER + "class label 0.5 in row 6 is not a whole number; yield the classes as 0, 1 and so on.", loader("torch.tensor([0, 1, 0.5])")),
    Bad("loader's label is infinite", INSPECT, 4, LOADER + "class label inf in row 4 is not a whole number; yield the classes as 0, 1 and so on.", loader("torch.tensor([float('inf'), 1, 0])")),
    Bad("loader's label is negative", INSPECT, 4, LOADER + "class -1 is below 0 in row 5; yield the classes as 0, 1 and so on.", loader("torch.tensor([0, -1, 1])")),
    Bad("loader's label is a number of a row", INSPECT, 4, LOADER + "class 10000000000 is above 1,000,000 in row 5; yield the classes as 0, 1 and so on.", loader("torch.tensor([0, 10**10, 1])")),
    Bad("loader's label is a third class", INSPECT, 4, "recipe.yaml:5: data.loader: the loader yields class 2, data.classes lists 2.", loader("torch.tensor([0, 2, 1])")),
    Bad("loader's labels are a list", INSPECT, 4, LOADER + "a batch should hold 1 input tensor(s) and a target tensor.", loader("[0, 1, 1]")),
    Bad("loader's labels are one-hot", INSPECT, 4, LOADER + "a target of shape (3, 2) has several values in a row; one is needed.", loader("torch.eye(3)[:, :2]")),
    Bad("loader's value is NaN", INSPECT, 4, LOADER + "NaN or Inf in batch: the target in row 6; fill or drop them.", loader("torch.tensor([0, 1, float('nan')])", task="regression")),
    Bad("loader's input is infinite", INSPECT, 4, LOADER + "NaN or Inf in batch: input 'features' in row 5; fill or drop them.", loader("torch.tensor([0, 1, 0])", "torch.tensor([[1.], [float('inf')], [2.]]).expand(3, 3)")),
]  # fmt: skip

INIT = [
    Bad("init of semicolons", "init data.csv", 4, f"data.csv: the columns are separated by semicolons ('a;b;c;y'); {FIX}.", rewritten(";")),
    Bad("init of numbers without a header", "init data.csv", 4, "data.csv: no column has a name. The names are numbers ('0.1257', '-0.1321', '0.6404' and 1 more); does the file begin with a header?", rewritten(header=False)),
    Bad("init of labels without a header", "init data.csv", 4, "data.csv: the first row holds values (0.1257, -0.1321, 0.6404, no), not names; write a header row.", both(column(3, "no|yes"), rewritten(header=False))),
    Bad("init of an index", "init data.csv", 4, "data.csv: column 1 has no name; if it numbers the rows, remove it, else name it.", cell(0, 0, "")),
    Bad("init of a workbook", "init data.xlsx", 4, f"data.xlsx: kind '.xlsx'; {KIND} (this is an Excel workbook or another zip archive; save the sheet as CSV (UTF-8)).", content(b"PK\x03\x04\x14\0\6\0", "data.xlsx")),
    Bad("init with an unknown target", "init data.csv --target yy", 2, "--target: data.csv has no column 'yy'. Did you mean 'y'?"),
    Bad("init without a target's name", "init data.csv --target", 2, "Option '--target' requires an argument."),
    Bad("init with a constant target", "init data.csv --target y", 4, "data.csv: target 'y' has 1 value; name another column with --target.", column(3, "1")),
    Bad("init with an empty target", "init data.csv --target y", 4, "data.csv: target 'y' is empty in every row; name another column with --target.", column(3, "")),
    Bad("init with a target of lists", "init data.parquet --target d", 4, "data.parquet: column 'd' holds list<element: int64> values; use numbers or UTF-8 text.", of_table(d=[[1]] * 60)),
    Bad("init with a target of bytes", "init data.parquet --target d --out new.yaml", 4, "data.parquet: column 'd' holds large_binary values; use numbers or UTF-8 text.", of_table(d=pa.array([b"\xff"] * 60, pa.large_binary()))),
    Bad("init of a folder without data", "init empty", 4, "empty: no Parquet file in this folder.", lambda f: (f / "empty").mkdir()),
]  # fmt: skip

BAD_DATA = [*FORMS, *LABELS, *INIT]
