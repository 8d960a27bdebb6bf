"""Fuzz ``glprune verify`` with honest bundles, changed: ``python -m tests.fuzz_verify --seconds 1800``.

With atheris (``pip install -e ".[fuzz]"``) coverage guides the changes; without it they are random. An input is a
list of answers: which bundle, file and change, and whether digests, page and manifest follow it. Findings are

- an exception other than a refusal, or one that stopped a check,
- 20 s of processor time, or a gigabyte of memory,
- exit code 0 where a file holds another value that a producer may not state: digests did not follow the change, the
  bundle is signed, or the file follows from the others. What was accepted otherwise is listed, to be read.

The run goes on after a finding: each kind is kept once in ``--findings``, and ``--replay FILE`` runs it again.
Checks run in this process, without the limits of time and memory that ``glprune verify`` sets. Pictures are compared
with those of the honest bundle instead of drawn.

Run last in November 2026, half an hour: 24,056 bundles, 453 MiB, 0.3 s of processor time at most, no fault. Before, it
had found files that are ``null``, networks that the report does not state, and metadata that ended in a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import itertools
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["glprune"]) if atheris else contextlib.nullcontext():
    from glprune.audit import parsed_bundle, signing
    from glprune.audit.checks import rendering
    from glprune.audit.findings import Verdict
    from glprune.audit.safetensors_reader import read_tensors
    from glprune.audit.verify import VerificationOptions, verify
    from glprune.errors import GlpruneError
    from glprune.schema import bundle as bundles
    from glprune.schema.manifest import sha256
    from glprune.schema.strict_json import read_json
    from glprune.schema.strict_yaml import parse
    from tests.bundle_fixtures import Bundles, Copy, copied, resign
    from tests.bundle_mutations import change
    from tests.mutations import Choose, one_line

LENGTH = 256
"""Bytes of an input."""
RUNS = ("slim", "kept", "wide", "mixed", "recurrent")
SIGNED = "signed"
_HANG = 20  # seconds of processor time
_END = 300  # seconds after which a hang outside of Python ends the run
_GIGABYTE = 1 << 30
_DERIVED = (bundles.PAGE, bundles.SUMMARY, bundles.SCHEMA, bundles.INPUT_SCHEMA)
"""Files in which nothing is the producer's to state."""
_FOLLOWERS = (bundles.REPORT, bundles.PAGE, bundles.SUMMARY, bundles.MANIFEST)
"""Files that are written again when another one changed."""
Files = Mapping[str, bytes]


class HangError(BaseException):
    """Verification took too long; no check may take it for an error of the bundle."""


class AcceptedError(AssertionError):
    """A changed bundle was verified."""


class StoppedError(AssertionError):
    """An exception stopped a check."""


class MemoryGrewError(AssertionError):
    """Verification took a gigabyte."""


@dataclass(frozen=True)
class Base:
    """An honest bundle, its files, and what the auditor brings along."""

    folder: Path
    files: Files
    options: VerificationOptions

    @functools.cached_property
    def pictures(self) -> list[str]:
        return rendering._pictures(self.files[bundles.PAGE].decode())[1]


@dataclass
class Tally:
    """What a run found: how often each exit code was given, each kind of finding, and each accepted change."""

    exit_codes: Counter[object] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def tell(self, seconds: float) -> None:
        """Print the numbers."""
        print(
            f"{self.exit_codes.total()} executions in {seconds:.0f} s; slowest: {self.slowest:.1f} s of processor;"
        )
        print(f"most memory: {_peak() >> 20} MiB; exit codes: {dict(self.exit_codes)}")
        for title, found in (("FINDING", self.findings), ("accepted", self.accepted)):
            for kind, count in found.most_common():
                print(f"{title} {count}x {_printable(kind)}")
        sys.stdout.flush()


def make_bases(made: Mapping[str, Path], signed: Path) -> list[Base]:
    """Read honest bundles, and sign a copy of the first.

    Args:
        made: Name of a run -> its bundle.
        signed: Where the signed copy and its key are.
    """
    if not signed.exists():
        signing.make_key(signed.with_suffix(".key"))
        resign(copied(made[RUNS[0]], signed), signing.read_private_key(signed.with_suffix(".key")))
    trust = [signing.read_public_key(signed.with_suffix(".key.pub"))]
    bases = [Base(made[name], contents(made[name]), VerificationOptions()) for name in RUNS]
    return [*bases, Base(signed, contents(signed), VerificationOptions(trust=trust))]


