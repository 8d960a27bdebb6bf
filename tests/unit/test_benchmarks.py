"""What the benchmark of feature selection concludes from its records, and the rule on its held-out sets."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tests.paths import ROOT

FOLDER = ROOT / "benchmarks"

# Demšar, Statistical comparisons of classifiers over multiple data sets (2006), table 6: AUC of four
# classifiers on 14 sets; of two equal as printed the ranks there say which is ahead
DEMSAR = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""


@pytest.fixture
def load(monkeypatch):
    """Import a module of the benchmarks; nothing of it is left behind."""
    monkeypatch.syspath_prepend(str(FOLDER))
    known = set(sys.modules)
    yield import_module
    for name in set(sys.modules) - known:
        if FOLDER.samefile(Path(getattr(sys.modules[name], "__file__", None) or "/").parent):
            del sys.modules[name]


def record(name, method, seed, test, k=3, **facts):
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "k": k,
        "status": "done",
        "test": test,
        **facts,
    }


def lost(name, method, seed, k=3):
    return {"set": name, "method": method, "seed": seed, "k": k, "status": "over limit"}


def test_mean_ranks_and_critical_difference_are_those_of_the_paper(load):
    comparison = load("comparison")
    figures = np.array([line.split() for line in DEMSAR.strip().splitlines()], dtype=float)
    assert comparison.mean_ranks(figures) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert comparison.critical_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    assert comparison.critical_difference(4, 14, level=0.1) == pytest.approx(1.12, abs=5e-3)


def test_critical_values_are_those_of_the_table(load):
    comparison = load("comparison")
    table = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    for methods, critical in table.items():
        scale = (methods * (methods + 1) / 6) ** 0.5
        assert comparison.critical_difference(methods, 1) == pytest.approx(critical * scale, rel=5e-4)


def test_ranks_use_seeds_that_all_share_and_put_a_lost_answer_last(load):
    comparison = load("comparison")
    records = []
    for name in ("a", "b", "c"):
        for seed in range(4):
            records += [record(name, "good", seed, 0.9), record(name, "fair", seed, 0.8)]
            records.append(lost(name, "slow", seed))
        records.append(record(name, "fair", 9, 1.0))  # a seed the others lack
        records.append(record(name, "new", 0, 1.0))  # too few seeds for a rank
    found = comparison.ranks(records)
    assert found.methods == ("good", "fair", "slow")
    assert found.means == (1.0, 2.0, 3.0)
    assert found.sets == 3
    assert found.p == pytest.approx(np.exp(-3))  # chi-square of 6 with two degrees of freedom


def test_a_set_figure_is_a_mean_over_numbers_of_features(load):
    comparison = load("comparison")
    records = [record("a", "x", 0, 0.5), record("a", "x", 0, 0.9, k=5), record("a", "y", 0, 0.6)]
    assert comparison.set_figures(records, ["x", "y"]) == [pytest.approx(0.7), -np.inf]
    assert comparison.set_figures([record("a", "x", 0, 0.5), record("a", "y", 1, 0.5)], ["x", "y"]) is None


def test_differences_are_paired_and_sets_weigh_the_same(load):
    comparison = load("comparison")
    records = [record("a", "x", seed, 0.7) for seed in range(10)] + [record("b", "x", 0, 0.5)]
    records += [record("a", "y", seed, 0.6) for seed in range(10)] + [record("b", "y", 0, 0.8)]
    records += [record("b", "y", 1, 0.0), lost("b", "x", 1)]
    gaps = comparison.gaps(records, "x", "y")
    assert gaps["b"] == {0: pytest.approx(-0.3)}
    assert comparison.pooled(gaps)[0] == pytest.approx((0.1 - 0.3) / 2)
    assert comparison.verdicts(gaps) == (["a"], [], ["b"])


def test_the_interval_over_sets_is_that_of_an_independent_bootstrap(load):
    comparison = load("comparison")
    values = np.random.default_rng(1).normal(0.01, 0.05, size=25)
    mean, low, high = comparison.pooled({f"set{i}": {0: v} for i, v in enumerate(values)}, draws=20_000)
    other = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(other.confidence_interval), abs=1.5e-3)


def test_seeds_widen_the_interval_of_few_sets(load):
    comparison = load("comparison")
    noise = np.random.default_rng(0).normal(0, 0.1, size=10)
    same = {name: dict(enumerate(noise)) for name in ("a", "b")}
    _, low, high = comparison.pooled(same, draws=20_000)
    error = noise.std() / len(noise) ** 0.5 / 2**0.5  # of a mean of two sets' means
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_holm_adjusts_as_r_does(load):
    comparison = load("comparison")
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.7, 0.8]) == [1.0, 1.0]


def test_no_difference_anywhere_is_no_evidence(load):
    comparison = load("comparison")
    assert comparison.signed_rank({"a": {0: 0.0}, "b": {0: 0.0}}) == 1.0
    assert comparison.signed_rank({f"s{i}": {0: 0.1 + i / 100} for i in range(6)}) == pytest.approx(2 / 2**6)


def test_time_is_a_ratio_of_sums_over_shared_seeds(load):
    comparison = load("comparison")
    records = [
        record("a", "glprune", 0, 0.5, search_seconds=1.0, cpu_seconds=2.0),
        record("a", "glprune", 1, 0.5, search_seconds=3.0, cpu_seconds=4.0),
        record("a", "glprune", 2, 0.5, search_seconds=99.0, cpu_seconds=99.0),
        record("a", "lassonet", 0, 0.5, search_seconds=7.0, cpu_seconds=10.0),
        record("a", "lassonet", 1, 0.5, search_seconds=7.0, cpu_seconds=30.0),
        lost("a", "lassonet", 2),
    ]
    ratios = comparison.time_ratios(records, "glprune", "search_seconds", "lassonet")
    assert ratios == {("a", 3): pytest.approx(4 / 40)}


def test_every_set_has_one_role(load):
    sets = load("sets")
    assert len(sets.DEVELOPMENT) + len(sets.HELD_OUT) == len(sets.SETS)
    assert len(sets.HELD_OUT) >= 12


def test_glprune_runs_on_held_out_sets_only_when_asked(load, monkeypatch, capsys):
    features = load("features")
    monkeypatch.setattr(sys, "argv", ["features.py", "--sets", "sonar", "german", "--methods", "glprune"])
    with pytest.raises(SystemExit):
        features.arguments()
    assert (
        "sonar: glprune runs on sets that are looked at once only with --held-out" in capsys.readouterr().err
    )
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--held-out"])
    assert features.arguments().sets == ["sonar", "german"]
    monkeypatch.setattr(sys, "argv", ["features.py"])
    assert features.arguments().sets == list(features.DEVELOPMENT)
    monkeypatch.setattr(sys, "argv", ["features.py", "--held-out"])
    assert features.arguments().sets == list(features.HELD_OUT)


def test_a_look_at_held_out_sets_stays_on_record(load, tmp_path):
    features = load("features")
    path = tmp_path / "features.json"
    first = features.Results(path, 300, [], [])
    first.look("sonar", "abc")
    for name in ("sonar", "german"):
        first.add(name, "glprune", 0, [{"k": 5, "status": "done", "commit": "abc"}])
    second = features.Results(path, 300, ["glprune"], ["sonar"])
    assert [r["set"] for r in second.content["records"]] == ["german"]
    second.look("sonar", "def dirty")
    assert second.content["looks"] == {"abc": ["sonar"], "def dirty": ["sonar"]}


def test_runs_that_share_a_results_file_keep_each_others_records(load, tmp_path):
    features = load("features")
    runs = [features.Results(tmp_path / "features.json", 300, [], []) for _ in range(2)]
    runs[0].add("german", "l1", 0, [{"k": 5, "status": "done"}])
    runs[1].add("german", "random", 0, [{"k": 5, "status": "failed"}])
    runs[0].add("german", "l1", 1, [{"k": 5, "status": "done"}])
    again = features.Results(tmp_path / "features.json", 300, [], [])
    assert [(r["method"], r["seed"]) for r in again.content["records"]] == [
        ("l1", 0),
        ("l1", 1),
        ("random", 0),
    ]
    assert again.done("german", "l1", 1)
    assert not again.done("german", "random", 0)


def test_small_sets_get_ten_seeds(load):
    dataset = load("dataset")

    def made(rows, columns):
        split = dataset.Split(np.zeros((rows, columns), np.float32), np.zeros(rows, np.int64))
        return dataset.DataSet("x", "binary", split, split, split, (), None, (), ())

    assert [made(*shape).seeds for shape in ((999, 50), (1000, 50), (500, 5000))] == [10, 5, 3]


@pytest.fixture
def data(load):
    """Two of eight columns decide between two classes."""
    dataset = load("dataset")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8))
    y = (x[:, 2] - x[:, 5] > 0).astype(np.int64)
    return dataset.divided("x", "binary", x, y, dataset.singles(dataset.names(8)), (1, 2), (8,), 0)


def test_backward_elimination_answers_every_k_and_keeps_what_matters(load, data, tmp_path, monkeypatch):
    network, found = load("network"), []
    monkeypatch.setattr(network, "EPOCHS", 20)
    trained = network.train(data, 0)
    problem = load("answers").Problem(data, trained, tmp_path / "network.pt", tmp_path, 0)
    load("peers").backward(problem, found.append)
    answers = {answer.k: answer.features for answer in found}
    assert answers[2] == (2, 5)
    assert set(answers[1]) < {2, 5}


def test_an_overtrained_network_fits_every_row(load, data):
    network = load("network")
    few = replace(data.train, x=data.train.x[:60], y=np.random.default_rng(0).integers(0, 2, 60))
    trained = network.train(replace(data, train=few, hidden=(64, 32), overtrain=True), 0)
    assert ((network.predict(trained, few.x, "binary") > 0.5) == few.y).all()
