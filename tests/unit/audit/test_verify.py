"""The auditor's commands on clean bundles, on other people's files and on hostile ones."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from glprune.audit import signing
from glprune.audit.checks import rendering
from glprune.audit.checks.execution import Claims, check_execution
from glprune.audit.checks.figures.consistency import check_consistency
from glprune.audit.checks.graph import ExpectedGraph, ExpectedInput, check_graph
from glprune.audit.diff import compare
from glprune.audit.explain import explain
from glprune.audit.onnx_reader import parse
from glprune.audit.parsed_bundle import open_bundle, read_report
from glprune.audit.steps import Steps
from glprune.audit.verify import VerificationOptions, verify
from glprune.cli.main import main
from glprune.errors import UsageError
from glprune.evaluation.stability import make_stability
from glprune.export.onnx_export import ColumnSelector, OnnxSignature, export_onnx
from glprune.pruning.removal import remove
from glprune.pruning.verification import outputs
from glprune.report import caveats, sentences
from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.schema import bundle as bundles
from glprune.schema.metrics import ADDED
from glprune.schema.recipe import StabilitySpec
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Report, Resample
from glprune.schema.strict_json import StrictError, read_json
from tests.architectures import ARCHITECTURES
from tests.bundle_fixtures import copied, follow
from tests.unit.pruning.test_architectures import narrowed, planned, zeroed
from tests.zeroing_helpers import grouped

verifying = importlib.import_module("glprune.audit.verify")


def invoke(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def told(verdict):
    return "\n".join(f"{c.id} {c.status} {c.note} {[str(f) for f in c.findings]}" for c in verdict.checks)


def failed(verdict):
    return {c.id for c in verdict.checks if c.status == "failed"}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Key files of a producer, a validator and a stranger; the public ones end in .pub."""
    folder = tmp_path_factory.mktemp("people")
    for name in ("producer", "validator", "stranger"):
        assert invoke("keygen", folder / name).exit_code == 0
    return folder


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """One process and no pictures, which take most of the time, but in the tests about them."""
    if "whole" not in request.keywords:
        here = lambda *arguments: check_execution(*arguments[:3], None)  # noqa: E731
        monkeypatch.setattr(verifying, "check_execution", here)
        in_this_process = lambda folder, options, _: verifying.verify_steps(folder, options, Steps())  # noqa: E731
        monkeypatch.setattr(verifying, "verify_isolated", in_this_process)
        monkeypatch.setattr(rendering, "_cannot_draw", lambda report: None)
        monkeypatch.setattr(rendering, "_drawn_alike", lambda report, page: True)


whole = pytest.mark.whole


@pytest.fixture
def slim(audited, tmp_path):
    return copied(audited["slim"], tmp_path / "bundle")


# --------------------------------------------------------------------------- clean bundles


@whole
@pytest.mark.parametrize("name", ["slim", "wide", "digested", "other", "mixed", "recurrent"])
def test_a_clean_bundle_verifies_with_nothing_failed_or_left_open(name, audited):
    verdict = verify(audited[name], isolated=False)
    assert verdict.exit_code == 0, told(verdict)
    assert verdict.signature == "unsigned"
    by_id = {c.id: c for c in verdict.checks}
    assert sorted(by_id, key=lambda c: int(c[1:])) == [f"C{n}" for n in range(1, 15)]
    skipped = {c for c, check in by_id.items() if check.status == "skipped"}
    wide = name in ("wide", "digested", "mixed")
    assert skipped == {"C3", "C11", "C14"} | (set() if wide else {"C10"})
    assert "reference evaluator" in by_id["C9"].note
    assert by_id["C12"].note == "byte for byte"
    hidden = read_report(audited[name]).hidden
    assert any(h.after < h.before for h in hidden) or name == "mixed"


@pytest.mark.parametrize(
    "name", ["embedding-bag", "normalize-over-hidden", pytest.param("hf-bert", marks=pytest.mark.slow)]
)
def test_the_graph_rules_raise_no_alarm_on_exports_of_other_architectures(name, tmp_path):
    """Loops of an embedding bag, sizes taken from the full input, slices, masks."""
    architecture = ARCHITECTURES[name]
    network, sets = planned(name)
    dense, _ = zeroed(network, sets, 0)
    inputs = architecture.inputs(torch.Generator().manual_seed(3), 6)
    removed = remove(dense, grouped(sets), inputs, architecture.axes)
    names = [
        f"out_{n}" for n in range(len(outputs(removed.network, narrowed(architecture, inputs, removed))))
    ]
    wide = ColumnSelector(removed.network, removed.columns, architecture.axes).eval()
    export_onnx(wide, inputs, tmp_path / "m.onnx", OnnxSignature(architecture.names, names, 18))
    raw = (tmp_path / "m.onnx").read_bytes()
    expected = [
        ExpectedInput(
            name, axis, 0 if axis is None else x.shape[axis], None if axis is None else tuple(c.tolist())
        )
        for name, axis, x, c in zip(
            architecture.names, architecture.axes, inputs, removed.columns, strict=True
        )
    ]
    assert check_graph(parse(raw), raw, ExpectedGraph(expected, names, 18)) == []
    for given in (e for e in expected if e.selects and len(e.selects) > 1):
        other = [ExpectedInput(given.name, given.axis, given.width, given.selects[::-1])]
        assert check_graph(parse(raw), raw, ExpectedGraph(other, names, 18))


