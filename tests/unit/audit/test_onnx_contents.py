"""Everything in an ONNX file is known and used; what is not is found, plain and sealed anew."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from glprune.audit.checks import rendering
from glprune.audit.onnx_file.contents import check_contents
from glprune.audit.onnx_file.usage import check_usage
from glprune.audit.onnx_reader import NotOnnxError, parse
from tests.bundle_fixtures import copied
from tests.unit.audit.attack import failed, told, verified
from tests.unit.audit.attacks_onnx import ATTACKS, STORAGE


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(rendering, "_cannot_draw", lambda report: None)
    monkeypatch.setattr(rendering, "_drawn_alike", lambda report, page: True)


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_what_is_unknown_or_unused_in_the_file_is_found(attack, sealed, audited, producer, tmp_path):
    started = time.process_time()
    verdict = verified(attack, audited, *producer, tmp_path / "bundle", sealed)
    assert time.process_time() - started < 15
    assert verdict.exit_code == attack.exit_code, told(verdict)
    assert attack.check in failed(verdict), told(verdict)
    if not sealed:
        assert "C2" in failed(verdict)


@pytest.mark.parametrize("name", STORAGE)
def test_an_initializer_without_values_is_named_and_every_check_runs(name, audited, producer, tmp_path):
    [attack] = [a for a in ATTACKS if a.name == name]
    copy = copied(audited["slim"], tmp_path / "clean")
    verdict = verified(attack, audited, *producer, tmp_path / "bundle", sealed=True)
    assert f"initializer {copy.model().graph.initializer[0].name!r}" in told(verdict)
    assert "cannot run" not in told(verdict)


def looped(extra_output=False):
    """A loop that adds its state to a sum, which alone is returned, or its state too."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Add", ["sum", "state"], ["sum_out"]),
            helper.make_node("Mul", ["state", "state"], ["state_out"]),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("sum", TensorProto.FLOAT, None),
            value("state", TensorProto.FLOAT, None),
        ],
        [
            value("goes", TensorProto.BOOL, []),
            value("sum_out", TensorProto.FLOAT, None),
            value("state_out", TensorProto.FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", ["n", "yes", "x", "x"], ["y", "rest"], body=body)
    constants = [numpy_helper.from_array(np.array(3), "n"), numpy_helper.from_array(np.array(True), "yes")]
    x, y = (value(name, TensorProto.FLOAT, [2]) for name in "xy")
    return helper.make_graph([node], "g", [x], [y], constants)


def test_a_state_that_a_later_turn_of_a_loop_reads_is_used():
    assert not list(check_usage(looped()))


def test_a_shape_that_is_computed_from_a_weight_does_not_use_its_numbers():
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Shape", ["w"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    weight = numpy_helper.from_array(np.ones((2, 1), "f"), "w")
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2, 1])], [weight]
    )
    assert [where for where, _ in check_usage(graph)] == ["initializer 'w'"]


def test_a_clean_file_has_nothing_unknown(audited):
    for name in ("slim", "wide", "mixed", "recurrent"):
        model = onnx.load(audited[name] / "model.onnx")
        assert not [*check_contents(model), *check_usage(model.graph)]


def nested(levels):
    """Branches within branches."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [value])
    for _ in range(levels):
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "g", [], [value])
        if inner.ByteSize() > 1 << 22:
            break
    return helper.make_model(inner)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nested(9).SerializeToString(), "nested deeper than 8"),
        (b"\x3a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000, "more than 300,000 nodes"),
        (b"\x08\x00" * 2_000_001, "more than 2,000,000 fields"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "not an ONNX model"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_they_are_parsed(model, reason):
    with pytest.raises(NotOnnxError, match=reason):
        parse(model)
