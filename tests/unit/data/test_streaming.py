"""Streamed and in-memory data of the same files say the same."""

import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import glprune
from glprune.audit.verify import verify
from glprune.data import ColumnSelection, IndexableSplit, StreamedSplit, TensorSplit, load_data, view_columns
from glprune.data.splits import _ColumnView
from glprune.data.streaming import read_ahead
from glprune.errors import DataError, GlpruneError, RecipeError
from glprune.evaluation.permutation_importance import split_in_memory
from glprune.evaluation.stability import check_rows, measure_stability
from glprune.runtime.events import silent
from glprune.schema.recipe_loading import load_recipe
from glprune.search.prepare import prepare
from glprune.search.worker_setup import WorkerContext, indexable_split
from glprune.tables.files import open_table
from glprune.tables.table import _ShardReader
from tests.networks import fit_binary

ROWS, SHARD, GROUP = 900, 250, 70
BASE = """\
task: {task}
model: {{factory: "network.py:build"{inputs}}}
data: {data}
target: {{max_features: 3}}
search: path
train: {{batch_size: 16}}
refit: {{batch_size: 16}}
seed: 3
"""
TWO = ", inputs: [{name: u, columns: [x0, x1, x2]}, {name: v, columns: [k, x3], dtype: int}]"


def frame(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 4)) * 3 + 7
    return {
        **{f"x{i}": x[:, i].astype(np.float32) for i in range(3)},
        "x3": np.rint(x[:, 3]),
        "k": rng.integers(0, 5, ROWS),
        "row": np.arange(ROWS, dtype=np.float64),
        "part": rng.choice(["train", "valid", "test"], ROWS),
        "group": rng.choice(["p", "q", None], ROWS),
        "y": np.where(x[:, 0] > 7, "yes", "no"),
    }


def save(folder, columns):
    """A folder of four files of several row groups each."""
    folder.mkdir()
    table = pa.table(columns)
    for n, start in enumerate(range(0, ROWS, SHARD)):
        pq.write_table(table.slice(start, SHARD), folder / f"{n}.parquet", row_group_size=GROUP)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    save(folder / "shards", frame())
    return folder


def recipe_of(folder, data, stream=None, task="binary", inputs="", extra="", target="y"):
    streamed = f", stream: {stream}" if stream else ""
    path = folder / "recipe.yaml"
    features = f"{{target: {target}, {data}{streamed}}}"
    path.write_text(BASE.format(task=task, inputs=inputs, data=features) + extra)
    return load_recipe(path)


def pair(folder, data, stream="{buffer_mb: 0.004}", **changes):
    """The same data in memory and streamed."""
    return (load_data(recipe_of(folder, data, s, **changes)) for s in (None, stream))


