"""Whether a network as it is loaded is the one that was trained: what is found, and what is not."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import glprune
from glprune.audit.verify import verify
from glprune.errors import ModelError
from glprune.evaluation.measurements import check_original
from glprune.model.original import find_doubts, measure_original, unmet_expectations
from glprune.model.original_check import OriginalCheck
from glprune.model.task import Task
from glprune.runtime.events import OriginalMeasured, silent
from glprune.schema.metrics import METRICS
from glprune.schema.recipe_loading import load_recipe
from glprune.search.prepare import prepare
from tests.networks import fit_binary

NETWORK = """
from torch import nn
def build(end="none"):
    ends = {"none": [], "sigmoid": [nn.Sigmoid()]}
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), *ends[end])
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.csv, target: y, classes: ["no", "yes"], standardize: train}
search: path
export: {exporter: torchscript}
target: {lambda: 0.001}
train: {n_lambdas: 4, epochs: 1, full_batch_steps: 5}
refit: {epochs: 1}
report: {baselines: false}
"""


def binary(output="logits"):
    return Task("binary", output, 2)


def rows(generator, count, share, gain, noise=1.0):
    """Calibrated logits and labels: the label is drawn with the probability that the logit states."""
    logit = gain * torch.randn(count, 1, generator=generator) + torch.logit(torch.tensor(share))
    return logit, (torch.rand(count, generator=generator) < torch.sigmoid(logit[:, 0])).long()


def splits(logit, target):
    """Divide rows 60 to 20 to 20."""
    a, b = int(0.6 * len(target)), int(0.8 * len(target))
    return {
        "train": (logit[:a], target[:a]),
        "valid": (logit[a:b], target[a:b]),
        "test": (logit[b:], target[b:]),
    }


@pytest.mark.parametrize(("count", "share"), [(60, 0.5), (300, 0.1), (1000, 0.03), (20000, 0.01)])
def test_weak_networks_on_few_rows_and_rare_events_raise_no_doubt(count, share):
    accused = 0
    for seed in range(40):
        logit, target = rows(torch.Generator().manual_seed(seed), count, share, 0.4)  # AUROC about 0.6
        if min(int(y.sum()) for _, y in splits(logit, target).values()) == 0:
            continue
        accused += bool(find_doubts(binary(), splits(logit, target)))
    assert accused <= 2


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (
            lambda logit: logit[torch.randperm(len(logit), generator=torch.Generator().manual_seed(1))],
            "near chance",
        ),
        (lambda logit: -logit, "worse than chance"),
        (lambda logit: 50 * logit, "class shares alone"),
        (lambda logit: logit + 2, "mean score of class 2"),
        (lambda logit: torch.sigmoid(logit), "probabilities"),
        (lambda logit: torch.zeros_like(logit), "near chance"),
    ],
)
def test_a_network_that_is_not_used_as_trained_is_doubted(change, fragment):
    logit, target = rows(torch.Generator().manual_seed(0), 600, 0.3, 1.5)
    assert not find_doubts(binary(), splits(logit, target))
    assert any(fragment in doubt for doubt in find_doubts(binary(), splits(change(logit), target)))


def test_a_split_at_chance_is_named_where_the_others_are_well():
    logit, target = rows(torch.Generator().manual_seed(0), 3000, 0.5, 3.0)
    found = splits(logit, target)
    scores, labels = found["test"]
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(2))
    doubts = find_doubts(binary(), found | {"test": (0.5 * scores[order], labels)})
    assert len(doubts) == 1
    assert "rows of test" in doubts[0]


def test_permuted_classes_and_softmax_outputs_are_doubted():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(900, 4, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    task = Task("multiclass", "logits", 4, width=4)
    assert not find_doubts(task, splits(logits, target))
    shifted = find_doubts(task, splits(logits.roll(1, dims=1), target))
    assert any("of a class against the others" in doubt for doubt in shifted)
    assert "probabilities" in find_doubts(task, splits(logits.softmax(1), target))[0]


def test_a_class_is_called_by_its_label():
    logit, target = rows(torch.Generator().manual_seed(0), 600, 0.3, 1.5)
    doubts = find_doubts(binary(), splits(logit + 2, target), ("no", "yes"))
    assert any("mean score of class 'yes'" in doubt for doubt in doubts)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(900, 3, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    task = Task("multiclass", "logits", 3, width=3)
    shifted = find_doubts(
        task, splits(logits + torch.tensor([0.0, 0.0, 6.0]), target), ("low", "medium", "high")
    )
    assert any("mean score of class 'high' 0.9" in doubt for doubt in shifted)


def test_a_refusal_says_in_which_order_the_classes_were_read(problem):
    swapped = changed(problem, 'data.classes=["yes", "no"]')
    with pytest.raises(ModelError, match=r"the order of data\.classes \(yes, no\)"):
        glprune.inspect(swapped, problem / "model.pt")
    scaled = changed(problem, "data.classes=null", "data.standardize=none")
    with pytest.raises(ModelError, match=r"not given, so the sorted labels were taken: no, yes\)"):
        glprune.inspect(scaled, problem / "model.pt")


def test_a_predictor_of_the_majority_class_is_not_at_chance_by_its_accuracy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 3, generator=generator) * 0.4 + torch.tensor([3.0, 0.0, 0.0])
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert bool((logits.argmax(1) == 0).double().mean() > 0.99)
    assert not find_doubts(Task("multiclass", "logits", 3, width=3), splits(logits, target))


@pytest.mark.parametrize(
    ("change", "doubted"),
    [
        (lambda y: y, False),
        (lambda y: 1000 * y + 3, True),  # trained on a scaled target
        (lambda y: torch.full_like(y, 1.0), True),
        (lambda y: -y, True),
    ],
)
def test_regression_that_explains_nothing_is_doubted(change, doubted):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(400, generator=generator)
    predicted = 0.1 * y + 0.3 * torch.randn(400, generator=generator) ** 3 * 0.3
    task = Task("regression", "logits", 0)
    doubts = find_doubts(task, splits(change(predicted)[:, None], y))
    assert bool(doubts) is doubted
    assert all("R² -" in doubt for doubt in doubts)


def test_a_network_trained_on_the_logarithm_of_the_target_is_doubted():
    generator = torch.Generator().manual_seed(0)
    log = 8 + 0.3 * torch.randn(400, generator=generator)
    y = torch.exp(log + 1.6 * torch.randn(400, generator=generator))  # few values make most of the variance
    task = Task("regression", "logits", 0)
    [doubt, *_] = find_doubts(task, splits(log[:, None], y))
    assert "R² -0." in doubt
    assert not find_doubts(task, splits(log[:, None], log + torch.randn(400, generator=generator)))


def test_weak_regression_on_few_rows_raises_no_doubt():
    task = Task("regression", "logits", 0)
    accused = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(100, generator=generator)
        y = 0.3 * x + torch.randn(100, generator=generator)
        accused += bool(find_doubts(task, splits(0.3 * x[:, None], y)))
    assert accused <= 2


def test_expected_metrics_hold_within_noise_and_rounding():
    logit, target = rows(torch.Generator().manual_seed(0), 2000, 0.4, 2.0)
    found = measure_original(binary(), splits(logit, target)).splits[2].metrics["auroc"]
    assert not unmet_expectations(binary(), splits(logit, target), {"auroc": round(found, 3)})
    assert not unmet_expectations(binary(), splits(logit, target), {"auroc": found + 0.01})
    for wrong in (0.5, found + 0.1):
        assert (
            f"auroc {wrong:g} is expected"
            in unmet_expectations(binary(), splits(logit, target), {"auroc": wrong})[0]
        )


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A network trained behind a scaler on columns of very different scales."""
    folder = tmp_path_factory.mktemp("original")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=generator)
    y = (x[:, 0] - x[:, 1] + x[:, 2] * 0.5 + 0.7 * torch.randn(600, generator=generator) > 0).float()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    fit_binary(network, (x,), y, 150)
    torch.save(network.state_dict(), folder / "model.pt")
    raw = x * torch.tensor([5.0, 900.0, 0.1, 40.0, 3.0, 70.0]) + torch.tensor(
        [30.0, 5000.0, 1.0, 7.0, 0.0, 300.0]
    )
    lines = [
        ",".join([*(f"{v:.6g}" for v in row.tolist()), "yes" if t else "no"])
        for row, t in zip(raw, y, strict=True)
    ]
    (folder / "data.csv").write_text("\n".join(["a,b,c,d,e,f,y", *lines]) + "\n")
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def changed(folder, *changes):
    return load_recipe(folder / "recipe.yaml", list(changes))