def test_the_manifest_is_an_in_toto_statement_of_every_file(audited):
    manifest = json.loads((audited["slim"] / bundles.MANIFEST).read_text())
    assert manifest["_type"] == "https://in-toto.io/Statement/v1"
    assert {s["name"] for s in manifest["subject"]} == set(bundles.FILES)
    for subject in manifest["subject"]:
        assert "sha256:" + subject["digest"]["sha256"] == bundles.digest(audited["slim"] / subject["name"])
    assert manifest["predicate"]["closed"] is True


def test_the_contract_names_every_column_and_whether_it_is_read(audited):
    contract = json.loads((audited["wide"] / bundles.INPUT_SCHEMA).read_text())
    (only,) = contract["inputs"]
    assert only["shape"] == ["batch", 8]
    assert [c["name"] for c in only["columns"]] == list("abcdefgh")
    kept = {c for f in read_report(audited["wide"]).features if f.status == "kept" for c in f.columns}
    assert {c["name"] for c in only["columns"] if c["read"]} == kept


def test_golden_rows_are_nobodys(audited):
    import pyarrow.parquet as pq
    from safetensors.numpy import load

    table = pq.read_table(audited["mixed"].parent / "data.parquet")
    real = np.stack([table[n].to_numpy() for n in "abcdefgh"], axis=1).astype(np.float32)
    tensors = load((audited["mixed"] / bundles.GOLDEN).read_bytes())
    rows = tensors["input.numbers"]
    assert len(rows) == 32
    assert not (rows[:, None] == real[None]).all(-1).any()
    assert set(tensors["input.codes"][:, 0].tolist()) <= set(range(5))


# --------------------------------------------------------------------------- the command


@whole
def test_every_metric_has_intervals_and_kept_groups_that_did_not_converge_are_told(audited):
    found = read_report(audited["slim"])
    assert [m.name for m in found.performance][2:] == ["log_loss", "brier_score", "calibration_error"]
    assert all(m.intervals is not None for m in found.performance)
    assert {m.intervals.seed for m in found.performance if m.name != "auroc"} == {found.run.seed}
    worst = max(p.kkt_active for p in found.path if p.selected)
    told_of = [w for w in found.warnings if w.startswith("The kept groups have not converged")]
    assert len(told_of) == (worst > 0.05)
    assert all(sentences.number(worst) in warning for warning in told_of)


def test_a_report_of_an_older_version_needs_neither_intervals_nor_calibration(audited, tmp_path):
    def older(r):
        r["run"]["versions"]["glprune"] = "0.1.9"
        r["performance"] = [m | {"intervals": None} for m in r["performance"] if m["name"] not in ADDED]
        r["warnings"] = [w for w in r["warnings"] if "not converged" not in w]

    copy = copied(audited["slim"], tmp_path / "bundle")
    copy.edit(older)
    follow(copy)
    verdict = verify(copy.folder, isolated=False)
    assert next(c for c in verdict.checks if c.id == "C5").status == "passed", told(verdict)