SIX = "file: shards, exclude: [part, group]"
THREE = "train: shards/0.parquet, valid: shards/1.parquet, test: shards/2.parquet, exclude: [part, group]"


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (SIX, {}),
        (SIX + ", standardize: train, split: {column: part}", {}),
        (SIX + ", split: {train: 0.5, valid: 0.3, test: 0.2, stratify: false}", {}),
        ("file: shards, exclude: [y, part, group]", {"task": "regression", "target": "row"}),
        ("file: shards", {"inputs": TWO}),
        (THREE, {}),
    ],
)
def test_streamed_data_are_what_is_in_memory(shards, data, changes):
    memory, streamed = pair(shards, data, **changes)
    for name in ("source", "inputs", "features", "classes", "digests", "outside"):
        assert getattr(memory, name) == getattr(streamed, name)
    assert streamed.notes[:-1] == memory.notes
    for mine, theirs in zip(memory.standardization, streamed.standardization, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or (torch.equal(mine.mean, theirs.mean) and torch.equal(mine.std, theirs.std))
    for split in ("train", "valid", "test"):
        mine, theirs = getattr(memory, split), getattr(streamed, split)
        assert isinstance(mine, TensorSplit)
        assert isinstance(theirs, StreamedSplit)
        same_batches(mine.batches(37, None), theirs.batches(37, None))


def same_batches(first, second):
    for (x, y), (u, v) in zip(first, second, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(x, u, strict=True))
        assert torch.equal(y, v)
        assert y.dtype == v.dtype


def rows_of(split, seed, size=16):
    """The row numbers of every batch of a shuffled pass; 'row' is the last feature."""
    batches = split.batches(size, torch.Generator().manual_seed(seed))
    return [x[0][:, -1].tolist() for x, _ in batches]


def every_row(split):
    return [row for batch in rows_of(split, 0) for row in batch]


def test_a_shuffled_pass_has_every_row_once_with_its_target(shards):
    memory, streamed = pair(shards, SIX)
    target = dict(zip(memory.train.inputs[0][:, -1].tolist(), memory.train.target.tolist(), strict=True))
    seen = {}
    for (x,), y in streamed.train.batches(16, torch.Generator().manual_seed(0)):
        assert len(y) <= 16
        seen |= dict(zip(x[:, -1].tolist(), y.tolist(), strict=True))
    assert seen == target
    assert len(every_row(streamed.train)) == streamed.train.rows == memory.train.rows


def test_the_order_depends_on_the_generator_alone(shards):
    _, streamed = pair(shards, SIX)
    train = streamed.train
    assert rows_of(train, 1) == rows_of(train, 1)
    assert rows_of(train, 1) != rows_of(train, 2)
    generator = torch.Generator().manual_seed(5)
    list(train.batches(16, generator))
    second = [x[0][:, -1].tolist() for x, _ in train.batches(16, generator)]
    state = torch.Generator().manual_seed(5)
    next(train.batches(16, state))  # an abandoned pass takes as much from the generator as a whole one
    assert second == [x[0][:, -1].tolist() for x, _ in train.batches(16, state)]


def test_rows_of_many_row_groups_meet_in_a_block(shards):
    _, streamed = pair(shards, SIX, "{buffer_mb: 1}")
    first = rows_of(streamed.train, 0)[0]
    assert len({int(row) // GROUP for row in first}) > 4
    assert first != sorted(first)


def test_only_the_last_batch_is_smaller(shards):
    _, streamed = pair(shards, SIX)
    assert streamed.train.plan.block_rows < streamed.train.rows / 3
    sizes = [len(rows) for rows in rows_of(streamed.train, 0)]
    assert set(sizes[:-1]) == {16}
    assert sum(sizes) == streamed.train.rows


def test_some_rows_of_a_split_are_a_split(shards):
    memory, streamed = pair(shards, SIX)
    rows = np.arange(3, memory.train.rows, 5)
    mine, theirs = memory.train.take(rows), streamed.train.take(rows)
    assert isinstance(theirs, IndexableSplit)
    same_batches(mine.batches(10, None), theirs.batches(10, None))
    assert sorted(every_row(theirs)) == mine.inputs[0][:, -1].tolist()


def test_lanes_divide_the_row_groups_whatever_their_number(shards):
    _, streamed = pair(shards, SIX)
    whole = sorted(every_row(streamed.train))
    for count in (1, 2, 3):
        lanes = [streamed.train.lane(n, count) for n in range(count)]
        found = [set(every_row(lane)) for lane in lanes]
        assert sorted(row for own in found for row in own) == whole
        groups = Counter(
            (int(row) // SHARD, int(row) % SHARD // GROUP, n) for n, own in enumerate(found) for row in own
        )
        assert len({g[:2] for g in groups}) == len(groups)  # none is read by two


def test_wide_row_groups_are_read_some_columns_at_a_time(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 2100)).astype(np.float32)
    names = [f"c{i}" for i in range(x.shape[1])]
    table = pa.Table.from_arrays([*map(pa.array, x.T), pa.array([0, 1] * 30)], names=[*names, "y"])
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=25)
    memory, streamed = pair(tmp_path, "file: x.parquet", "{buffer_mb: 0.5}", extra="")
    assert streamed.train.plan.block_rows == 31
    same_batches(memory.train.batches(16, None), streamed.train.batches(16, None))


def test_a_row_group_larger_than_the_buffer_is_read_in_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("glprune.tables.table._MIN_ROWS", 32)
    monkeypatch.setattr("glprune.tables.table._BATCH_BYTES", 1024)
    pq.write_table(pa.table(frame()), tmp_path / "x.parquet")
    memory, streamed = pair(tmp_path, "file: x.parquet, exclude: [part, group]")
    batch = next(streamed.train.table.reader()(streamed.train.table.row_groups[0], ["x0", "x1"]))
    assert batch.num_rows == 128
    same_batches(memory.valid.batches(50, None), streamed.valid.batches(50, None))
    assert sorted(every_row(streamed.train)) == memory.train.inputs[0][:, -1].tolist()


POLICY = "policy: {protected: [group, part, k]}\n"


def test_protected_attributes_follow_the_rows(shards):
    memory, streamed = pair(shards, SIX, extra=POLICY)
    for mine, theirs in zip(memory.protected, streamed.protected, strict=True):
        assert (mine.name, mine.labels) == (theirs.name, theirs.labels)
        assert all(np.array_equal(mine.values[s], theirs.values[s]) for s in ("train", "valid", "test"))
    assert memory.protected[0].labels == ("missing", "p", "q")


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (
            ("x1", 300, np.nan),
            "'x1' is not finite: 1 empty, NaN or Inf in 'x1', first in row 51 of 1.parquet",
        ),
        (("x2", 0, np.inf), "first in row 1 of 0.parquet"),
        (("y", 899, None), "target 'y' is empty in 1 row, first in row 150 of 3.parquet"),
    ],
)
@pytest.mark.parametrize("stream", [None, "{}"])
def test_a_defect_is_named_with_its_row_and_file(tmp_path, change, fragment, stream):
    name, row, value = change
    columns = frame()
    columns[name] = columns[name].astype(object) if name == "y" else columns[name]
    columns[name][row] = value
    save(tmp_path / "shards", columns)
    with pytest.raises(DataError) as caught:
        load_data(recipe_of(tmp_path, SIX, stream))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_no_code_is_named_with_its_row_and_file(tmp_path):
    columns = frame()
    columns["x3"][260] = 1.5
    save(tmp_path / "shards", columns)
    with pytest.raises(DataError, match=r"'x3' feeds .* holds 1.5 in row 11 of 1.parquet"):
        load_data(recipe_of(tmp_path, "file: shards", "{}", inputs=TWO))


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda t: t.drop_columns(["x1"]), "1.parquet: column 'x1' is missing, which 0.parquet has"),
        (lambda t: t.append_column("z", t["x1"]), "1.parquet: column 'z' is not in 0.parquet"),
        (
            lambda t: t.set_column(1, "x1", t["x1"].cast(pa.float64())),
            "1.parquet: column 'x1' is double, in 0.parquet it is float; write all files with one schema",
        ),
    ],
)
def test_files_of_a_folder_have_one_schema(tmp_path, change, fragment):
    save(tmp_path / "shards", frame())
    table = pq.read_table(tmp_path / "shards" / "1.parquet")
    pq.write_table(change(table), tmp_path / "shards" / "1.parquet")
    with pytest.raises(DataError) as caught:
        load_data(recipe_of(tmp_path, SIX))
    assert fragment in str(caught.value)


