"""``glprune evaluate`` ends within its limits of time and memory, in one line, whatever a model asks for."""

import subprocess
import sys
import time

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from glprune.audit.evaluation import running
from glprune.audit.evaluation.evaluate import Options, evaluate
from glprune.audit.evaluation.worker import RowsError, outputs_of
from glprune.audit.limits import running_memory
from glprune.audit.verify import verify
from glprune.cli.main import main
from tests.bundle_fixtures import copied, follow, seal
from tests.unit.audit.attacks_limits import RUN_ATTACKS, WITHIN_LIMITS, endless_loop, in_file
from tests.unit.audit.test_limits import MEASURED

FAST = (
    "a loop of a million million turns in the original's file",
    "a thousand million copies of every output of the original",
)
MARKED = [
    pytest.param(a, id=a.name, marks=() if a.name in FAST else pytest.mark.slow)
    for a in (*RUN_ATTACKS, WITHIN_LIMITS)
]


def changed(audited, place, key, change, base="kept"):
    copy = copied(audited[base], place)
    change(copy)
    follow(copy)
    seal(copy, key)
    return copy


@pytest.mark.parametrize("attack", MARKED)
def test_a_hostile_model_ends_within_the_limits_in_one_line(attack, audited, producer, tmp_path):
    copy = changed(audited, tmp_path / "bundle", producer[0], attack.change, attack.base)
    data = audited.folder / "data.parquet"
    command = [sys.executable, "-m", "glprune", "evaluate", copy.folder, "--data", data, "--timeout", "8"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True
    )
    figures, _, printed = done.stdout.partition("\n")
    code, _, kilobytes = figures.split()
    assert int(code) == attack.exit_code, printed
    assert time.monotonic() - began < 60
    assert int(kilobytes) < 3 << 20, printed
    assert "Traceback" not in printed
    if attack.message:
        assert attack.message in printed
        assert len(printed.strip().splitlines()) == 1


def test_verify_says_that_outputs_of_the_original_are_unknown_and_that_it_has_loops(
    audited, producer, tmp_path
):
    honest = verify(audited["kept"], isolated=False)
    assert any(
        line.startswith("original.onnx: C6 read its graph; its outputs were not compared")
        for line in honest.not_checked
    )
    assert "control flow" not in "".join(honest.not_checked)
    assert honest.exit_code == 0
    copy = changed(audited, tmp_path / "bundle", producer[0], in_file("original.onnx", endless_loop))
    hostile = verify(copy.folder, seconds=8)
    assert hostile.exit_code in (1, 3)
    assert any("original.onnx" in line and "control flow (Loop)" in line for line in hostile.not_checked)
    without = verify(audited["slim"], isolated=False)
    assert not any("original.onnx" in line for line in without.not_checked)


def test_a_figure_that_is_stated_many_times_is_not_measured_as_often(audited, producer, tmp_path):
    def repeat(report):
        attribute = report["segments"]["attributes"][0]
        attribute["segments"] = attribute["segments"][:1] * 2000

    copy = changed(audited, tmp_path / "bundle", producer[0], lambda copy: copy.edit(repeat))
    result = CliRunner().invoke(
        main, ["evaluate", str(copy.folder), "--data", str(audited.folder / "data.parquet")]
    )
    assert result.exit_code == 1
    assert "/segments/attributes/0/segments: states a name twice" in result.output
    assert result.output.count("\n") == 1


def test_a_process_that_ends_by_itself_is_described(audited, monkeypatch):
    monkeypatch.setattr(running, "_WORKER", "glprune.audit.no_such_module")
    with pytest.raises(
        running.StoppedError, match=r"final model: ended with status 1 \(.*no_such_module"
    ) as caught:
        evaluate(audited["kept"], audited.folder / "data.parquet", options=Options(seconds=60))
    assert caught.value.exit_code == 3


def session_of(nodes, inputs, initializers=()):
    import onnxruntime as ort

    values = [helper.make_tensor_value_info(name, kind, ["n", width]) for name, kind, width in inputs]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", values, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def table_of_codes():
    table = onnx.numpy_helper.from_array(np.arange(10, dtype="f4").reshape(5, 2), "table")
    nodes = [helper.make_node("Gather", ["table", "codes"], ["g"]), helper.make_node("Flatten", ["g"], ["y"])]
    return session_of(nodes, [("codes", TensorProto.INT64, 3)], [table])


def test_the_first_row_that_a_model_cannot_run_is_found_with_its_columns():
    codes = np.zeros((300, 3), dtype=np.int64)
    session = table_of_codes()
    assert outputs_of(session, ["y"], {"codes": codes})[0].shape == (300, 6)
    codes[217, 1], codes[217, 2], codes[290, 0] = 7, -9, 5
    codes[217, 0] = 3  # a code of the table
    with pytest.raises(RowsError) as caught:
        outputs_of(session, ["y"], {"codes": codes})
    assert caught.value.record["row"] == 217
    assert caught.value.record["wrong"] == [("codes", [1], 7), ("codes", [2], -9)]


def test_rows_that_fail_together_are_run_in_halves():
    class Small:
        """Runs at most three rows at once, as where memory is short."""

        def run(self, names, feed):
            if len(feed["x"]) > 3:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 9")
            return [2 * feed["x"]]

    x = np.arange(40, dtype="f4").reshape(20, 2)
    assert np.array_equal(outputs_of(Small(), ["y"], {"x": x})[0], 2 * x)


@pytest.mark.parametrize(
    ("output", "says"),
    [(np.zeros(3), "shape"), (np.float32(1), "shape"), (np.array(["a"] * 5), "holds no numbers")],
)
def test_outputs_that_are_no_numbers_for_each_row_are_refused(output, says):
    class Other:
        def run(self, names, feed):
            return [output]

    with pytest.raises(RowsError, match=says):
        outputs_of(Other(), ["y"], {"x": np.zeros((5, 2))})


@pytest.mark.parametrize("codes", [[99, 1], [-1000, 1]])
def test_a_code_that_the_network_has_no_entry_for_is_named(codes, audited, tmp_path):
    table = pq.read_table(audited.folder / "data.parquet")
    kind = table["kind"].to_pylist()
    kind[41] = codes[0]
    table = table.set_column(table.column_names.index("kind"), "kind", pa.array(kind))
    path = tmp_path / "own.parquet"
    pq.write_table(table, path)
    result = CliRunner().invoke(main, ["evaluate", str(audited["mixed"]), "--data", str(path)])
    assert result.exit_code == 2
    assert f"own.parquet: column 'kind' holds {codes[0]} in row 42" in result.output
    assert result.output.count("\n") == 1


def test_the_limit_of_memory_grows_with_model_and_rows():
    assert running_memory(0, 0) == 2 << 30
    assert running_memory(1 << 30, 1 << 20) > 10 << 30
