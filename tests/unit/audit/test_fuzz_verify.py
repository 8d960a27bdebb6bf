"""Honest bundles changed at random, the same ones in every session; ``python -m tests.fuzz_verify`` goes on.

``GLPRUNE_FUZZ=20`` tries twenty times as many, and others.
"""

import os
import random

import pytest

from glprune.audit import parsed_bundle, verify
from glprune.audit.findings import Check
from glprune.schema import bundle as bundles
from tests import fuzz_verify
from tests.bundle_fixtures import copied
from tests.bundle_mutations import change
from tests.fuzz_verify import LENGTH, RUNS, SIGNED, Fuzzer, chooser, contents, differences, make_bases

TIMES = int(os.environ.get("GLPRUNE_FUZZ", "1"))
NUMBER = 90


@pytest.fixture(scope="module")
def bases(audited, tmp_path_factory):
    return make_bases({name: audited[name] for name in RUNS}, tmp_path_factory.mktemp("fuzzed") / SIGNED)


@pytest.fixture
def fuzzer(bases, tmp_path):
    return Fuzzer(tmp_path, bases, tmp_path / "findings")


def inputs(number, seed=0):
    generator = random.Random(seed)
    return (generator.randbytes(LENGTH) for _ in range(number))


def test_bundles_changed_at_random_get_a_verdict(fuzzer):
    fuzzer.check_honest()
    for raw in inputs(NUMBER * TIMES, seed=TIMES):
        fuzzer.run(raw)
    assert not fuzzer.tally.findings, [p.read_text() for p in fuzzer.findings.glob("*.txt")]
    codes = fuzzer.tally.exit_codes
    assert codes.total() == NUMBER * TIMES
    assert codes[1] > NUMBER * TIMES / 2
    assert set(codes) - {0, 1, 3, "refused"} <= {c for c in codes if str(c).startswith("not changed")}
    assert fuzzer.tally.slowest < 10


def test_every_kind_of_file_is_changed_followed_or_not(bases, tmp_path):
    seen = set()
    for number, raw in enumerate(inputs(150)):
        choose = chooser(raw)
        base = bases[choose(len(bases))]
        copy = copied(base.folder, tmp_path / str(number))
        try:
            name, follows = change(copy, [b.folder for b in bases], choose)
        except Exception:
            continue
        if dict(differences(base.files, contents(copy.folder))):
            seen.add((name, follows))
    assert {(name, follows) for name in bundles.FILES for follows in (False, True)} <= seen
    assert (bundles.MANIFEST, False) in seen


def crash(*_):
    raise TypeError("planted")


def hang(*_):
    while True:
        pass


@pytest.mark.parametrize(
    ("module", "name", "planted", "number", "expected"),
    [
        (parsed_bundle, "read_files", crash, 1, "TypeError"),
        (verify, "check_digests", crash, 40, "StoppedError"),
        (parsed_bundle, "read_files", hang, 1, "HangError"),
        (verify, "check_rendering", lambda *_: Check("C12", "passed"), 60, "AcceptedError"),
    ],
    ids=["a crash", "a check that stops", "a hang", "a check that never fails"],
)
def test_a_planted_fault_is_found_and_kept(module, name, planted, number, expected, fuzzer, monkeypatch):
    monkeypatch.setattr(module, name, planted)
    monkeypatch.setattr(fuzz_verify, "_HANG", 1)
    for raw in inputs(number, seed=1):
        fuzzer.run(raw)
    kinds = {kind.split()[0] for kind in fuzzer.tally.findings}
    assert kinds == {expected}
    kept = [p for p in fuzzer.findings.glob("finding-*") if not p.suffix]
    assert len(kept) == len(fuzzer.tally.findings)
    again, _ = fuzzer.fault(kept[0].read_bytes())
    assert again in fuzzer.tally.findings