def test_the_metrics_of_every_split_come_before_the_notices_and_the_path(problem, tmp_path):
    told = []
    glprune.run(changed(problem), problem / "model.pt", tmp_path / "out", on_event=told.append)
    measured = [event for event in told if isinstance(event, OriginalMeasured)]
    assert [(event.split, event.rows) for event in measured] == [
        ("train", 360),
        ("valid", 120),
        ("test", 120),
    ]
    assert all(event.metrics["auroc"] > 0.85 for event in measured)
    report = glprune.Result.load(tmp_path / "out").report
    shown = {metric.name: metric.original for metric in report.performance}
    assert measured[2].metrics == pytest.approx(shown, abs=1e-5)
    inspection = glprune.inspect(changed(problem), problem / "model.pt")
    assert [dict(split.metrics) for split in inspection.original] == [event.metrics for event in measured]


@pytest.mark.parametrize("call", [glprune.run, glprune.inspect])
def test_a_network_trained_behind_a_scaler_stops_and_the_message_names_the_cause(problem, tmp_path, call):
    out = (tmp_path / "out",) if call is glprune.run else ()
    with pytest.raises(ModelError) as caught:
        call(changed(problem, "data.standardize=none"), problem / "model.pt", *out)
    text = str(caught.value)
    assert "does not look like the one that was trained" in text
    assert "With data.standardize: train AUROC on all rows would be 0.9" in text
    for cause in ("order of data.classes", "model.output", "order of the columns", "--accept-original"):
        assert cause in text
    assert "test (120 rows) AUROC 0." in text
    assert "\n" not in text
    assert not (tmp_path / "out").exists()