def contents(folder: Path) -> Files:
    """Return the files of a bundle."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def chooser(raw: bytes) -> Choose:
    """Take answers from bytes, in order; 0 once they are used up."""
    left = iter(raw)

    def choose(n: int) -> int:
        value, bound = 0, 1
        while bound < n:
            value, bound = value * 256 + next(left, 0), bound * 256
        return value % n

    return choose


class Fuzzer:
    """Verifies changed bundles and counts what happens.

    Args:
        folder: Where bundles are written; in memory, for speed.
        bases: The honest bundles.
        findings: Where inputs that show a fault are kept.
    """

    def __init__(self, folder: Path, bases: Sequence[Base], findings: Path) -> None:
        self.folder, self.bases, self.findings = folder, bases, findings
        self.tally = Tally()
        findings.mkdir(parents=True, exist_ok=True)

    def check_honest(self) -> None:
        """Verify the bundles before they are changed."""
        for base in self.bases:
            with _quickly(base):
                verdict = verify(base.folder, base.options, isolated=False)
            assert verdict.exit_code == 0, (base.folder.name, [f for c in verdict.checks for f in c.findings])

    def run(self, raw: bytes) -> None:
        """Verify one changed bundle; a fault is kept, and its kind counted."""
        (self.findings / "last").write_bytes(raw)
        kind, told = self.fault(raw)
        if kind is None:
            return
        self.tally.findings[kind] += 1
        if self.tally.findings[kind] == 1:
            path = self._keep("finding", kind, raw)
            path.with_suffix(".txt").write_text(f"{kind}\n{told}\n", errors="backslashreplace")
            print(f"FINDING {path.name}: {_printable(kind)}", flush=True)

    def fault(self, raw: bytes) -> tuple[str | None, str]:
        """Return the kind of fault that an input shows, None if there is none, and what is known of it."""
        choose = chooser(raw)
        base = self.bases[choose(len(self.bases))]
        place = self.folder / "copy"
        shutil.rmtree(place, ignore_errors=True)
        copy = copied(base.folder, place)
        try:
            name, follows = change(copy, [b.folder for b in self.bases], choose)
        except Exception as error:  # the change before left nothing to change
            self.tally.exit_codes[f"not changed: {type(error).__name__}"] += 1
            return None, ""
        told = f"{base.folder.name}: {name} changed, {'followed' if follows else 'not followed'}"
        try:
            verdict = self._verified(copy, base)
            if verdict is not None:
                self._read(verdict, base, contents(copy.folder), name, follows, raw)
        except (Exception, HangError) as error:
            return _kind(error), f"{told}\n{traceback.format_exc()}"
        return None, told

    def _verified(self, copy: Copy, base: Base) -> Verdict | None:
        """Verify a bundle within bounds of time and memory; None if it is refused in one line."""
        before, started = max(_peak(), _GIGABYTE), time.process_time()
        try:
            with _quickly(base), _bounded():
                verdict = verify(copy.folder, base.options, isolated=False)
        except GlpruneError as error:
            one_line(error)
            self.tally.exit_codes["refused"] += 1
            return None
        self.tally.exit_codes[verdict.exit_code] += 1
        self.tally.slowest = max(self.tally.slowest, time.process_time() - started)
        if _peak() > before:
            raise MemoryGrewError(f"{_peak():,} bytes")
        return verdict

    def _read(self, verdict: Verdict, base: Base, files: Files, name: str, follows: bool, raw: bytes) -> None:
        """Require findings that can be printed, and a change that a producer may make where there are none."""
        for check in verdict.checks:
            for finding in check.findings:
                str(finding).encode("utf-8", "surrogatepass")
                if "so inconsistent" in finding.what:
                    raise StoppedError(f"{check.id} {finding.what.partition('(')[2]}")
        changed = dict(differences(base.files, files)) if verdict.exit_code == 0 else {}
        if follows:
            changed = {n: what for n, what in changed.items() if n == name or n not in _FOLLOWERS}
        if not changed:
            return
        if (
            not follows
            or base.folder.name == SIGNED
            or {*changed} & {*_DERIVED}
            or "added" in changed.values()
        ):
            raise AcceptedError(str(changed))
        kind = str(changed)[:200]
        self.tally.accepted[kind] += 1
        if self.tally.accepted[kind] == 1:
            self._keep("accepted", kind, raw)

    def _keep(self, what: str, kind: str, raw: bytes) -> Path:
        path = self.findings / f"{what}-{sha256(kind.encode('utf-8', 'surrogatepass'))[:8]}"
        path.write_bytes(raw)
        return path


def _kind(error: BaseException) -> str:
    """Return type, place and message of an error, without the numbers in it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/glprune/" in f.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = str(error) if isinstance(error, AcceptedError | StoppedError) else ""
    return " ".join(f"{type(error).__name__} {where} {re.sub(r'[0-9]+', 'N', said)[:160]}".split())


