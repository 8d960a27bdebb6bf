"""``glprune evaluate``: right values by scikit-learn, changed figures found, every kind of rows, no PyTorch."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn import metrics as sk

from glprune.audit.evaluation.evaluate import Options, as_record, evaluate
from glprune.audit.evaluation.figures import Figure, comparisons, judge, not_comparable, widening
from glprune.cli.main import main
from glprune.errors import UsageError
from glprune.schema.report import Interval
from tests.bundle_fixtures import copied, follow, seal
from tests.unit.audit.attacks_evaluate import ATTACKS, ON_OWN_ROWS


@pytest.fixture(scope="session")
def data(audited):
    return audited.folder / "data.parquet"


def place(figure):
    return f"{figure.where} | {figure.model} | {figure.name}"


def values(found, model="final", where="all rows"):
    return {f.name: f.found for f in found.figures if (f.model, f.where) == (model, where)}


def table_of(data, **changes):
    table = pq.read_table(data)
    for name, column in changes.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    return table


def test_every_figure_agrees_on_the_file_of_the_run(audited, data):
    found = evaluate(audited["kept"], data)
    assert (found.exit_code, found.kind, found.rows) == (0, "test rows", 48)
    assert all(figure.agrees for figure in found.figures)
    assert {f.model for f in found.figures} >= {"final", "original", "int8", "final and original"}
    assert {f.where.split(" = ")[0] for f in found.figures} == {"all rows", "h", "kind"}
    stated = [f for f in found.figures if f.interval is not None]
    assert all(f.stated_interval is not None for f in stated)
    assert max(abs(f.stated - f.found) for f in stated) < 1e-6


def test_own_rows_are_measured_as_scikit_learn_does(audited, data, tmp_path):
    table = pq.read_table(data).slice(20, 150)
    pa.csv.write_csv(table, tmp_path / "own.csv")
    found = evaluate(audited["kept"], tmp_path / "own.csv")
    assert (found.exit_code, found.kind) == (0, "own rows")
    report = json.loads((audited["kept"] / "report.json").read_text())
    columns = report["export"]["inputs"][0]["columns"]
    rows = np.stack([table[name].to_numpy() for name in columns], axis=1).astype(np.float32)
    session = ort.InferenceSession(audited["kept"] / "model.onnx")
    logits = session.run(None, {"features": rows})[0][:, 0].astype(float)
    target = np.array(table["y"].to_pylist()) == "yes"
    probability = 1 / (1 + np.exp(-logits))
    measured = values(found)
    assert measured["rows"] == 150
    assert measured["auroc"] == pytest.approx(sk.roc_auc_score(target, logits), abs=1e-9)
    assert measured["accuracy"] == pytest.approx(sk.accuracy_score(target, logits > 0), abs=1e-12)
    assert measured["log_loss"] == pytest.approx(sk.log_loss(target, probability), abs=1e-6)
    assert measured["brier_score"] == pytest.approx(sk.brier_score_loss(target, probability), abs=1e-6)
    chosen = table["kind"].to_numpy() == 2
    segment = values(found, where="kind = 2")
    assert segment["rows"] == chosen.sum()
    assert segment["accuracy"] == pytest.approx(sk.accuracy_score(target[chosen], logits[chosen] > 0))


def attacked(attack, audited, folder, key):
    """The folder of a bundle around whose lie the producer made everything anew."""
    copy = copied(audited["kept"], folder / "bundle")
    copy.edit(attack.change)
    follow(copy)
    seal(copy, key)
    return copy.folder


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_changed_figure_is_found_by_who_has_the_rows(attack, audited, data, tmp_path, key):
    found = evaluate(attacked(attack, audited, tmp_path, key), data)
    assert found.exit_code == attack.code, attack.description
    assert any(place(f).startswith(attack.figure) for f in found.figures if f.agrees is False)


@pytest.mark.parametrize("attack", ON_OWN_ROWS, ids=lambda attack: attack.name)
def test_an_interval_that_is_too_wide_is_found_on_own_rows(attack, audited, data, tmp_path, key):
    pa.csv.write_csv(pq.read_table(data), tmp_path / "own.csv")
    found = evaluate(attacked(attack, audited, tmp_path, key), tmp_path / "own.csv")
    assert found.exit_code == attack.code, attack.description
    wrong = {place(f): f.reason for f in found.figures if f.agrees is False}
    assert "times as wide as its rows allow" in wrong[attack.figure]


def test_a_figure_may_differ_by_little_whatever_the_rows(audited, data):
    found = evaluate(audited["kept"], data)
    metrics = [f for f in found.figures if f.interval is not None]
    assert all(f.reach <= 0.11 * (f.interval.high - f.interval.low) + 1e-5 for f in metrics)
    exact = [f for f in metrics if f.model == "final" and f.where == "all rows"]
    assert max(f.allowed for f in exact) < 1e-3


def test_one_row_far_away_does_not_hide_inverted_labels(audited, data, tmp_path):
    table = pq.read_table(data)
    labels = ["no" if y == "yes" else "yes" for y in table["y"].to_pylist()]
    plan = json.loads((audited["kept"] / "plan.json").read_text())["inputs"][0]
    name = plan["columns"][0]
    far = table[name].to_numpy().copy()
    far[0] = 1e9
    pq.write_table(table_of(data, y=labels, **{name: far}), tmp_path / "own.parquet")
    found = evaluate(audited["kept"], tmp_path / "own.parquet")
    wrong = {place(f) for f in found.figures if f.agrees is False}
    assert {
        "all rows | final | auroc",
        "all rows | final | accuracy",
        "all rows | final | brier_score",
    } <= wrong


def test_what_own_rows_cannot_compare_is_listed_and_incomplete(audited, data, tmp_path):
    table = pq.read_table(data)
    of_yes = table.filter(pa.compute.equal(table["y"], "yes"))
    cases = {
        "one class": (of_yes, "not defined on these rows"),
        "few": (table.slice(0, 19), "fewer than 20 rows"),
        "two": (table.slice(0, 2), "fewer than 20 rows"),
        "unknown": (table_of(data, kind=[77] * 240), "Segments by kind: "),
    }
    for name, (rows, reason) in cases.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(rows, path)
        found = evaluate(audited["kept"], path)
        assert found.exit_code == 3, name
        assert any(reason in sentence for sentence in found.not_evaluated), name
    pq.write_table(table_of(data, kind=[77] * 100 + [1] * 140), path)
    sentences = evaluate(audited["kept"], path).not_evaluated
    assert any("100 rows of kind = other values" in sentence for sentence in sentences)
    assert evaluate(audited["kept"], path, options=Options(overall=True)).exit_code == 0


def test_the_range_of_what_agrees_is_shown_and_holds_what_agrees(audited, data, tmp_path):
    pa.csv.write_csv(pq.read_table(data).slice(20, 150), tmp_path / "own.csv")
    found = evaluate(audited["kept"], tmp_path / "own.csv")
    judged = [f for f in found.figures if f.agrees is not None]
    assert found.comparisons == len(judged) == comparisons(found.figures)
    assert found.widening == widening(len(judged))
    assert all(f.agrees == (f.agrees_within.low <= f.stated <= f.agrees_within.high) for f in judged)
    record = as_record(found)
    assert (record["comparisons"], record["widening"]) == (found.comparisons, found.widening)
    first = next(f for f in record["figures"] if f["name"] == "log_loss")
    assert first["agrees_within"][0] <= first["stated"] <= first["agrees_within"][1]
    overall = evaluate(audited["kept"], tmp_path / "own.csv", options=Options(overall=True))
    assert {f.where for f in overall.figures} == {"all rows"}
    assert overall.widening < found.widening


def test_a_file_of_the_name_and_rows_of_the_report_but_another_digest_is_noted(audited, data, tmp_path):
    pq.write_table(pq.read_table(data), tmp_path / "data.parquet", compression="gzip")
    found = evaluate(audited["kept"], tmp_path / "data.parquet")
    assert found.kind == "own rows"
    assert any("another SHA-256" in note for note in found.notes)


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    from glprune.audit import signing

    path = tmp_path_factory.mktemp("keys") / "key"
    signing.make_key(path)
    return signing.read_private_key(path)


def test_rows_with_other_labels_disagree(audited, data, tmp_path):
    table = table_of(data, y=np.random.default_rng(0).permutation(pq.read_table(data)["y"].to_pylist()))
    pq.write_table(table, tmp_path / "own.parquet")
    found = evaluate(audited["kept"], tmp_path / "own.parquet")
    assert found.exit_code == 1
    assert any(place(f) == "all rows | final | auroc" for f in found.figures if f.agrees is False)


def test_removed_columns_are_not_needed(audited, data, tmp_path):
    for name in ("kept", "mixed"):
        report = json.loads((audited[name] / "report.json").read_text())
        removed = [c for f in report["features"] if f["status"] == "removed" for c in f["columns"]]
        pa.csv.write_csv(pq.read_table(data).drop_columns(removed), tmp_path / f"{name}.csv")
        whole, narrow = (evaluate(audited[name], path) for path in (data, tmp_path / f"{name}.csv"))
        assert narrow.exit_code == 0
        assert values(narrow)["rows"] == 240
        assert values(whole)["rows"] == 48
        if name == "kept":
            assert any("'h'" in sentence or "and" in sentence for sentence in narrow.not_evaluated)
            assert not values(narrow, "original")


def test_arrays_give_what_a_file_gives(audited, data, tmp_path):
    table = pq.read_table(data)
    pa.csv.write_csv(table, tmp_path / "rows.csv")
    features = np.stack([table[name].to_numpy() for name in "abcdefgh"], axis=1).astype(np.float32)
    codes = np.stack([table[name].to_numpy() for name in ("kind", "place")], axis=1)
    labels = np.array(table["y"].to_pylist())
    np.savez(
        tmp_path / "kept.npz", features=features, target=labels, kind=codes[:, 0], h=table["h"].to_numpy()
    )
    np.savez(tmp_path / "mixed.npz", numbers=features, codes=codes, target=(labels == "yes").astype(int))
    for name in ("kept", "mixed"):
        by_file, by_arrays = (evaluate(audited[name], tmp_path / f) for f in ("rows.csv", f"{name}.npz"))
        measured = [{place(f): f.found for f in found.figures} for found in (by_file, by_arrays)]
        assert measured[0] == pytest.approx(measured[1], abs=1e-6)


def test_arrays_may_hold_the_kept_columns_alone(audited, data, tmp_path):
    plan = json.loads((audited["kept"] / "plan.json").read_text())["inputs"][0]
    table = pq.read_table(data)
    rows = np.stack([table[name].to_numpy() for name in plan["columns"]], axis=1)
    np.savez(tmp_path / "rows.npz", features=rows, target=np.array(table["y"].to_pylist()))
    found = evaluate(audited["kept"], tmp_path / "rows.npz")
    assert (found.exit_code, values(found)["rows"]) == (0, 240)


def test_a_loader_is_known_by_its_rows(audited, tmp_path, monkeypatch):
    monkeypatch.chdir(audited.folder)
    found = evaluate(audited["recurrent"], loader="networks.py:sequences")
    assert (found.exit_code, found.kind, values(found)["rows"]) == (0, "test rows", 60)
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def rows(split):\n"
        "    x = np.random.default_rng(5).normal(size=(80, 5, 4)).astype('float32')\n"
        "    return [({'x': x[:30]}, x[:30, :, 0].mean(1)), ({'x': x[30:]}, x[30:, :, 0].mean(1))]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = evaluate(audited["recurrent"], loader="own.py:rows")
    x = np.random.default_rng(5).normal(size=(80, 5, 4)).astype("float32")
    report = json.loads((audited["recurrent"] / "report.json").read_text())
    plan = json.loads((audited["recurrent"] / "plan.json").read_text())["inputs"][0]
    session = ort.InferenceSession(audited["recurrent"] / "model.onnx")
    output = session.run(None, {"x": np.ascontiguousarray(x[:, :, plan["kept"]])})[0][:, 0]
    assert report["task"] == "regression"
    assert values(found)["rmse"] == pytest.approx(
        sk.root_mean_squared_error(x[:, :, 0].mean(1), output), abs=1e-6
    )
    assert (found.kind, values(found)["rows"]) == ("own rows", 80)


def test_the_original_can_be_given_and_another_one_disagrees(audited, data, tmp_path):
    assert not values(evaluate(audited["ruled"], data), "original")
    given = evaluate(audited["ruled"], data, original=audited["kept"] / "original.onnx")
    assert given.exit_code == 0
    assert values(given, "original")["auroc"] == values(evaluate(audited["kept"], data), "original")["auroc"]
    assert "no digest" in given.notes[0]
    wide = audited["wide"] / "model.onnx"  # takes all columns too
    other = evaluate(audited["ruled"], data, original=wide)
    assert other.exit_code == 1
    assert all(f.agrees for f in other.figures if f.model == "final")


def figure(stated, found, half=0.02, stated_half=0.02):
    interval, known = (Interval(low=v - h, high=v + h) for v, h in ((found, half), (stated, stated_half)))
    return Figure("all rows", "final", "accuracy", stated, found, 0.0, known, interval, 100, 100)


def test_on_own_rows_the_interval_of_the_difference_decides():
    agrees, differs = judge([figure(0.9, 0.92)], "own rows"), judge([figure(0.9, 0.95)], "own rows")
    assert (agrees[0].agrees, differs[0].agrees) == (True, False)  # 0.02 * sqrt(2) = 0.028
    many = judge([figure(0.9, 0.935), *[figure(0.9, 0.9)] * 49], "own rows")
    assert many[0].agrees  # 3.29 standard errors for 50 comparisons
    assert not judge([figure(0.9, 0.935)], "own rows")[0].agrees


def test_on_the_rows_of_the_report_only_rounding_is_allowed():
    exact, near = figure(0.9, 0.9), figure(0.9, 0.9001)
    assert judge([exact], "test rows")[0].agrees
    assert not judge([near], "test rows")[0].agrees


def test_a_difference_that_only_a_wide_tolerance_explains_is_not_comparable():
    wide = replace(figure(0.9, 0.92), allowed=0.05, cap=0.004)
    (judged,) = judge([wide], "test rows")
    assert judged.agrees is None
    assert not_comparable([judged]) == [judged]
    assert judge([replace(wide, stated=0.918)], "test rows")[0].agrees is None  # its interval differs
    near = replace(figure(0.9, 0.903), allowed=0.05, cap=0.004)
    assert judge([near], "test rows")[0].agrees
    assert judge([replace(wide, found=0.97)], "test rows")[0].agrees is False


def test_a_comparison_that_cannot_fail_is_none():
    (judged,) = judge([figure(0.9, 0.5, half=0.6)], "own rows")
    assert (judged.agrees, not_comparable([judged])) == (None, [judged])
    assert (judged.agrees_within.low, judged.agrees_within.high) == (0, 1)


def test_right_reports_agree_on_most_samples_and_wrong_ones_do_not():
    from glprune.metrics.confidence_intervals import confidence_intervals
    from glprune.metrics.scorer import Scorer

    rng, scorer, agreed = np.random.default_rng(0), Scorer("regression"), 0

    def measured(scale):
        target = rng.normal(size=150)
        output = target + scale * rng.normal(size=150)
        interval = confidence_intervals(scorer, {"final": output}, target, 0)["rmse"].values["final"]
        return scorer.metric("rmse", output, target), interval

    for _ in range(60):
        (stated, known), (found, interval) = measured(1.0), measured(1.0)
        given = Figure("all rows", "final", "rmse", stated, found, 0.0, known, interval, 150, 150)
        agreed += judge([given], "own rows")[0].agrees
    assert agreed >= 52
    (stated, known), (found, interval) = measured(1.0), measured(1.6)
    given = Figure("all rows", "final", "rmse", stated, found, 0.0, known, interval, 150, 150)
    assert not judge([given], "own rows")[0].agrees


ERRORS = {
    "no rows named": ([], "either --data or --loader"),
    "no such file": (["--data", "none.csv"], "none.csv cannot be read"),
    "a missing column": (["--data", "missing.csv"], "column 'a' is missing"),
    "no target": (["--data", "unlabelled.csv"], "target column 'y' is missing"),
    "an unknown class": (["--data", "other.csv"], "holds 'maybe'"),
    "an array of another width": (["--data", "width.npz"], "has 5 columns"),
    "no array of an input": (["--data", "names.npz"], "no array 'features'"),
    "pickled arrays": (["--data", "pickled.npz"], "cannot be read as arrays"),
    "no loader": (["--loader", "none.py:rows"], "none.py"),
    "a broken loader": (["--loader", "broken.py:rows"], "ValueError: broken"),
    "no original": (["--data", "own.csv", "--original", "none.onnx"], "--original: none.onnx"),
    "an original of another kind": (
        ["--data", "own.csv", "--original", "own.csv"],
        "own.csv: not an ONNX model; give",
    ),
}


@pytest.fixture(scope="session")
def faulty(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    table = pq.read_table(data)
    pa.csv.write_csv(table, folder / "own.csv")
    pa.csv.write_csv(table.drop_columns(["a"]), folder / "missing.csv")
    pa.csv.write_csv(table.drop_columns(["y"]), folder / "unlabelled.csv")
    pa.csv.write_csv(table_of(data, y=["maybe"] * 240), folder / "other.csv")
    np.savez(folder / "width.npz", features=np.zeros((9, 5), "f4"), target=np.zeros(9, int))
    np.savez(folder / "names.npz", x=np.zeros((9, 8), "f4"))
    np.savez(folder / "pickled.npz", features=np.array([{}, {}], dtype=object))
    (folder / "broken.py").write_text("def rows(split):\n    raise ValueError('broken')\n")
    return folder


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_used_ends_in_one_line(name, audited, faulty, monkeypatch):
    monkeypatch.chdir(faulty)
    arguments, message = ERRORS[name]
    result = CliRunner().invoke(main, ["evaluate", str(audited["kept"]), *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.count("\n") == 1


def test_a_bundle_that_was_changed_is_not_run(audited, data, tmp_path):
    copy = copied(audited["kept"], tmp_path / "bundle")
    copy.edit(lambda report: report.update(purpose="another"))
    with pytest.raises(UsageError, match=r"is not run: .*SHA-256") as caught:
        evaluate(copy.folder, data)
    assert caught.value.exit_code == 1


def test_the_command_prints_a_table_and_json(audited, data):
    arguments = ["evaluate", str(audited["kept"]), "--data", str(data)]
    printed = CliRunner().invoke(main, arguments)
    assert printed.exit_code == 0
    assert "agrees:" in printed.output
    assert "kind = 2" in printed.output
    record = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert (record["exit_code"], record["data"]["kind"]) == (0, "test rows")
    assert record == json.loads(json.dumps(as_record(evaluate(audited["kept"], data))))
    short = CliRunner().invoke(main, [*arguments, "--disagreements", "--overall"]).output
    assert "all rows" not in short
    assert "not evaluated: Segments: left out (--overall)." in short
    first = next(f for f in record["figures"] if f["name"] == "auroc")
    assert first["interval"][0] <= first["found"] <= first["interval"][1]


def test_pytorch_is_not_imported(audited, data):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from glprune.cli.main import main\n"
        f"main(['evaluate', {str(audited['kept'])!r}, '--data', {str(data)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_verify_checks_the_kept_original(audited, tmp_path, key):
    from glprune.audit.verify import verify

    assert verify(audited["kept"], isolated=False).exit_code == 0
    for name, change in (
        ("gone", lambda copy: (copy / "original.onnx").unlink()),
        ("swapped", lambda copy: (copy / "original.onnx").write_bytes((copy / "model.onnx").read_bytes())),
    ):
        copy = copied(audited["kept"], tmp_path / name)
        change(copy)
        follow(copy)
        seal(copy, key)
        verdict = verify(copy.folder, isolated=False)
        assert verdict.exit_code == 1
        failed = {f.file for check in verdict.checks for f in check.findings}
        assert failed & {"original.onnx", "report.json"}