def test_verify_prints_trust_apart_from_recomputation_and_ends_with_what_it_did_not_check(audited):
    done = invoke("verify", audited["slim"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("verified (unsigned)")
    trust, recomputation, rest = (done.stdout.index(w) for w in ("Trust:", "Recomputation:", "Not checked:"))
    assert trust < recomputation < rest
    assert done.stdout.rstrip().endswith("the clocks of producer and signers.")


def test_verify_as_json_says_the_same_for_programs(slim):
    slim.edit(lambda r: r["run"].update(seed=9))
    done = invoke("verify", slim.folder, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == found["exit_code"] == 1
    assert found["schema"] == "glprune.verification/1"
    figures = next(c for c in found["recomputation"] if c["id"] == "C5")
    assert {"file": "report.json", "where": "/run/seed"}.items() <= figures["findings"][0].items()
    assert any(
        "'networks.py:" in sentence and "not imported" in sentence for sentence in found["not_checked"]
    )
    assert found["model_sha256"] == bundles.digest(slim / bundles.ONNX).removeprefix("sha256:")


def test_a_signed_bundle_is_incomplete_until_the_auditor_names_a_key(slim, people):
    assert invoke("sign", slim.folder, "--key", people / "producer").exit_code == 0
    without = invoke("verify", slim.folder)
    assert without.exit_code == 3
    assert "--trust" in without.stdout
    assert invoke("verify", slim.folder, "--trust", people / "producer.pub").exit_code == 0
    assert invoke("verify", slim.folder, "--trust", people / "stranger.pub").exit_code == 1
    both = ("--trust", people / "stranger.pub", "--trust", people / "producer.pub")
    assert invoke("verify", slim.folder, *both).exit_code == 0


def test_an_unsigned_bundle_fails_where_a_key_is_demanded(slim, people):
    done = invoke("verify", slim.folder, "--trust", people / "producer.pub")
    assert done.exit_code == 1
    assert "no one signed" in done.stdout


def test_a_second_person_countersigns_and_can_be_required(slim, people):
    invoke("sign", slim.folder, "--key", people / "producer")
    keys = [f"{name}={people / name}.pub" for name in ("producer", "validator")]
    demand = ("verify", slim.folder, "--trust", keys[0], "--trust", keys[1])
    assert invoke(*demand, "--require-role", "validator").exit_code == 1
    words = ("--role", "validator", "--statement", "Read and rerun on our data.")
    assert invoke("countersign", slim.folder, "--key", people / "validator", *words).exit_code == 0
    done = invoke(*demand, "--require-role", "validator")
    assert done.exit_code == 0, done.stdout
    assert "validator" in done.stdout
    # its key is not trusted
    assert invoke(*demand[:4], "--require-role", "validator").exit_code == 1


def test_one_person_in_two_roles_is_caught(slim, people):
    invoke("sign", slim.folder, "--key", people / "producer")
    words = ("--role", "validator", "--statement", "I am two.")
    invoke("countersign", slim.folder, "--key", people / "producer", *words)
    done = invoke("verify", slim.folder, "--trust", people / "producer.pub", "--require-role", "validator")
    assert done.exit_code == 1
    assert "C13" in done.stdout
    assert "one person in two roles" in done.stdout


def test_a_countersignature_of_another_manifest_or_role_is_caught(slim, audited, people, tmp_path):
    other = copied(audited["other"], tmp_path / "other")
    words = ("--role", "validator", "--statement", "fine")
    invoke("countersign", other.folder, "--key", people / "validator", *words)
    invoke("sign", slim.folder, "--key", people / "producer")
    trust = ("--trust", people / "producer.pub", "--trust", people / "validator.pub")
    for name in ("validator", "owner"):
        target = slim / bundles.SIGNATURES / f"{name}.dsse.json"
        shutil.copy(other / bundles.SIGNATURES / "validator.dsse.json", target)
        done = invoke("verify", slim.folder, *trust)
        assert done.exit_code == 1
        assert "signs another MANIFEST.json" in done.stdout
        target.unlink()
    invoke("countersign", slim.folder, "--key", people / "validator", *words)
    (slim / bundles.SIGNATURES / "validator.dsse.json").rename(slim / bundles.SIGNATURES / "owner.dsse.json")
    assert "says role 'validator'" in invoke("verify", slim.folder, *trust).stdout


def test_ecdsa_and_encrypted_keys_sign_too(slim, tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    secret = s.BestAvailableEncryption(b"word")
    (tmp_path / "k").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, secret))
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "k.pub").write_bytes(public)
    locked = invoke("sign", slim.folder, "--key", tmp_path / "k")
    assert locked.exit_code == 2
    assert "is encrypted" in locked.stderr
    monkeypatch.setenv(signing.PASSWORD, "word")
    assert invoke("sign", slim.folder, "--key", tmp_path / "k").exit_code == 0
    assert invoke("verify", slim.folder, "--trust", tmp_path / "k.pub").exit_code == 0


def test_a_bundle_that_does_not_hold_together_is_not_signed(slim, people):
    (slim / bundles.PAGE).write_text("<p>all is well</p>")
    done = invoke("sign", slim.folder, "--key", people / "producer")
    assert done.exit_code == 2
    assert "report.html" in done.stderr
    assert not (slim / bundles.SIGNATURES).exists()


def test_a_key_is_never_overwritten_and_its_secret_half_is_private(people):
    again = invoke("keygen", people / "producer")
    assert again.exit_code == 2
    assert "exists" in again.stderr
    assert (people / "producer").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--trust", "absent.pub"], "absent.pub"),
        (["--trust", "{people}/producer"], "is a private key"),
        (["--trust", "{bundle}/report.json"], "is not a PEM public key"),
        (["--require-role", "validator"], "--trust"),
        (["--policy", "absent.yaml"], "absent.yaml"),
        (["--policy", "{bundle}/report.json"], "Keys: must_drop"),
        (["--expect-model", "abc"], "neither a SHA-256 nor a file"),
        (["--timeout", "0"], "timeout"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(options, fragment, slim, people):
    given = [o.format(people=people, bundle=slim.folder) for o in options]
    done = invoke("verify", slim.folder, *given)
    assert done.exit_code == 2
    assert fragment in done.stderr
    assert "Traceback" not in done.output


# --------------------------------------------------------------------------- policy


def names(report, status):
    return [f.name for f in report.features if f.status == status]


def with_policy(copy, **rules):
    """State rules in the recipe, and in the report all that follows from them."""
    whole = {"must_drop": [], "must_keep": [], "protected": [], "derived_from": {}} | rules
    recipe = copy / bundles.RECIPE
    recipe.write_text(recipe.read_text() + f"\npolicy: {json.dumps(whole)}\n")
    recipe.write_text(load_recipe(recipe).to_yaml())
    copy.edit(lambda r: r.update(stated_policy(whole, r["performance"])))
    copy.edit(lambda r: [f.update(reason=reason(f, whole)) for f in r["features"]])
    resolved = load_recipe(recipe)
    copy.edit(lambda r: r.update(not_measured=caveats.not_measured(Report.model_validate(r), resolved)))
    follow(copy)
    seal_unsigned(copy)


def reason(feature, rules):
    """The reason for a feature's status by rules that do not forbid what is derived."""
    names = {feature["name"], *feature["columns"]}
    if feature["status"] == "kept":
        return "must_keep" if names & {*rules["must_keep"]} else None
    return "must_drop" if names & {*rules["must_drop"]} else "penalty"


def stated_policy(whole, performance):
    """The records of a policy, with all rows in one segment of every protected attribute."""
    rows = performance[0]["rows"]
    metrics = [
        {"name": m["name"], "original": m["original"], "final": m["final"], "difference": m["final"] - m["original"]}
        for m in performance
    ]  # fmt: skip
    directions = dict.fromkeys(("to_adverse", "to_favourable", "adverse_original", "adverse_final"))
    decisions = {"rows": rows, "flipped": 0, **directions}
    segment = {"value": "all", "rows": rows, "suppressed": False, "metrics": metrics, "decisions": decisions}
    attributes = [
        {"name": name, "status": "outside", "by": "values", "segments": [segment]}
        for name in whole["protected"]
    ]
    segments = {"min_rows": 20, "threshold": 0.5, "adverse": None, "decisions": decisions}
    proxies = {"performed": False, "reason": "policy.proxies is not set", "file": None, "digest": None}
    return {"policy": whole, "segments": segments | {"attributes": attributes}, "proxies": proxies}


def seal_unsigned(copy):
    from glprune.schema.manifest import write_manifest

    write_manifest(copy.folder)


def test_rules_that_are_met_pass_and_protected_features_that_stay_are_named(slim):
    report = read_report(slim.folder)
    gone, kept = names(report, "removed"), names(report, "kept")
    with_policy(slim, must_drop=gone, must_keep=kept[:1], protected=["sex"], derived_from={kept[0]: ["sex"]})
    verdict = verify(slim.folder, isolated=False)
    assert verdict.exit_code == 0, told(verdict)
    note = next(c.note for c in verdict.checks if c.id == "C11")
    assert f"protected and kept: {kept[0]}" in note


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (lambda kept, gone: {"must_drop": [kept]}, "must_drop lists"),
        (lambda kept, gone: {"must_keep": [gone]}, "must_keep lists"),
        (lambda kept, gone: {"must_drop": ["sex"], "derived_from": {kept: ["sex"]}}, "derived from 'sex'"),
        (
            lambda kept, gone: {"must_drop": ["birth"], "derived_from": {kept: ["age"], "age": ["birth"]}},
            "derived from 'birth'",
        ),
        (lambda kept, gone: {"must_drop": ["sex"], "derived_from": {"a": ["sex"]}}, "derived from 'sex'"),
    ],
)
@pytest.mark.parametrize("source", ["report", "auditor"])
def test_a_broken_rule_exits_4_whoever_made_it(rules, words, source, slim, tmp_path):
    report = read_report(slim.folder)
    given = rules(names(report, "kept")[0], names(report, "removed")[0])
    options = []
    if source == "report":
        with_policy(slim, **given)
    else:
        (tmp_path / "policy.json").write_text(json.dumps(given))
        options = ["--policy", tmp_path / "policy.json"]
    done = invoke("verify", slim.folder, *options)
    assert done.exit_code == 4, done.output
    assert done.stdout.startswith("POLICY VIOLATED")
    assert words in done.stdout


