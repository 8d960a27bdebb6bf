"""What pipelines are told: annotations, reports, metrics, gates and checked recipes."""

import csv
import io
import json
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

from glprune.cli.main import main
from glprune.errors import UsageError
from glprune.integrations.ci import dvc, github, gitlab, systems
from glprune.integrations.ci.gate import Limits, judge
from glprune.integrations.ci.outcome import Annotation, Metric
from glprune.integrations.ci.outcome import TestCase as Case  # pytest would collect a class named Test
from glprune.schema import bundle as bundles
from glprune.schema.report import Latency, Report
from tests.bundle_fixtures import copied
from tests.paths import ROOT

HOSTILE = [
    "::add-mask::x",
    "a\n::error::x",
    "a\r\n  ::set-output name=x::y",
    "##[add-mask]x",
    "a%0A::stop-commands::t",
    "title,file=/etc/passwd::x",
    "\u2028::warning::x",
]
SYSTEMS = ("GITHUB_ACTIONS", "GITLAB_CI", "DVC_STAGE", "GITHUB_STEP_SUMMARY")


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    for name in SYSTEMS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def slim(audited, tmp_path):
    return Path(shutil.copytree(audited["slim"], tmp_path / "slim"))


@pytest.fixture
def ruled(audited, tmp_path):
    return Path(shutil.copytree(audited["ruled"], tmp_path / "ruled"))


def invoke(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def report_of(bundle):
    return Report.model_validate_json((bundle / bundles.REPORT).read_text())


def named(report, names):
    """A report whose first features have hostile names, which its warnings repeat."""
    features = [
        f.model_copy(update={"name": name, "columns": [name]})
        for f, name in zip(report.features, names, strict=False)
    ]
    rest = report.features[len(features) :]
    return report.model_copy(
        update={"title": names[0], "features": [*features, *rest], "warnings": [f"{n} is odd" for n in names]}
    )


def obeyed(text):
    """Lines the runner of GitHub Actions would take for commands."""
    return [line for line in text.splitlines() if line.strip().startswith("::") or "##[" in line]


# ------------------------------------------------------------------------------ github


def test_workflow_commands_are_escaped_as_the_runner_reads_them():
    remark = Annotation("error", "a,b:c", "50% of\nit::x", "r.yaml", 3)
    assert github.workflow_commands([remark]) == [
        "::error title=a%2Cb%3Ac,file=r.yaml,line=3::50%25 of%0Ait::x"
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_one_annotation_and_no_second_command(name):
    lines = github.workflow_commands([Annotation("warning", name, name, name, 1)])
    assert len(lines) == 1
    assert len(lines[0].splitlines()) == 1
    assert lines[0].startswith("::warning title=")
    assert "##[" not in lines[0]
    assert lines[0].split("::")[1].count(",file=") == 1


def test_annotations_beyond_ten_of_a_level_are_counted():
    lines = github.workflow_commands(
        [Annotation("warning", "t", str(n)) for n in range(14)] + [Annotation("error", "t", "e")]
    )
    assert sum(line.startswith("::warning") for line in lines) == 10
    assert sum(line.startswith("::error") for line in lines) == 1
    assert lines[-1].startswith("4 more")


def test_nothing_that_is_printed_in_github_is_a_command(slim, capsys):
    with systems.ci_context(("github",), "run", slim):
        for name in HOSTILE:
            print(name)
            print(name, file=sys.stderr)
    printed = capsys.readouterr()
    assert obeyed(printed.out + printed.err) == []
    with systems.ci_context(("gitlab",), "run", slim):
        print(HOSTILE[0])
    assert capsys.readouterr().out.strip() == HOSTILE[0]


def test_a_summary_is_appended_and_never_larger_than_the_runner_takes(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    where = {"GITHUB_STEP_SUMMARY": str(path)}
    assert github.append_summary("# after", where)
    assert path.read_text() == "before\n# after\n"
    assert not github.append_summary("x" * 2**20, where)
    assert not github.append_summary("x", {})
    assert path.read_text() == "before\n# after\n"


def test_a_run_with_hostile_names_gives_github_nothing_but_its_annotations(
    slim, tmp_path, monkeypatch, capsys
):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    systems.publish_run(("github",), named(report_of(slim), HOSTILE), slim)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("::warning title=", "::notice title=")) for line in lines)
    assert sum(line.startswith("::warning") for line in lines) == len(HOSTILE)
    assert "`##[add-mask]x`" in summary.read_text()  # a file of Markdown, in which names are code
    assert "## Removed features" in summary.read_text()


# ------------------------------------------------------------------------------ gitlab


@pytest.mark.parametrize("name", [*HOSTILE, '"]]><x a="1">&', "\x00\x1b[31m\ufffe"])
def test_junit_is_xml_whatever_names_say(name):
    suite = ET.fromstring(
        gitlab.junit("gate", [Case("good"), Case(name, failure=name), Case("s", skipped="w")])
    )[0]
    assert [suite.get(k) for k in ("tests", "failures", "skipped")] == ["3", "1", "1"]
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["skipped"]]