def test_the_order_of_columns_may_differ_between_files(tmp_path):
    save(tmp_path / "shards", frame())
    path = tmp_path / "shards" / "1.parquet"
    table = pq.read_table(path)
    before = load_data(recipe_of(tmp_path, SIX)).train.inputs[0]
    pq.write_table(table.select(table.column_names[::-1]), path)
    for stream in (None, "{}"):
        data = load_data(recipe_of(tmp_path, SIX, stream))
        assert torch.equal(next(data.train.batches(len(before), None))[0][0], before)


def test_files_of_others_in_a_folder_are_passed_over_and_none_is_an_error(tmp_path):
    save(tmp_path / "shards", frame())
    for name in ("_metadata.parquet", ".x.parquet", "README.txt", "_SUCCESS"):
        (tmp_path / "shards" / name).write_text("no data")
    assert load_data(recipe_of(tmp_path, SIX)).train.rows == 540
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Parquet file in this folder"):
        load_data(recipe_of(tmp_path, "file: empty"))


@pytest.mark.parametrize(
    ("data", "stream", "extra", "fragment"),
    [
        ("file: x.csv", "{}", "", "is not Parquet"),
        (SIX, "{buffer_mb: 0.0005}", "", "train.batch_size is 16, half the buffer holds 10 rows"),
        (SIX, "{buffer_mb: 0}", "", "should be above 0"),
        (SIX, "{rows: 3}", "", "data.stream.rows is not a key"),
        (SIX, "{}", "policy: {protected: [part], proxies: true}\n", "policy.proxies: true holds every row"),
    ],
)
def test_what_cannot_be_streamed_is_refused(shards, data, stream, extra, fragment):
    (shards / "x.csv").write_text("a,y\n" + "1,2\n3,4\n" * 9)
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: ") as caught:
        load_data(recipe_of(shards, data, stream, extra=extra))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["train", "refit"])