def test_a_slight_scaling_outside_the_network_is_hinted_at_and_a_right_recipe_is_not(problem, tmp_path):
    header, *lines = (problem / "data.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    values = torch.tensor([[float(c) for c in row[:-1]] for row in cells])
    near = (values - values.mean(0)) / values.std(0) * torch.tensor([0.4, 1.6, 1, 1, 1, 1])
    rows_ = [",".join([*(f"{v:.6g}" for v in x.tolist()), c[-1]]) for x, c in zip(near, cells, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join([header, *rows_]) + "\n")
    for name in ("network.py", "recipe.yaml", "model.pt"):
        (tmp_path / name).write_bytes((problem / name).read_bytes())

    def hints(*changes):
        found = glprune.inspect(changed(tmp_path, *changes), tmp_path / "model.pt", accept_original=True)
        assert not any("more than" in note or "chance" in note for note in found.notes)
        return [note for note in found.notes if "predicts better with" in note]

    assert not hints()
    (hint,) = hints("data.standardize=none")
    assert "with data.standardize: train: auroc on all rows would be 0.9" in hint


MANY = 'data.standardize: ["a", "b", "c"] (the columns of more than two values)'


@pytest.fixture(scope="module")
def passed_through(tmp_path_factory):
    """A network whose scaler left rare columns of 0 and 1 as they are, as a ColumnTransformer does."""
    folder = tmp_path_factory.mktemp("passed_through")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=generator)
    x[:, 3:] = (torch.rand(600, 3, generator=generator) < torch.tensor([0.05, 0.5, 0.93])).float()
    noise = 0.5 * torch.randn(600, generator=generator)
    y = (x[:, 0] - x[:, 1] + 3 * x[:, 3] + x[:, 4] - 2 * x[:, 5] + 1.4 + noise > 0).float()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    fit_binary(network, (x,), y, 150)
    torch.save(network.state_dict(), folder / "model.pt")
    ones = torch.ones(3)
    raw = x * torch.cat([torch.tensor([5.0, 90.0, 0.1]), ones]) + torch.cat(
        [torch.tensor([30.0, 500.0, 1.0]), 0 * ones]
    )
    lines = [
        ",".join([*(f"{v:.6g}" for v in row.tolist()), "yes" if t else "no"])
        for row, t in zip(raw, y, strict=True)
    ]
    (folder / "data.csv").write_text("\n".join(["a,b,c,d,e,f,y", *lines]) + "\n")
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def test_a_scaler_of_some_columns_is_found_and_its_recipe_runs_and_is_verified(passed_through, tmp_path):
    with pytest.raises(ModelError) as caught:
        glprune.inspect(changed(passed_through, "data.standardize=none"), passed_through / "model.pt")
    assert f"With {MANY} AUROC on all rows would be 0.9" in str(caught.value)
    assert "standardize: train " not in str(caught.value)

    wrong = glprune.inspect(changed(passed_through), passed_through / "model.pt", accept_original=True)
    assert any(MANY in note for note in wrong.notes)

    right = changed(passed_through, 'data.standardize=["[abc]"]')
    result = glprune.run(right, passed_through / "model.pt", tmp_path / "out")
    assert result.report.data.standardize == ["[abc]"]
    assert not any("data.standardize" in warning for warning in result.report.warnings)
    assert "of [abc] only" in (tmp_path / "out" / "report.html").read_text()
    failed = [c.id for c in verify(tmp_path / "out").checks if c.status == "failed"]
    assert not failed
    slim = glprune.load(
        tmp_path / "out",
        factory=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)),
    )
    kept = [feature.name for feature in result.report.features if feature.status == "kept"]
    changes = [
        bool(m != 0 or s != 1) for m, s in zip(slim.standardize.mean, slim.standardize.std, strict=True)
    ]
    assert changes == [name in "abc" for name in kept]


