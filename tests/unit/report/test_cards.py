"""The model card and the bill of materials: valid, the same each time, and nothing in them that is not in the report."""

import json
import shutil

import pytest
from click.testing import CliRunner

from glprune.audit import signing
from glprune.audit.parsed_bundle import read_report
from glprune.cli.main import main
from glprune.report.ml_bom import make_ml_bom
from glprune.report.model_card import render_model_card
from glprune.schema import bundle as bundles
from tests.bundle_fixtures import copied, seal
from tests.integration_packages import need
from tests.unit.report.test_html import HASH, report
from tests.unit.report.test_markdown import HOSTILE, cells, parsed, words

need("cyclonedx")
from cyclonedx.schema import SchemaVersion  # noqa: E402
from cyclonedx.validation.json import JsonStrictValidator  # noqa: E402

NAMES = ("slim", "ruled", "wide", "mixed", "recurrent")


def invoke(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def invalid(bom):
    """The first error of CycloneDX's own schema; None for a valid document."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))


def made_up(names=("a", "b", "c"), **changes):
    made = report(list(names))
    outputs = dict.fromkeys((bundles.ONNX, bundles.RECIPE), HASH)
    return made.model_copy(update={"digests": made.digests.model_copy(update={"outputs": outputs})} | changes)


@pytest.mark.parametrize("name", NAMES)
def test_both_files_of_a_bundle_are_written_and_valid(name, audited, tmp_path):
    done = invoke("export-card", audited[name], "--out", tmp_path / "card")
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "card").iterdir()} == {"model_card.md", "bom.cdx.json"}
    found = read_report(audited[name])
    bom = json.loads((tmp_path / "card" / "bom.cdx.json").read_text())
    assert invalid(bom) is None
    assert bom == make_ml_bom(found)
    assert (tmp_path / "card" / "model_card.md").read_text() == render_model_card(found)


def test_the_schema_that_validates_refuses_a_wrong_document():
    bom = make_ml_bom(made_up())
    assert invalid(bom) is None
    bom["metadata"]["component"]["modelCard"]["accuracy"] = 1
    assert invalid(bom) is not None


def test_every_figure_of_the_bill_is_the_reports(audited):
    found = read_report(audited["ruled"])
    bom = make_ml_bom(found)
    model = bom["metadata"]["component"]
    assert model["hashes"] == [
        {"alg": "SHA-256", "content": bundles.digest(audited["ruled"] / bundles.ONNX)[7:]}
    ]
    original = model["pedigree"]["ancestors"][0]
    assert original["hashes"][0]["content"] == bundles.digest(audited.folder / "plain.pt")[7:]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    whole = [m for m in metrics if m["slice"].startswith("test split")]
    assert [float(m["value"]) for m in whole] == [m.final for m in found.performance]
    assert [float(m["confidenceInterval"]["lowerBound"]) for m in whole] == [
        m.intervals.values["final"].low for m in found.performance
    ]
    before = original["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [float(m["value"]) for m in before] == [m.original for m in found.performance]
    parts = [m.final for a in found.segments.attributes for s in a.segments for m in s.metrics]
    assert [float(m["value"]) for m in metrics[len(whole) :]] == [v for v in parts if v is not None]
    features = model["modelCard"]["properties"]
    assert [(f["name"], f["value"]) for f in features] == [
        (f"glprune:feature:{f.status}", f.name) for f in found.features
    ]
    limits = model["modelCard"]["considerations"]["technicalLimitations"]
    assert limits == [*found.warnings, *found.not_measured]
    references = [part["bom-ref"] for part in bom["components"]]
    assert len({*references, "model", "original-model"}) == len(references) + 2
    assert bom["dependencies"][0]["dependsOn"] == references


def test_the_card_shows_inputs_metrics_groups_and_limits_of_the_report(audited):
    found = read_report(audited["ruled"])
    card = render_model_card(found)
    kept = [f.name for f in found.features if f.status == "kept"]
    head = "| Feature | Columns | Input | Type |"
    rows = cells(card[card.index(head) :])
    assert [row[0][0] for row in rows] == kept
    for text in (
        found.digests.outputs[bundles.ONNX],
        found.digests.model,
        "derived from `h`",
        "`kind`: neither network reads it",
    ):
        assert text in card
    for sentence in found.not_measured:
        assert sentence.split(":")[0] in card
    sections = [words(t)[0] for n, t in enumerate(parsed(card)) if parsed(card)[n - 1].type == "heading_open"]
    assert sections == [
        "Model card: ruled", "Model details", "Intended use", "Inputs and outputs", "Removed features", "Data",
        "Metrics on the test split", "Protected groups", "Size", "Warnings", "Not measured",
    ]  # fmt: skip


def test_another_figure_in_the_report_is_another_in_both_files():
    one = made_up()
    other = one.model_copy(
        update={"performance": [m.model_copy(update={"final": 0.123456}) for m in one.performance]}
    )
    assert "0.1235" in render_model_card(other)
    assert "0.1235" not in render_model_card(one)
    assert "0.123456" in json.dumps(make_ml_bom(other))
    assert make_ml_bom(other)["serialNumber"] != make_ml_bom(one)["serialNumber"]
    assert make_ml_bom(one) == make_ml_bom(one)


def test_hostile_names_stay_names():
    hostile = made_up([*HOSTILE, "kept"])
    bom = make_ml_bom(hostile)
    assert invalid(bom) is None
    values = [f["value"] for f in bom["metadata"]["component"]["modelCard"]["properties"]]
    assert values == [*HOSTILE, "kept"]
    html = [
        t for token in parsed(render_model_card(hostile)) if token.type == "inline" for t in words(token)[1]
    ]
    assert {*html} <= {"<code>", "</code>"}


def test_a_network_without_labels_has_no_approach():
    bom = make_ml_bom(made_up(task="distillation"))
    assert invalid(bom) is None
    assert "approach" not in bom["metadata"]["component"]["modelCard"]["modelParameters"]


def test_the_intended_use_is_the_recipes_or_said_to_be_missing():
    assert "The report does not state it." in render_model_card(made_up())
    used = made_up(purpose="Ranks applications.")
    assert "Ranks applications." in render_model_card(used)
    assert make_ml_bom(used)["metadata"]["component"]["modelCard"]["considerations"]["useCases"] == [
        "Ranks applications."
    ]


def test_a_card_is_written_beside_the_bundle_by_default_and_never_over_a_file(audited, tmp_path):
    copy = copied(audited["slim"], tmp_path / "bundle")
    assert invoke("export-card", copy.folder).exit_code == 0
    assert (tmp_path / "bundle.card" / "bom.cdx.json").exists()
    assert invoke("verify", copy.folder).exit_code in (0, 3)  # the folder is as it was
    again = invoke("export-card", copy.folder)
    assert again.exit_code == 2
    assert "exists; remove it or name another --out." in again.stderr


def changed(copy):
    copy.edit(lambda r: r.update(title="x"))


def time_that_is_none(copy):
    copy.edit(lambda r: r["timing"].update(generated_at="soon"))
    signing.make_key(copy.folder.parent / "key")
    seal(copy, signing.read_private_key(copy.folder.parent / "key"))


def file_in_the_way(copy):
    (copy.folder.parent / "out").write_text("")


def no_bundle(copy):
    shutil.rmtree(copy.folder)


@pytest.mark.parametrize(
    ("change", "out", "code", "message"),
    [
        (changed, "out", 2, "is not exported: report.json"),
        (time_that_is_none, "out", 5, "its report contradicts itself (ValueError)"),
        (file_in_the_way, "out", 2, "cannot be written"),
        (no_bundle, "out", 5, "cannot be read"),
        (lambda copy: None, "bundle/card", 2, "is inside the bundle"),
        (lambda copy: None, "bundle", 2, "is inside the bundle"),
    ],
)
def test_a_bundle_that_cannot_be_exported_is_one_line_and_nothing_is_written(
    change, out, code, message, audited, tmp_path
):
    copy = copied(audited["slim"], tmp_path / "bundle")
    change(copy)
    before = sorted(tmp_path.rglob("*"))
    done = invoke("export-card", copy.folder, "--out", tmp_path / out)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_card_shows_segments_with_intervals_and_changed_decisions(audited):
    """What the auditor's page says the card holds, each figure as the report has it."""
    found = read_report(audited["ruled"])
    card = render_model_card(found)
    protected = card.partition("## Protected groups")[2].partition("## Size")[0]
    meanings = {"kept": "the shipped model reads it", "outside": "neither network reads it"}
    meanings["removed"] = "the original network read it, the shipped model does not"
    rows = 0
    for attribute in found.segments.attributes:
        assert f"`{attribute.name}`: {meanings[attribute.status]}" in protected
        for segment in attribute.segments:
            for metric in segment.metrics:
                values, change = metric.intervals.values, metric.intervals.differences["final"]
                cells = [
                    f"{metric.original:.4f} ({values['original'].low:.4f} to {values['original'].high:.4f})",
                    f"{metric.final:.4f} ({values['final'].low:.4f} to {values['final'].high:.4f})",
                    f"{metric.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})",
                ]
                assert " | ".join(cells) in protected
                rows += 1
            if segment.decisions is not None:
                assert (
                    f"| `{segment.value}` | {segment.rows:,} | {segment.decisions.flipped:,} (" in protected
                )
    assert rows
    assert found.segments.decisions is not None
    assert (
        f"| all |  | {found.segments.decisions.rows:,} | {found.segments.decisions.flipped:,} (" in protected
    )
    assert f"from {found.segments.threshold:g} on" in protected


def test_help_of_every_command_gives_its_exit_codes():
    without = [name for name, command in main.commands.items() if "Exit codes" not in (command.epilog or "")]
    assert without == []