def test_all_rows_at_once_contradict_a_stream(shards, section):
    recipe_of(shards, SIX, "{}")
    text = (
        (shards / "recipe.yaml")
        .read_text()
        .replace(f"{section}: {{batch_size: 16}}", f"{section}: {{batch_size: all}}")
    )
    (shards / "all.yaml").write_text(text)
    with pytest.raises(RecipeError, match=f"{section}.batch_size: all holds every row"):
        load_recipe(shards / "all.yaml")


def test_a_file_that_changes_under_way_is_named(tmp_path):
    save(tmp_path / "shards", frame())
    data = load_data(recipe_of(tmp_path, SIX, "{}"))
    save(tmp_path / "other", frame(1))
    (tmp_path / "other" / "2.parquet").replace(tmp_path / "shards" / "2.parquet")
    with pytest.raises(DataError, match=r"2.parquet changed since the run began"):
        list(data.train.batches(16, None))
    assert not readers()


# --- the thread --------------------------------------------------------------------------------


def readers():
    return [t for t in threading.enumerate() if t.name == "glprune-read-ahead"]


def test_the_reader_ends_with_a_pass_that_is_left(shards):
    _, streamed = pair(shards, SIX)
    passing = streamed.train.batches(16, None)
    next(passing)
    assert readers()
    passing.close()
    assert not readers()

    def fail():
        for _ in streamed.train.batches(16, torch.Generator()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not readers()


def test_one_item_is_made_ahead_and_no_more():
    made = []

    def items():
        for n in range(5):
            made.append(n)
            yield n

    drawn = read_ahead(items())
    assert next(drawn) == 0
    deadline = time.monotonic() + 5
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1]
    assert list(drawn) == [1, 2, 3, 4]


def test_what_the_reader_meets_is_raised_where_rows_are_wanted():
    def items():
        yield 1
        raise DataError("x: cannot be read")

    drawn = read_ahead(items())
    assert next(drawn) == 1
    with pytest.raises(DataError, match="cannot be read"):
        next(drawn)
    assert not readers()


# --- a whole run -------------------------------------------------------------------------------

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
"""
RUN = """\
task: binary
model: {factory: "network.py:build"}
data:
  file: shards
  target: y
  exclude: [part, group]
  standardize: train
  stream: {buffer_mb: 0.01}
