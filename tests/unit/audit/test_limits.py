"""Hostile bundles end within 30 seconds of processor time and a gigabyte of memory, and a stopped check has its name."""

import json
import subprocess
import sys

import numpy as np
import pytest

from glprune.audit import isolation
from glprune.audit.checks.execution import Claims, check_execution
from glprune.audit.findings import CHECKS, Check, UnreadableError
from glprune.audit.isolation import verify_isolated
from glprune.audit.limits import memory_limit, time_limit
from glprune.audit.steps import NO_MEMORY, Steps
from glprune.audit.verify import VerificationOptions, verify
from glprune.report.stability_index import jaccard
from glprune.schema import bundle as bundles
from tests.bundle_fixtures import copied, follow, seal
from tests.unit.audit.attacks_limits import ATTACKS

MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss)
print(done.stdout, done.stderr)
"""


def measured(folder):
    """Verify in a new process; returns exit code, seconds of processor time, kilobytes and what was printed."""
    verify_command = [sys.executable, "-m", "glprune", "verify", folder, "--timeout", "20", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *verify_command], capture_output=True, text=True, check=True
    )
    figures, _, printed = done.stdout.partition("\n")
    code, seconds, kilobytes = figures.split()
    return int(code), float(seconds), int(kilobytes), printed


FAST = (
    "a constant of four gigabytes",
    "4 million nodes without content",
    "30,000 resamples, compared in pairs",
)
MARKED = [pytest.param(a, id=a.name, marks=() if a.name in FAST else pytest.mark.slow) for a in ATTACKS]


@pytest.mark.parametrize("attack", MARKED)
def test_a_hostile_bundle_ends_within_seconds_and_a_gigabyte(attack, audited, producer, tmp_path):
    copy = copied(audited[attack.base], tmp_path / "bundle")
    attack.change(copy)
    follow(copy)
    seal(copy, producer[0])
    code, seconds, kilobytes, printed = measured(copy.folder)
    assert seconds < 30, printed
    assert kilobytes < 1 << 20, printed
    assert "Traceback" not in printed
    verdict = json.loads(printed[: printed.rindex("}") + 1])
    checks = {c["id"]: c for kind in ("trust", "recomputation", "policy") for c in verdict[kind]}
    assert code == verdict["exit_code"] == attack.exit_code or (code, attack.exit_code) == (1, 3), printed
    assert checks[attack.check]["status"] in ("failed", "incomplete"), printed


def test_an_honest_bundle_verifies_in_a_process_of_its_own_as_in_this_one(audited):
    alone, here = verify(audited["wide"]), verify(audited["wide"], isolated=False)
    assert alone == here
    assert alone.exit_code == 0


def stop_in(step, monkeypatch):
    """Let the first worker end in a step, by a signal, as the system does where a limit is exceeded."""
    real, runs = isolation._talk, []

    def talk(process, request, progress):
        runs.append(request)
        if len(runs) > 1:
            real(process, request, progress)
            return
        process.kill()
        progress.read(json.dumps({"begin": step}).encode())

    monkeypatch.setattr(isolation, "_talk", talk)
    return runs


@pytest.mark.parametrize(("step", "incomplete"), [("C5", {"C5"}), ("C9", {"C9", "C10"}), ("C3", {"C3"})])
def test_a_check_that_is_stopped_is_named_and_the_others_run(step, incomplete, audited, monkeypatch):
    runs = stop_in(step, monkeypatch)
    verdict = verify_isolated(audited["wide"], VerificationOptions(), 60)
    assert {c.id for c in verdict.checks if c.status == "incomplete"} == incomplete
    assert verdict.exit_code == 3
    assert "ended by signal 9" in next(c.note for c in verdict.checks if c.id == step)
    assert [c.id for c in verdict.checks] == [*CHECKS]
    assert runs[1].checking < runs[0].checking


def test_a_file_whose_reading_is_stopped_is_named(audited, monkeypatch):
    stop_in("C4 report.json", monkeypatch)
    verdict = verify_isolated(audited["slim"], VerificationOptions(), 60)
    assert verdict.exit_code == 3
    assert "reading report.json ended by signal 9" in next(c.note for c in verdict.checks if c.id == "C4")


def test_what_is_no_bundle_is_told_by_the_worker_too(tmp_path):
    with pytest.raises(UnreadableError, match="not a bundle"):
        verify(tmp_path)


def test_modules_in_the_current_folder_are_not_imported(audited, tmp_path, monkeypatch):
    """The auditor may stand in the bundle."""
    copy = copied(audited["slim"], tmp_path / "bundle")
    for name in ("numpy", "onnx", "json"):
        (copy / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(copy.folder)
    verdict = verify(copy.folder)
    files = [(copy / name).read_bytes() for name in (bundles.ONNX, bundles.GOLDEN)]
    checks = check_execution(*files, Claims(), 60)
    assert not (tmp_path / "ran").exists()
    assert verdict.exit_code == 1
    assert checks[0].status == "passed"


def test_a_check_without_memory_is_incomplete_and_one_that_fails_is_a_finding():
    def without_memory():
        raise MemoryError

    def broken():
        raise KeyError("x")

    assert Steps().run("C5", without_memory) == Check("C5", "incomplete", note=NO_MEMORY)
    assert Steps().run("C5", broken).status == "failed"
    known = Check("C5", "passed")
    assert Steps({"C5": known}).run("C5", broken) is known


def test_limits_grow_with_the_files_and_the_time_asked_for():
    small, large = {"report.json": 1000}, {"report.json": 64 << 20, "model.onnx": 1 << 30}
    assert memory_limit(small) < 1 << 30 < memory_limit(large)
    assert time_limit(small, 300) < 16 < time_limit(large, 300)
    assert time_limit(small, 3) == 3
    assert time_limit(small, 3000) > 100


def test_the_mean_over_pairs_of_many_choices_is_that_of_few():
    rng = np.random.default_rng(0)
    supports = rng.random((700, 30)) < 0.3
    pairs = [
        (a & b).sum() / max(1, (a | b).sum())
        for n, a in enumerate(supports[:60])
        for b in supports[n + 1 : 60]
    ]
    assert jaccard(supports[:60]) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert jaccard(np.repeat(supports[:1], 600, axis=0)) == 1.0