def test_a_feature_that_must_stay_may_stay_as_something_made_of_it(slim):
    kept = names(read_report(slim.folder), "kept")[0]
    with_policy(slim, must_keep=["income"], derived_from={kept: ["income"]})
    assert verify(slim.folder, isolated=False).exit_code == 0


def test_tampering_outranks_policy(slim, tmp_path):
    (tmp_path / "p.yaml").write_text(f"must_drop: [{names(read_report(slim.folder), 'kept')[0]}]\n")
    slim.edit(lambda r: r["run"].update(seed=9))
    assert invoke("verify", slim.folder, "--policy", tmp_path / "p.yaml").exit_code == 1


# --------------------------------------------------------------------------- lineage


def test_the_expected_model_is_given_by_digest_or_file(audited, slim):
    digest = bundles.digest(slim / bundles.ONNX)
    assert invoke("verify", slim.folder, "--expect-model", digest).exit_code == 0
    assert invoke("verify", slim.folder, "--expect-model", slim / bundles.ONNX).exit_code == 0
    original = audited["slim"].parent / "plain.pt"
    assert invoke("verify", slim.folder, "--expect-original", original).exit_code == 0
    done = invoke("verify", slim.folder, "--expect-model", original)
    assert done.exit_code == 1
    assert "C14" in done.stdout