@contextlib.contextmanager
def _quickly(base: Base) -> Iterator[None]:
    """Leave out what takes most of the time: drawing, and reading again a recipe or page that was just read."""
    blank = ["<svg></svg>"] * len(base.pictures)
    with contextlib.ExitStack() as stack:
        for module, name, other in (
            (rendering, "_cannot_draw", lambda report: None),
            (
                rendering,
                "_drawn_alike",
                lambda _, page: rendering._pictures(page)[1] in (base.pictures, blank),
            ),
            (rendering, "check_page", _listed(rendering.check_page)),
            (rendering, "check_picture", _listed(rendering.check_picture)),
            (parsed_bundle, "_parse_recipe", _remembered(parsed_bundle._parse_recipe)),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, other)
        yield


@functools.cache
def _remembered(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return functools.lru_cache(64)(function)


@functools.cache
def _listed(check: Callable[[str], Iterator[str]]) -> Callable[[str], tuple[str, ...]]:
    return functools.lru_cache(64)(lambda text: tuple(itertools.islice(check(text), rendering._MAX_FINDINGS)))


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Raise HangError after some processor time."""

    def stop(*_: object) -> None:
        raise HangError(f"{_HANG} s of processor time")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _HANG)
    faulthandler.dump_traceback_later(_END, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def differences(before: Files, after: Files) -> Iterator[tuple[str, str]]:
    """Return the files that hold other values, and where; optional ones that are gone do not count."""
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            if name not in bundles.OPTIONAL or old is None:
                yield name, "added" if old is None else "gone"
        elif old != new:
            places = [*itertools.islice(unequal(_value(name, old), _value(name, new)), 3)]
            if places:
                yield name, ", ".join(places)


def _value(name: str, raw: bytes) -> Any:
    """Return what a file says; its bytes where it cannot be read."""
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, GlpruneError):
        match Path(name).suffix:
            case ".json":
                value = read_json(raw)
                if name == bundles.MANIFEST:
                    value["subject"].sort(key=str)  # a list of files, in any order
                return value
            case ".yaml":
                return parse(raw.decode(), "")[0]
            case ".safetensors":
                found = read_tensors(raw)
                values = {n: (x.dtype.str, x.shape, x.tobytes()) for n, x in found.arrays.items()}
                return {"arrays": values, "aliases": found.aliases}
    return raw


def unequal(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Return the places where two values differ; indices of lists as ``*``."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from unequal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from unequal(x, y, f"{where}/*")
    elif a != b:
        yield where or "/"


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _peak() -> int:
    """Return the most bytes of memory that this process took so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(fuzzer: Fuzzer, seconds: float, seed: int) -> None:
    """Verify changed bundles until time is up; the exit status is 1 if there are findings."""
    started = told = time.monotonic()
    generator = random.Random(seed)

    def run(raw: bytes) -> None:
        nonlocal told
        fuzzer.run(raw)
        now = time.monotonic()
        if now - started > seconds or now - told > 120:
            told = now
            fuzzer.tally.tell(now - started)
        if now - started > seconds:
            shutil.rmtree(fuzzer.folder, ignore_errors=True)
            os._exit(1 if fuzzer.tally.findings else 0)  # libFuzzer would not return

    if atheris is not None:
        _guide(fuzzer.folder / "corpus", generator, run)
    while True:
        run(generator.randbytes(LENGTH))


def _guide(corpus: Path, generator: random.Random, run: Callable[[bytes], None]) -> None:
    """Let coverage choose the inputs; half of them are new, since short mutations stay near the first ones."""

    def mutate(raw: bytes, size: int, seed: int) -> bytes:
        new = random.Random(seed).randbytes(LENGTH + 1)
        return new[1:] if new[0] % 2 else (atheris.Mutate(raw, size) + new)[:LENGTH]

    corpus.mkdir()
    for number in range(48):
        (corpus / str(number)).write_bytes(generator.randbytes(LENGTH))
    options = [
        f"-max_len={LENGTH}",
        "-len_control=0",
        "-reduce_inputs=0",
        "-verbosity=0",
        "-timeout=86400",  # the bounds are the fuzzer's own
        "-rss_limit_mb=0",
        f"-seed={generator.randrange(1, 1 << 31)}",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()


def replay(fuzzer: Fuzzer, paths: Sequence[Path]) -> None:
    """Run kept inputs again and print what they show."""
    for path in paths:
        kind, told = fuzzer.fault(path.read_bytes())
        print(f"{path}: {_printable(f'{kind} {told}')}")


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--bases", type=Path, help="folder of the honest bundles; made there if it has none")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, nargs="+", help="inputs to run again")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        tempfile.tempdir = name  # the reader of recipes uses it too
        made = given.bases or folder / "bases"
        made.mkdir(parents=True, exist_ok=True)
        fuzzer = Fuzzer(folder, make_bases(Bundles(made), made / SIGNED), given.findings)
        fuzzer.check_honest()
        if given.replay:
            replay(fuzzer, given.replay)
        else:
            fuzz(fuzzer, given.seconds, given.seed)


if __name__ == "__main__":
    main()