penalty: {inputs: {strength: 1.0}}
target: {max_features: 3}
search: path
train: {epochs: 2, n_lambdas: 4, batch_size: 32, full_batch_steps: 5, n_stages: 2}
refit: {epochs: 3, batch_size: 32}
export: {exporter: torchscript}
policy: {protected: [group]}
seed: 3
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    columns = frame()
    save(folder / "shards", columns)
    (folder / "network.py").write_text(NETWORK)
    names = ["x0", "x1", "x2", "x3", "k", "row"]
    x = np.stack([columns[n] for n in names], axis=1).astype(np.float64)
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    network = scope["build"]()
    inputs = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    fit_binary(network, (inputs,), torch.tensor(columns["y"] == "yes").float(), 100)
    torch.save(network.state_dict(), folder / "model.pt")
    (folder / "recipe.yaml").write_text(RUN)
    return folder


def test_a_streamed_run_leaves_a_bundle_that_verifies(trained, monkeypatch):
    asked = watched(monkeypatch)
    result = glprune.run(trained / "recipe.yaml", trained / "model.pt", trained / "out")
    (given,) = result.report.export.inputs
    assert asked[tuple(given.columns)] > 10 * len(load_pieces(trained))
    verdict = verify(trained / "out", isolated=False)
    assert verdict.exit_code == 0, [c for c in verdict.checks if c.findings]
    report = result.report
    assert report.data.splits["train"].rows == 540
    assert sum(report.data.splits["train"].target.values()) == pytest.approx(1)
    assert any("data.stream" in note for note in report.data.notes)
    assert {s.value for s in report.segments.attributes[0].segments} == {"missing", "p", "q"}
    assert not readers()

    asked.clear()
    # every column is read, and some are left out
    monkeypatch.setattr(StreamedSplit, "view_columns", lambda split, narrow: _ColumnView(split, narrow))
    glprune.run(trained / "recipe.yaml", trained / "model.pt", trained / "again")
    assert tuple(given.columns) not in asked
    assert (trained / "again" / "model.onnx").read_bytes() == (trained / "out" / "model.onnx").read_bytes()


def watched(monkeypatch):
    """How often which columns were read of a row group."""
    asked, read = Counter(), _ShardReader.__call__

    def spy(self, piece, columns):
        asked[tuple(columns)] += 1
        return read(self, piece, columns)

    monkeypatch.setattr(_ShardReader, "__call__", spy)
    return asked


def load_pieces(folder):
    return open_table(folder / "shards").row_groups


@pytest.mark.parametrize("generator", [None, 5])
def test_a_split_of_some_columns_reads_those_alone_in_the_same_order(shards, monkeypatch, generator):
    _, streamed = pair(shards, "file: shards", inputs=TWO)
    narrow = ColumnSelection((torch.tensor([0, 2]), torch.tensor([1])), (-1, 1))
    lean, cut = view_columns(streamed.train, narrow), _ColumnView(streamed.train, narrow)
    assert isinstance(lean, StreamedSplit)
    asked = watched(monkeypatch)

    def passed(split):
        return split.batches(16, None if generator is None else torch.Generator().manual_seed(generator))

    same_batches(passed(cut), passed(lean))
    pieces = len(load_pieces(shards))
    assert asked == {("x0", "x1", "x2", "k", "x3"): pieces, ("x0", "x2", "x3"): pieces}
    again = view_columns(lean, ColumnSelection((torch.tensor([1]), torch.tensor([0])), (-1, 1)))
    asked.clear()
    same_batches((((x[:, 1:], k), y) for (x, k), y in passed(lean)), passed(again))
    assert asked == {("x0", "x2", "x3"): pieces, ("x2", "x3"): pieces}