def test_only_what_was_asked_for_is_said_to_be_so(audited):
    """C14 passes for one expectation; its words must not speak of the others."""
    report = read_report(audited["slim"])
    said = {
        "model": "model.onnx is the expected one",
        "original": "the original is the expected one",
        "previous": "the bundle follows the previous one",
    }
    given = {
        "model": report.digests.outputs[bundles.ONNX],
        "original": report.digests.model,
        "previous": report,
    }
    for names in (["model"], ["original"], ["previous"], ["model", "previous"], [*given]):
        options = VerificationOptions(**{name: given[name] for name in names})
        found = next(c for c in verify(audited["slim"], options, isolated=False).checks if c.id == "C14")
        assert found.status == "passed"
        text = f"{found.info.proves} ({found.note})"
        assert [name for name in said if said[name] in text] == names
        assert ("not asked: " in text) == (len(names) < 3)
        assert "is the expected one" not in found.info.proves


def test_a_bundle_follows_one_of_the_same_original_and_no_later_one(audited):
    assert (
        verify(
            audited["other"], VerificationOptions(previous=read_report(audited["slim"])), isolated=False
        ).exit_code
        == 0
    )
    late = read_report(audited["slim"])
    late = late.model_copy(
        update={"timing": late.timing.model_copy(update={"generated_at": "2998-01-01T00:00:00+00:00"})}
    )
    back = verify(audited["other"], VerificationOptions(previous=late), isolated=False)
    assert failed(back) == {"C14"}
    assert "rollback" in told(back)
    foreign = verify(
        audited["other"], VerificationOptions(previous=read_report(audited["mixed"])), isolated=False
    )
    assert failed(foreign) == {"C14"}
    assert "original" in told(foreign)


# --------------------------------------------------------------------------- hostile files


def fifo(folder):
    os.mkfifo(folder / "report.html.new")


def huge(folder):
    (folder / bundles.PLAN).unlink()
    with (folder / bundles.PLAN).open("wb") as stream:
        stream.truncate(10 << 40)


def crowded(folder):
    for number in range(200):
        (folder / f"{number}.txt").touch()


