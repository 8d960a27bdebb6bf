"""The shipped recipes keep what the README says of them."""

import pytest

from tests.integration.test_resume import facts
from tests.kill_helpers import killed_at_random
from tests.paths import ROOT

KILLS = 20


@pytest.fixture(scope="module")
def credit(examples):
    return examples["german_credit"].report


@pytest.fixture(scope="module")
def mnist(examples):
    return examples["mnist"].report


def test_german_credit_loses_five_features_and_no_more_than_two_hundredths_of_auroc(credit):
    assert sum(f.status == "removed" for f in credit.features) >= 5
    assert len(credit.features) == 20
    auroc = next(m for m in credit.performance if m.name == "auroc")
    assert auroc.final >= auroc.original - 0.02  # its standard error is 0.035 on 200 rows


@pytest.mark.slow
def test_mnist_keeps_150_pixels_a_quarter_of_the_neurons_and_the_accuracy_within_a_point(mnist):
    assert sum(f.status == "kept" for f in mnist.features) <= 150
    assert sum(h.after for h in mnist.hidden) < 0.25 * sum(h.before for h in mnist.hidden)
    accuracy = next(m for m in mnist.performance if m.name == "accuracy")
    assert accuracy.final >= accuracy.original - 0.01


@pytest.mark.parametrize("name", ["credit", pytest.param("mnist", marks=pytest.mark.slow)])
def test_every_removed_group_is_certified_or_the_report_warns(name, request):
    report = request.getfixturevalue(name)
    worst = max(point.kkt_zero for point in report.path if point.selected)
    assert (worst > 0.05) == any("optimality conditions" in w for w in report.warnings)
    assert worst < 1
    assert report.removal.difference <= 1e-5
    assert not report.removal.refused


@pytest.mark.slow
def test_the_policys_example_drops_what_it_must_and_all_derived_from_it(examples):
    report = examples["german_credit_policy"].report
    said = {f.name: (f.status, f.reason) for f in report.features}
    for name in ("age", "status_and_sex", "foreign_worker"):
        assert said[name] == ("removed", "must_drop")
    assert said["job"] == ("removed", "derived_from foreign_worker")
    assert said["duration_months"] == ("kept", "must_keep")
    assert {a.name for a in report.segments.attributes} == {"age", "foreign_worker"}


@pytest.mark.slow
def test_the_example_of_sources_needs_no_questionnaire(examples):
    report = examples["german_credit_sources"].report
    groups = {group.name: group for group in report.penalty.groups}
    inside = {"work", "home", "household"}
    assert {f for name in inside for f in groups[name].features} < set(groups["questionnaire"].features)
    assert groups["questionnaire"].kept == []
    assert sum(f.status == "kept" for f in report.features) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "longest"), [("german_credit", 3.0), ("mnist", 8.0)])
def test_an_example_killed_at_twenty_random_moments_makes_the_same_bundle(examples, tmp_path, name, longest):
    recipe, model = ROOT / "recipes" / f"{name}.yaml", ROOT / "examples" / name / "model.pt"
    struck = killed_at_random(recipe, model, tmp_path / "out", KILLS, longest)
    assert struck > KILLS / 2
    assert facts(tmp_path / "out") == facts(examples[name].bundle)