def test_an_input_that_passes_whole_keeps_its_columns(shards):
    whole = (
        ", inputs: [{name: u, columns: [x0, x1, x2]}, {name: v, columns: [k, x3], dtype: int, axis: null}]"
    )
    _, streamed = pair(shards, "file: shards", inputs=whole)
    narrow = ColumnSelection((torch.tensor([2]), torch.empty(0, dtype=torch.int64)), (-1, None))
    lean = view_columns(streamed.valid, narrow)
    assert lean.plan.columns == (("x2",), ("k", "x3"))
    same_batches(_ColumnView(streamed.valid, narrow).batches(16, None), lean.batches(16, None))


def test_row_groups_without_rows_of_the_split_are_not_read(tmp_path, monkeypatch):
    columns = frame()
    columns["part"] = np.repeat(["train", "valid", "test"], ROWS // 3)
    save(tmp_path / "shards", columns)
    _, streamed = pair(tmp_path, "file: shards, exclude: [group], split: {column: part}")
    read, call = [], _ShardReader.__call__

    def spy(self, piece, names):
        read.append(piece)
        return call(self, piece, names)

    monkeypatch.setattr(_ShardReader, "__call__", spy)
    for generator in (None, torch.Generator().manual_seed(0)):
        read.clear()
        assert sum(len(y) for _, y in streamed.valid.batches(16, generator)) == 300
        own = [p for p in load_pieces(tmp_path) if p.start < 600 and p.start + p.rows > 300]
        assert sorted(read, key=lambda piece: piece.start) == own
        assert len(own) < len(load_pieces(tmp_path)) / 2


class Here:
    """Workers that are this process."""

    def __init__(self, rebuilt):
        self.rebuilt = rebuilt

    def map(self, work, items, done, listener):
        for place, item in enumerate(items):
            done(place, work(self.rebuilt, item))


def test_resamples_are_streamed_too(trained):
    (trained / "parts.yaml").write_text(RUN + "stability: {n_resamples: 2}\n")
    job = prepare(load_recipe(trained / "parts.yaml"), trained / "model.pt", False, silent)
    check_rows(job)
    here = Here(WorkerContext(job, job.network, None, ()))
    assert here.rebuilt.rows is job.data.train
    fates = [SimpleNamespace(is_kept=place < 3) for place in range(6)]
    found = measure_stability(job, job.recipe.stability, fates, here, silent)
    assert [part.rows for part in found.resamples] == [270, 270]
    assert all(part.kept.count("1") <= 3 for part in found.resamples)


def test_targets_without_labels_are_made_batch_by_batch(trained):
    text = RUN.replace("task: binary", "task: distillation").replace("  target: y\n", "")
    text = text.replace("exclude: [", "exclude: [y, ")
    (trained / "taught.yaml").write_text(text)
    job = prepare(load_recipe(trained / "taught.yaml"), trained / "model.pt", False, silent)
    inputs, target = next(job.data.train.batches(8, None))
    with torch.no_grad():
        assert torch.equal(target, job.task.view(job.network(*inputs)))
    some = job.data.train.take(np.arange(0, 540, 2))
    assert torch.equal(next(some.batches(4, None))[1], target[::2])
    assert isinstance(some, IndexableSplit)
    assert indexable_split(some, 0) is some


def test_permutations_of_streamed_rows_are_refused(shards):
    _, streamed = pair(shards, SIX)
    with pytest.raises(DataError, match=r"rows of the validation split in memory, and data.stream avoids"):
        split_in_memory(streamed.valid)


def test_inspection_of_a_streamed_recipe(trained):
    found = glprune.inspect(trained / "recipe.yaml", trained / "model.pt")
    assert found.rows == {"train": 540, "valid": 180, "test": 180}


def test_nothing_is_read_for_what_is_wrong_in_the_recipe(trained):
    with pytest.raises(GlpruneError, match="no column 'absent'"):
        load_data(recipe_of(trained, "file: shards, features: [absent]", "{}"))