def test_an_accepted_network_runs_and_the_report_warns(problem, tmp_path):
    recipe = changed(problem, "data.standardize=none")
    result = glprune.run(recipe, problem / "model.pt", tmp_path / "out", accept_original=True)
    assert any("does not look like the one that was trained" in text for text in result.report.warnings)
    found = glprune.inspect(recipe, problem / "model.pt", accept_original=True)
    assert found.original[0].metrics["log_loss"] > 1


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (['data.classes=["yes", "no"]'], "With data.classes in the other order AUROC"),
        (["model.arguments={end: sigmoid}"], "With model.output: probabilities AUROC"),
        (["data.features=[f, e, d, c, b, a]"], "order of the columns (data.features)"),
    ],
)
def test_each_likely_cause_is_found(problem, changes, fragment):
    with pytest.raises(ModelError) as caught:
        glprune.inspect(changed(problem, *changes), problem / "model.pt")
    assert fragment in str(caught.value)


def test_an_expected_metric_that_does_not_hold_refuses_even_an_accepted_network(problem):
    found = glprune.inspect(changed(problem), problem / "model.pt").original[2].metrics["auroc"]
    glprune.inspect(changed(problem, f"model.expect={{auroc: {found:.3f}}}"), problem / "model.pt")
    with pytest.raises(
        ModelError, match=r"model.expect: auroc 0.5 is expected and 0.9\d* .* on the test split"
    ):
        glprune.inspect(
            changed(problem, "model.expect={auroc: 0.5}"), problem / "model.pt", accept_original=True
        )


@pytest.mark.parametrize("name", METRICS["binary"])
def test_every_metric_of_the_task_can_be_expected(problem, name):
    found = glprune.inspect(changed(problem), problem / "model.pt").original[2].metrics[name]
    glprune.inspect(changed(problem, f"model.expect={{{name}: {found:.6f}}}"), problem / "model.pt")
    wrong = found - 0.5 if found > 0.5 else found + 0.5
    with pytest.raises(ModelError, match=f"model.expect: {name} {wrong:g}.* on the test split"):
        glprune.inspect(changed(problem, f"model.expect={{{name}: {wrong:g}}}"), problem / "model.pt")


@pytest.mark.parametrize("changes", [["model.expect={r2: 0.5}"], ["model.expect={auroc: .nan}"]])
def test_an_expected_metric_of_another_task_or_no_number_is_refused(problem, changes):
    with pytest.raises(glprune.RecipeError, match=r"model\.expect"):
        changed(problem, *changes)


@pytest.mark.parametrize(("gain", "leads"), [(0.0, 0), (0.01, 0), (3.0, 1)])
def test_a_gain_within_noise_is_no_lead(monkeypatch, gain, leads):
    noisy, target = rows(torch.Generator().manual_seed(0), 400, 0.5, 2.0)
    better = noisy + gain * (2 * target[:, None].float() - 1)
    trial = SimpleNamespace(remedy="another scale", task=binary(), predictions=splits(better, target))
    monkeypatch.setattr(OriginalCheck, "_scalings", lambda self: iter([trial]))
    monkeypatch.setattr(OriginalCheck, "_readings", lambda self: iter(()))
    recipe = SimpleNamespace(data=SimpleNamespace(stream=None))
    data = SimpleNamespace(classes=None)
    check = OriginalCheck(recipe, torch.nn.Identity(), data, binary(), splits(noisy, target))
    assert not check.original.doubts
    assert len(list(check._found_causes())) == leads


def test_an_original_network_that_changes_during_the_run_is_found_at_its_end(problem):
    job = prepare(changed(problem), problem / "model.pt", False, silent)
    check_original(job)
    with torch.no_grad():
        next(job.network.parameters()).neg_()
    with pytest.raises(
        ModelError, match=r"on the test split was 0\.9\d+ at the start and is 0\.\d+ at the end"
    ):
        check_original(job)