def test_openmetrics_escapes_labels_and_groups_families():
    text = gitlab.openmetrics(
        [Metric("m", 0.5, {"name": 'a"b\\c\nd'}), Metric("n", 2, {}), Metric("m", 1.0, {"name": "x"})]
    )
    assert text.splitlines() == [
        "# TYPE glprune_m gauge",
        'glprune_m{name="a\\"b\\\\c\\nd"} 0.5',
        'glprune_m{name="x"} 1.0',
        "# TYPE glprune_n gauge",
        "glprune_n 2",
        "# EOF",
    ]


def test_a_run_leaves_gitlabs_reports_beside_the_bundle(slim):
    report = report_of(slim)
    before = bundles.digest(slim / bundles.MANIFEST)
    systems.publish_run(("gitlab",), report, slim)
    folder = slim.with_name("slim.ci")
    assert ET.parse(folder / "run-junit.xml").getroot()[0].get("failures") == "0"
    shipped = next(m for m in report.performance if m.name == "auroc").final
    line = f'glprune_metric{{name="auroc",model="shipped",split="test"}} {shipped!r}'
    lines = (folder / "metrics.txt").read_text().splitlines()
    assert line in lines
    change = next(m for m in report.performance if m.name == "auroc").intervals.differences["final"]
    for end, value in (("low", change.low), ("high", change.high)):
        assert f'glprune_metric_change_interval{{name="auroc",end="{end}",split="test"}} {value!r}' in lines
    assert bundles.digest(slim / bundles.MANIFEST) == before
    assert judge(slim, Limits(max_features=8)).exit_code == 0


# --------------------------------------------------------------------------------- dvc


def test_dvc_gets_nested_numbers_and_a_row_for_each_point(slim):
    report = named(report_of(slim), HOSTILE)
    systems.publish_run(("dvc",), report, slim)
    folder = slim.with_name("slim.ci")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == dvc.metrics(report)
    auroc = next(m for m in report.performance if m.name == "auroc")
    assert metrics["test"]["auroc"] == auroc.final
    assert metrics["change"]["auroc"] == auroc.final - auroc.original
    assert metrics["change_low"]["auroc"] == auroc.intervals.differences["final"].low
    assert metrics["change_high"].keys() == {m.name for m in report.performance}
    rows = list(csv.DictReader(io.StringIO((folder / "path.csv").read_text())))
    assert [float(r["lam"]) for r in rows] == [p.lam for p in report.path]
    assert [r["selected"] for r in rows].count("1") == len(report.stages)
    with (folder / "features.csv").open(newline="") as stream:
        features = list(csv.DictReader(stream))
    assert [f["feature"] for f in features] == [f.name for f in report.features]


def test_the_example_of_dvc_names_files_and_columns_that_a_run_writes(slim):
    from ruamel.yaml import YAML

    systems.publish_run(("dvc",), report_of(slim), slim)
    written = {}
    for path in slim.with_name("slim.ci").glob("*.csv"):
        written[f"pruned.ci/{path.name}"] = set(path.read_text().splitlines()[0].split(","))
    pipeline = YAML(typ="safe").load((ROOT / "examples" / "dvc" / "dvc.yaml").read_text())
    [(file, plot)] = pipeline["stages"]["prune"]["plots"][0].items()
    assert {plot["x"], plot["y"]} <= written[file]
    for definition in pipeline["plots"]:
        [plot] = definition.values()
        for file, columns in plot["y"].items():
            assert {plot["x"], *([columns] if isinstance(columns, str) else columns)} <= written[file]
    assert (slim.with_name("slim.ci") / "metrics.json").exists()


# ------------------------------------------------------------------------------ which


def test_systems_are_found_by_their_variables_and_named_ones_are_taken():
    assert systems.systems("auto", {}) == ()
    assert systems.systems("auto", {"GITHUB_ACTIONS": "true", "DVC_STAGE": "prune"}) == ("github", "dvc")
    assert systems.systems("auto", {"GITLAB_CI": "true"}) == ("gitlab",)
    assert systems.systems("gitlab", {"GITHUB_ACTIONS": "true"}) == ("gitlab",)
    assert systems.systems("none", {"GITHUB_ACTIONS": "true"}) == ()