def huge_header(folder):
    (folder / bundles.WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def lying_header(folder):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    (folder / bundles.GOLDEN).write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")


def long_number(folder):
    (folder / bundles.REPORT).write_text('{"schema": ' + "9" * 10_000 + "}")


def broken_text(folder):
    (folder / bundles.REPORT).write_bytes(b"\xff\xfe{}")


def bomb_recipe(folder):
    lines = ["a: &a [x, x]"] + [
        f"{c}: &{c} [*{p}, *{p}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (folder / bundles.RECIPE).write_text("\n".join(lines))


def blank_recipe(folder):
    (folder / bundles.RECIPE).write_text("\n" * 1_000_000)


def page_bomb(folder):
    (folder / bundles.PAGE).write_text("<svg" * 2_000_000 + "<!--" * 2_000_000 + ">" * 2_000_000)


def signature_bomb(folder):
    (folder / bundles.SIGNATURES).mkdir()
    (folder / bundles.SIGNATURES / "producer.dsse.json").write_text("[" * 50_000)


def empty_tables(folder):
    report = json.loads((folder / bundles.REPORT).read_text())
    report.update(features=[], stages=[], path=[], performance=[], hidden=[])
    bundles.write_json(folder / bundles.REPORT, report)


@pytest.mark.parametrize(
    "change",
    [fifo, huge, crowded, huge_header, lying_header, long_number, broken_text, bomb_recipe, blank_recipe, page_bomb,
     signature_bomb, empty_tables],
)  # fmt: skip
def test_hostile_bundles_fail_quickly_and_without_a_traceback(change, slim):
    change(slim.folder)
    done = invoke("verify", slim.folder, "--timeout", "60")
    assert done.exit_code == 1, done.output
    assert done.stdout.startswith("FAILED")
    assert "Traceback" not in done.output
    assert invoke("render", slim.folder).exit_code in (0, 5)


@pytest.mark.parametrize("command", ["verify", "render", "sign", "explain", "diff"])
@pytest.mark.parametrize("kind", ["absent", "file", "empty", "old", "later"])
def test_what_is_no_bundle_is_one_line_and_exits_5(command, kind, slim, people, tmp_path):
    target = {"absent": tmp_path / "absent", "file": slim / bundles.ONNX, "empty": tmp_path / "empty"}.get(
        kind, slim.folder
    )
    (tmp_path / "empty").mkdir()
    if kind == "old":
        for name in (bundles.MANIFEST, bundles.INPUT_SCHEMA):
            (slim / name).unlink()
    if kind == "later":
        slim.edit(lambda r: r.update(schema="glprune.report/3"))
    more = {"sign": ["--key", people / "producer"], "explain": ["a"], "diff": [target]}.get(command, [])
    done = invoke(command, target, *more)
    assert done.exit_code == 5, done.output
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.output


def endless(model):
    """Put a Loop of a million million turns in front."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            helper.make_node("Identity", ["carry"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carry", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    for name, value in (("turns", np.array(10**12)), ("yes", np.array(True))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    node = helper.make_node("Loop", ["turns", "yes", "honest"], ["prediction"], "endless", body=body)
    model.graph.node[-1].output[0] = "honest"
    model.graph.node.append(node)


@pytest.mark.slow
def test_a_model_that_never_ends_is_stopped_and_left_incomplete(audited):
    model = onnx.load_from_string((audited["slim"] / bundles.ONNX).read_bytes())
    endless(model)
    golden = (audited["slim"] / bundles.GOLDEN).read_bytes()
    c9, c10 = check_execution(model.SerializeToString(), golden, Claims(), seconds=4)
    assert (c9.status, c10.status) == ("incomplete", "skipped")
    assert "stopped after 4 s" in c9.note


@whole
def test_the_model_runs_in_a_process_of_its_own_and_says_the_same(audited):
    alone = verify(audited["wide"], seconds=120)
    assert alone.exit_code == 0, told(alone)
    here = verify(audited["wide"], isolated=False)
    assert [(c.id, c.status, c.note) for c in alone.checks] == [(c.id, c.status, c.note) for c in here.checks]


def test_names_from_a_bundle_cannot_steer_the_terminal(slim):
    slim.edit(lambda r: r["features"][0].update(name="\x1b[2Jverified"))
    assert "\x1b" not in invoke("verify", slim.folder).output
    done = invoke("explain", slim.folder, "a")
    assert done.stdout.startswith("\\u001b[2Jverified: ")


@pytest.mark.parametrize(
    "raw", [b'{"a": 1, "a": 2}', b"NaN", b"[1e999]", b"\xff", b"{", b"[" * 99 + b"]" * 99, b"[" * 10**6]
)
def test_json_with_more_than_one_reading_is_refused(raw):
    with pytest.raises(StrictError):
        read_json(raw)


# --------------------------------------------------------------------------- the page


def both(folder):
    return (folder / bundles.PAGE).read_bytes(), (folder / bundles.SUMMARY).read_bytes()


@whole
def test_a_picture_that_was_redrawn_is_caught_where_matplotlib_is_the_same(slim):
    text = (slim / bundles.PAGE).read_text()
    path = re.search(r' d="M [^"]*\d', text)
    (slim / bundles.PAGE).write_text(
        text[: path.end() - 1] + str((int(text[path.end() - 1]) + 1) % 10) + text[path.end() :]
    )
    check = rendering.check_rendering(read_report(slim.folder), *both(slim))
    assert check.status == "failed"
    assert "picture" in str(check.findings[0])


@whole
def test_another_version_leaves_the_page_incomplete_and_another_matplotlib_the_pictures(slim, monkeypatch):
    raw, report = both(slim), read_report(slim.folder)
    drawn = report.run.versions | {"matplotlib": "0.1"}
    other = report.model_copy(update={"run": report.run.model_copy(update={"versions": drawn})})
    pages = render_html(other).encode(), render_markdown(other).encode()
    check = rendering.check_rendering(other, *pages)
    assert check.status == "incomplete"
    assert "drawn by matplotlib 0.1" in check.left_out
    monkeypatch.setattr(rendering, "__version__", "9.9")
    check = rendering.check_rendering(report, *raw)
    assert check.status == "incomplete"
    assert "9.9" in check.note


# --------------------------------------------------------------------------- stability and other tables


def resampled(report, recipe):
    """The report with ten resamples that are consistent with everything else."""
    kept = [f.status == "kept" for f in report.features]
    rng = np.random.default_rng(0)
    parts = []
    for seed in range(10):
        digits = "".join("01"[int(k ^ (rng.random() < 0.2))] for k in kept)
        parts.append(Resample(seed=seed, rows=72, stages=1, lam=0.1, metric=0.9, kept=digits))
    record = make_stability(StabilitySpec(n_resamples=10), sum(kept), [True] * len(kept), parts, [])
    features = []
    for n, feature in enumerate(report.features):
        count = sum(p.kept[n] == "1" for p in parts)
        features.append(feature.model_copy(update={"kept_in": count, "kept_share": count / 10}))
    found = report.model_copy(update={"stability": record, "features": features})
    derived = {"warnings": [*report.warnings, *caveats.warnings(found, recipe)]}
    derived["not_measured"] = caveats.not_measured(found, recipe)
    return found.model_copy(update=derived)


@pytest.mark.parametrize(
    "path", ["stable", "mean_kept", "jaccard", "nogueira", "nogueira_interval/low", "limit", "kept_in"]
)
def test_every_figure_of_stability_follows_from_its_digits(path, audited):
    opened = open_bundle(audited["slim"])
    recipe = opened.recipe.model_copy(update={"stability": StabilitySpec(n_resamples=10)})
    report = resampled(opened.report, recipe)
    assert check_consistency(report, recipe, opened.files.contents) == []
    record = report.model_dump(mode="json", by_alias=True)
    place = record["features"][0] if path == "kept_in" else record["stability"]
    *parents, last = path.split("/")
    for key in parents:
        place = place[key]
    place[last] += 1
    changed = Report.model_validate(record)
    found = check_consistency(changed, recipe, opened.files.contents)
    assert any(path in f.where for f in found)


def compared(report):
    """The report with a baseline and drop costs that are consistent with everything else."""
    kept = names(report, "kept")
    hidden = sum(h.after for h in report.hidden)
    runs = [
        {
            "kept": [n],
            "common": int(n in kept),
            "hidden": hidden,
            "common_hidden": 0,
            "valid": v,
            "test": {"auroc": v},
        }
        for n, v in (("pair", 0.9), ("d", 0.7))
    ]
    spread = {"name": "auroc", "mean": 0.8, "std": float(np.std([0.9, 0.7], ddof=1))}
    auroc, rows = report.performance[0].final, report.export.rows
    figures = {"valid_rows": 9, "test_rows": rows, "valid": 0.9, "test": auroc}
    costs = [{"feature": n, "valid": 0.8, "test": 0.8, "reason": None} for n in kept]
    record = report.model_dump(mode="json", by_alias=True)
    record["baselines"] = {
        "features": len(kept),
        "hidden": hidden,
        "valid": report.stages[-1].metric,
        "rows": rows,
        "repeats": 5,
        "results": [{"name": "random", "valid": spread, "test": [spread], "runs": runs}],
        "notes": [],
    }
    record["drop_costs"] = figures | {
        "metric": "auroc",
        "higher_is_better": True,
        "refitted_valid": 0.9,
        "refitted_test": 0.9,
        "features": costs,
    }
    return record


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("baselines/features", lambda b: b["baselines"].update(features=9)),
        ("baselines/hidden", lambda b: b["baselines"].update(hidden=999)),
        ("baselines/valid", lambda b: b["baselines"].update(valid=0.123)),
        ("runs/1/common", lambda b: b["baselines"]["results"][0]["runs"][1].update(common=5)),
        ("valid/mean", lambda b: b["baselines"]["results"][0]["valid"].update(mean=0.1)),
        ("test/0/std", lambda b: b["baselines"]["results"][0]["test"][0].update(std=0.0)),
        ("drop_costs/test", lambda b: b["drop_costs"].update(test=0.0)),
        ("drop_costs/features", lambda b: b["drop_costs"]["features"].pop()),
        ("drop_costs/features/0", lambda b: b["drop_costs"]["features"][0].update(reason="none")),
    ],
)
def test_figures_of_baselines_and_drop_costs_follow_from_their_tables(place, change, audited):
    opened = open_bundle(audited["slim"])
    asked = {"report": opened.recipe.report.model_copy(update={"baselines": True})}
    asked["stability"] = StabilitySpec(n_resamples=0, drop_cost=True)
    recipe = opened.recipe.model_copy(update=asked)
    record = compared(read_report(audited["slim"]))
    clean = check_consistency(Report.model_validate(record), recipe, opened.files.contents)
    assert clean == []
    change(record)
    found = check_consistency(Report.model_validate(record), recipe, opened.files.contents)
    assert any(place in f.where for f in found), found


# --------------------------------------------------------------------------- diff, explain, render


def test_diff_lists_features_gained_and_lost_metrics_and_sizes(audited):
    old, new = read_report(audited["slim"]), read_report(audited["other"])
    found = compare(old, new)
    before, after = set(names(old, "kept")), set(names(new, "kept"))
    assert set(found["features"]["lost"]) == before - after != set()
    assert set(found["features"]["gained"]) == after - before
    auroc = found["metrics"]["auroc"]
    assert auroc["change"] == pytest.approx(auroc["new"] - auroc["old"])
    assert found["size"]["parameters_after"] == [old.size.parameters_after, new.size.parameters_after]
    assert "original model" not in found["changed"]
    assert "shipped model" in found["changed"]
    text = invoke("diff", audited["slim"], audited["other"])
    assert text.exit_code == 0
    assert f"features lost: {', '.join(found['features']['lost'])}" in text.stdout
    assert json.loads(invoke("diff", audited["slim"], audited["other"], "--json").stdout) == json.loads(
        json.dumps(found)
    )


def test_explain_tells_when_a_removed_feature_left_and_where_a_kept_one_is_read(slim):
    report = read_report(slim.folder)
    gone = next(f for f in report.features if f.status == "removed")
    with_policy(slim, must_drop=[gone.name], derived_from={gone.name: ["sex"]})
    story = explain(read_report(slim.folder), gone.name)
    assert story["exit"] == {"stage": gone.stage_exit, "lambda": gone.lambda_exit}
    assert story["path"][-1]["norm"] == 0
    assert story["policy"] == {"made_of": ["sex"], "must_drop": [gone.name], "must_keep": [], "protected": []}
    done = invoke("explain", slim.folder, gone.name)
    assert done.exit_code == 0
    assert f"removed in stage {gone.stage_exit}" in done.stdout
    by_column = explain(report, "a")
    assert by_column["feature"] == "pair"
    assert by_column["positions"] == [0, 1]


def test_explain_shows_both_ends_of_a_long_path(slim):
    def longer(report):
        report["path"] = [report["path"][0] | {"lam": float(n)} for n in range(1, 501)]

    slim.edit(longer)
    told = invoke("explain", slim.folder, "a").stdout.splitlines()
    rows = [line.split()[1] for line in told if line.startswith("1 ")]
    assert rows == [str(n) for n in (*range(1, 101), *range(401, 501))]
    assert told[-1] == "300 points between the first and last 100 left out (--json has all)"
    assert len(json.loads(invoke("explain", slim.folder, "a", "--json").stdout)["path"]) == 500


def test_explain_suggests_a_name(slim):
    done = invoke("explain", slim.folder, "pear")
    assert done.exit_code == 2
    assert "did you mean 'pair'" in done.stderr
    with pytest.raises(UsageError, match="features: pair"):
        explain(read_report(slim.folder), "zzzz")


@whole
def test_render_makes_the_page_anew(slim, tmp_path):
    done = invoke("render", slim.folder, "--out", tmp_path / "page.html")
    assert done.exit_code == 0
    assert (tmp_path / "page.html").read_bytes() == (slim / bundles.PAGE).read_bytes()
    assert invoke("render", slim.folder).stdout == (slim / bundles.PAGE).read_text()
    assert invoke("render", slim.folder, "--markdown").stdout == (slim / bundles.SUMMARY).read_text()


# --------------------------------------------------------------------------- no PyTorch

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torch_pruning", "matplotlib", "pyarrow", "scipy", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from glprune.audit import steps, verify
verify.verify_isolated = lambda folder, options, _: verify.verify_steps(folder, options, steps.Steps())
from glprune.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [("verify {bundle}", 3), ("render {bundle}", 0), ("diff {bundle} {bundle}", 0), ("explain {bundle} pair", 0),
     ("sign {bundle} --key {key}", 0), ("countersign {bundle} --key {key} --role owner --statement x", 0),
     ("attest-original {bundle}/model.onnx --key {key} --out {bundle}.json", 0),
     ("export-card {bundle}", 0), ("schema report", 0), ("run recipe.yaml model.pt", 2)],
)  # fmt: skip
def test_the_auditors_commands_run_without_pytorch(command, code, slim, people):
    words = command.format(bundle=slim.folder, key=people / "validator").split()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_the_analysis_of_proxies_may_be_withheld_and_verify_says_so(audited, tmp_path):
    copy = copied(audited["ruled"], tmp_path / "bundle")
    (copy / bundles.PROXIES).unlink()
    verdict = verify(copy.folder, isolated=False)
    assert verdict.exit_code == 0
    assert any("proxy.json" in sentence and "withheld" in sentence for sentence in verdict.not_checked)
    assert not any("withheld" in s for s in verify(audited["ruled"], isolated=False).not_checked)