def test_an_error_of_a_run_is_annotated_at_the_recipes_line_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    recipe = tmp_path / "r.yaml"
    recipe.write_text((ROOT / "recipes/german_credit.yaml").read_text().replace("lr: 5e-4", "lrr: 5e-4"))
    failed = invoke("run", recipe, "m.pt", "--out", tmp_path / "o", "--ci", "auto")
    line = recipe.read_text().splitlines().index("  lrr: 5e-4") + 1
    assert failed.exit_code == 2
    assert failed.stderr.splitlines() == [failed.stderr.strip()]
    assert failed.stderr.startswith(f"::error title=glprune run,file={recipe},line={line}::")
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.setenv("GITLAB_CI", "true")
    failed = invoke("run", recipe, "m.pt", "--out", tmp_path / "o", "--ci", "auto")
    assert failed.stderr.startswith("glprune: ")
    assert ET.parse(tmp_path / "o.ci" / "run-junit.xml").getroot()[0].get("failures") == "1"


# ------------------------------------------------------------------------------- gate


def test_a_gate_passes_fails_and_says_why(ruled):
    kept = [f.name for f in report_of(ruled).features if f.status == "kept"]
    passed = invoke(
        "gate", ruled, "--must-drop", "h", "--must-keep", "d", "--max-features", 8, "--max-drop", "auroc=1"
    )
    assert passed.exit_code == 0, passed.output
    assert passed.stdout.splitlines()[-1] == "passed"
    failed = invoke("gate", ruled, "--must-drop", "d", "--max-features", len(kept) - 1, "--json")
    assert failed.exit_code == 1
    record = json.loads(failed.stdout)
    assert record["result"] == "FAILED"
    assert {g["name"]: g["status"] for g in record["gates"]} == {
        "manifest": "passed",
        "must-drop d": "failed",
        "max-features": "failed",
    }


def test_a_feature_made_of_what_must_go_breaks_the_gate_of_it(slim):
    report = report_of(slim)
    kept = next(f for f in report.features if f.status == "kept")
    copy = copied(slim, slim.with_name("derived"))
    policy = {"must_drop": [], "derived_from": {kept.columns[0]: ["sex"]}}
    copy.edit(lambda value: value.update(policy=policy))
    gates = {g.name: g for g in judge(copy.folder, Limits(must_drop=["sex"])).gates}
    assert gates["must-drop sex"].status == "failed"
    assert "derived from 'sex'" in gates["must-drop sex"].text
    assert gates["manifest"].status == "failed"  # the report is not the sealed one


@pytest.mark.parametrize("direction", [True, False])
def test_a_drop_is_a_loss_in_the_metrics_own_direction(slim, direction):
    copy = copied(slim, slim.with_name("c"))

    def change(value):
        value["performance"][0] |= {"higher_is_better": direction, "original": 0.80, "final": 0.78}

    copy.edit(change)
    name = copy.json()["performance"][0]["name"]
    status = {m: judge(copy.folder, Limits(max_drop={name: m})).gates[1].status for m in (0.01, 0.03)}
    assert status == ({0.01: "failed", 0.03: "passed"} if direction else {0.01: "passed", 0.03: "passed"})


def test_a_gate_on_a_metric_gives_the_interval_of_its_change(slim):
    change = report_of(slim).performance[0].intervals.differences["final"]
    gate = judge(slim, Limits(max_drop={"auroc": 1.0})).gates[1]
    assert gate.text.endswith(f"(95 % interval of the change {change.low:+.4f} to {change.high:+.4f})")


def test_latency_is_judged_at_the_worst_batch_and_what_was_not_measured_is_incomplete(slim):
    copy = copied(slim, slim.with_name("c"))
    one = report_of(slim).latency[0].model_dump()
    copy.edit(lambda v: v.update(latency=[one | {"speedup": 4.0}, one | {"batch": 9, "speedup": 0.8}]))
    assert Latency.model_validate(copy.json()["latency"][1]).batch == 9
    tight, loose = (judge(copy.folder, Limits(max_latency_ratio=m)).gates[1] for m in (1.2, 1.3))
    assert (tight.status, loose.status) == ("failed", "passed")
    assert "1.25 at batch size 9" in tight.text
    unknown = invoke("gate", slim, "--min-stability", 0.5)
    assert unknown.exit_code == 3
    assert "not measured: min-stability" in unknown.stdout


def test_stability_is_that_of_the_least_stable_kept_feature(slim):
    report = report_of(slim)
    shares = [f.model_copy(update={"kept_share": 0.9, "kept_in": 9}) for f in report.features]
    first = next(n for n, f in enumerate(shares) if f.status == "kept")
    shares[first] = shares[first].model_copy(update={"kept_share": 0.4})
    from glprune.integrations.ci.gate import min_stability

    with_resamples = report.model_copy(update={"stability": object()})
    kept = [f for f in shares if f.status == "kept"]
    assert min_stability(with_resamples, kept, 0.4).status == "passed"
    low = min_stability(with_resamples, kept, 0.5)
    assert low.status == "failed"
    assert low.text.endswith(f"{shares[first].name!r} 40%")


def test_a_changed_file_fails_the_gate_whatever_the_report_says(slim):
    (slim / bundles.ONNX).write_bytes(b"x")
    failed = invoke("gate", slim, "--max-features", 99)
    assert failed.exit_code == 1
    assert "failed: manifest: model.onnx" in failed.stdout


@pytest.mark.parametrize(
    ("args", "code", "fragment"),
    [
        ([], 2, "no gate is given"),
        (["--must-drop", "sexx"], 2, "not a feature or column"),
        (["--must-keep", "dd"], 2, "not a feature or column"),
        (["--max-drop", "aurok=0.1"], 2, "not a metric of this bundle; it has auroc"),
        (["--max-drop", "auroc"], 2, "METRIC=AMOUNT"),
        (["--max-drop", "auroc=nan"], 2, "METRIC=AMOUNT"),
        (["--min-stability", "2"], 2, "min-stability"),
    ],
)
def test_gates_that_could_only_pass_by_mistake_are_refused(args, code, fragment, slim):
    failed = invoke("gate", slim, *args)
    assert failed.exit_code == code
    assert fragment in failed.stderr


def test_no_bundle_is_exit_five(tmp_path):
    assert invoke("gate", tmp_path, "--max-features", 3).exit_code == 5


def test_a_gate_tells_github_and_gitlab_of_what_failed(slim, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "s.md"))
    failed = invoke("gate", slim, "--max-features", 0, "--ci", "github")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("::error title=gate max-features::")
    assert "| `max-features` | failed |" in (tmp_path / "s.md").read_text()
    assert invoke("gate", slim, "--max-features", 0, "--ci", "gitlab").exit_code == 1
    suite = ET.parse(slim.with_name("slim.ci") / "gate-junit.xml").getroot()[0]
    assert [case.get("name") for case in suite if len(case)] == ["max-features"]


# ------------------------------------------------------------------------------ check


def test_check_names_every_mistake_with_its_line(tmp_path):
    good = ROOT / "recipes" / "german_credit.yaml"
    text = good.read_text().replace("lr: 5e-4", "lrr: 5e-4").replace("seed: 0", "seed: none")
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    lines = text.splitlines()
    done = invoke("check", good, bad, tmp_path / "absent.yaml")
    assert done.exit_code == 2
    found = done.stderr.splitlines()
    assert len(found) == 3
    assert found[0].startswith(
        f"{bad}:{lines.index('  lrr: 5e-4') + 1}: refit.lrr is not a key. Did you mean 'lr'?"
    )
    assert found[1].startswith(f"{bad}:{lines.index('seed: none') + 1}: seed should be")
    assert "absent.yaml" in found[2]
    right = invoke("check", *(ROOT / "recipes").glob("*.yaml"))
    assert (right.exit_code, right.output) == (0, "")


def test_the_pre_commit_hook_runs_a_command_that_exists():
    from ruamel.yaml import YAML

    hooks = YAML(typ="safe").load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [hook["entry"].split()[1] in main.commands for hook in hooks] == [True]
    assert hooks[0]["language"] == "python"


def test_an_alias_without_a_model_is_a_wrong_command_line(tmp_path):
    args = ("run", ROOT / "recipes/german_credit.yaml", "m.pt", "--out", tmp_path / "o")
    failed = invoke(*args, "--mlflow-alias", "best")
    assert failed.exit_code == 2
    assert "need --mlflow" in failed.stderr
    failed = invoke(*args, "--mlflow", "--mlflow-alias", "best")
    assert failed.exit_code == 2
    assert "--mlflow-model" in failed.stderr


def test_a_missing_extra_is_named(monkeypatch):
    from glprune.integrations import mlflow

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"pip install 'glprune\[mlflow\]'"), mlflow.tracked("x"):
        pass
