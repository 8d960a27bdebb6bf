"""Tables of a results file.

Run: python benchmarks/table.py [benchmarks/results/features.json]
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comparison

Record = dict[str, Any]
Row = list[str]


def show(content: dict[str, Any]) -> None:
    """Print what a results file says."""
    from sets import HELD_OUT

    records = content["records"]
    machine = content["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores; limit {content['limit']:.0f} s; one thread each")
    print(", ".join(f"{k} {v}" for k, v in content["versions"].items()), end="\n\n")
    for name in dict.fromkeys(r["set"] for r in records):
        of_set = [r for r in records if r["set"] == name]
        metric = next((r["metric"] for r in of_set if "metric" in r), "")
        print(f"{name}: {metric} on test rows, mean ± standard error (standard deviation) over seeds")
        print(aligned(_methods(of_set)), end="\n\n")
    for role, chosen in (
        ("Development sets", [r for r in records if r["set"] not in HELD_OUT]),
        ("Held-out sets", [r for r in records if r["set"] in HELD_OUT]),
    ):
        if chosen:
            print(f"{role}: {len({r['set'] for r in chosen})}\n")
            _show_role(chosen)
    for commit, names in content.get("looks", {}).items():
        print(f"glprune at {commit} was run on {len(names)} held-out sets: {', '.join(names)}")


def _show_role(records: Sequence[Record]) -> None:
    """Print the tables over all sets of a role."""
    commits = sorted({r["commit"] for r in records if "commit" in r})
    print(f"glprune at {', '.join(commits) or 'no recorded commit'}\n")
    _show_table(
        "glprune against the best peer (by mean); difference in standard errors of the paired difference",
        _summary(records),
    )
    _show_ranks(records)
    _show_table(
        "glprune against each peer: sets ahead, level, behind by a standard error of the paired difference\n"
        "over seeds; mean difference over sets, its 95 % interval (bootstrap over sets, then seeds), p of\n"
        "Wilcoxon's test over sets after Holm; then (set, k) with at least three seeds ahead, level, behind",
        _against(records),
    )
    _show_table("Recall of the features that matter: mean (least) over answers", _recall(records))
    _show_table("Processor time over LassoNet's, by (set, k)", _time(records))


def _show_table(title: str, rows: Sequence[Row]) -> None:
    """Print a table that has more than its header."""
    if len(rows) > 1:
        print(f"{title}\n{aligned(rows)}\n")


def _show_ranks(records: Sequence[Record]) -> None:
    found = comparison.ranks(records)
    if found is None:
        print("Mean ranks: too few sets or methods\n")
        return
    print(f"Mean ranks over {found.sets} sets (Friedman p = {found.p:.2g}); below a difference of")
    print(f"{found.critical:.2f} two methods are not told apart (Nemenyi, 5 %, all pairs at once)")
    pairs = zip(found.methods, found.means, strict=True)
    best = found.means[0]
    rows = [[m, f"{mean:.2f}", "" if mean - best < found.critical else "worse"] for m, mean in pairs]
    print(aligned([["method", "mean rank", "than the first"], *rows]), end="\n\n")


def _methods(records: Sequence[Record]) -> list[Row]:
    header = [
        "k",
        "method",
        "figure",
        "seeds",
        "kept",
        "precision",
        "recall",
        "own model",
        "seconds",
        "CPU s",
        "MB",
    ]
    ks = sorted({r["k"] for r in records})
    rows = []
    for k in ks:
        at = [r for r in records if r["k"] == k]
        best = _best_peer(at)
        for method in dict.fromkeys(r["method"] for r in at):
            rows.append(
                _row(k, method + (" *" if method == best else ""), [r for r in at if r["method"] == method])
            )
    return [header, *rows]


def _row(k: int, method: str, records: Sequence[Record]) -> Row:
    done = [r for r in records if r["status"] == "done"]
    lost = [f"{r['status']}" for r in records if r["status"] != "done"]
    seeds = f"{len(done)}" + (f" + {len(lost)} {'/'.join(sorted(set(lost)))}" if lost else "")
    if not done:
        return [str(k), method, "-", seeds, *["-"] * 7]
    own = sum(r["source"] == "own" for r in done)
    kept, precision, recall = (_mean(done, name) for name in ("kept", "precision", "recall"))
    return [
        str(k),
        method,
        spread([r["test"] for r in done]),
        seeds,
        _number(kept, 1),
        _number(precision, 2),
        _number(recall, 2),
        f"{own}/{len(done)}",
        _number(_mean(done, "seconds"), 1),
        _number(_mean(done, "cpu_seconds"), 1),
        _number(_mean(done, "memory_mb"), 0),
    ]


def _summary(records: Sequence[Record]) -> list[Row]:
    header = ["set", "k", "glprune", "best peer", "its figure", "difference", "in SE"]
    rows = [[*header, "seconds", "of LassoNet's", "CPU s", "of LassoNet's", "search", "of LassoNet's"]]
    for name, k in dict.fromkeys((r["set"], r["k"]) for r in records):
        at = [r for r in records if (r["set"], r["k"]) == (name, k) and r["status"] == "done"]
        ours, lasso = _by_seed(at, "glprune"), _by_seed(at, "lassonet")
        best = _best_peer(at)
        if not ours or best is None:
            continue
        peer = _by_seed(at, best)
        gaps = [ours[s]["test"] - peer[s]["test"] for s in ours if s in peer]
        error = standard_error(gaps)
        row = [
            name,
            str(k),
            _spread(ours),
            best,
            _spread(peer),
            f"{statistics.fmean(gaps):+.4f}" if gaps else "-",
        ]
        row.append(f"{statistics.fmean(gaps) / error:+.1f}" if error else "-")
        for clock, other in (
            ("seconds", "seconds"),
            ("cpu_seconds", "cpu_seconds"),
            ("search_seconds", "cpu_seconds"),
        ):
            row += [
                _number(_mean(list(ours.values()), clock), 1),
                _number(_ratio(ours, lasso, clock, other), 2),
            ]
        rows.append(row)
    return rows


def _against(records: Sequence[Record]) -> list[Row]:
    """glprune against each peer, over sets and over numbers of features."""
    header = ["peer", "sets", "ahead", "level", "behind", "difference", "95 % interval", "p"]
    peers = dict.fromkeys(r["method"] for r in records if r["method"] not in ("glprune", "network"))
    gaps = {peer: comparison.gaps(records, "glprune", peer) for peer in peers}
    gaps = {peer: found for peer, found in gaps.items() if found}
    ps = comparison.holm([comparison.signed_rank(found) for found in gaps.values()])
    rows = [[*header, "cells", "ahead", "level", "behind", "behind at"]]
    for (peer, found), p in zip(gaps.items(), ps, strict=True):
        ahead, level, behind = (str(len(names)) for names in comparison.verdicts(found))
        mean, low, high = comparison.pooled(found)
        row = [peer, str(len(found)), ahead, level, behind, f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        rows.append([*row, f"{p:.2g}", *_cells(records, peer)])
    return rows


def _cells(records: Sequence[Record], peer: str) -> Row:
    """How often glprune is ahead of a peer, level with it or behind at a number of features of a set."""
    found = {}
    for name, k in dict.fromkeys((r["set"], r["k"]) for r in records):
        at = [r for r in records if (r["set"], r["k"]) == (name, k)]
        (by_seed,) = comparison.gaps(at, "glprune", peer).values() or ({},)
        if len(by_seed) >= comparison.LEAST_SEEDS:
            found[f"{name} {k}"] = by_seed
    ahead, level, behind = comparison.verdicts(found)
    return [str(len(found)), str(len(ahead)), str(len(level)), str(len(behind)), ", ".join(behind)]


def _recall(records: Sequence[Record]) -> list[Row]:
    found = comparison.recalls(records)
    names = list(dict.fromkeys(name for by_set in found.values() for name in by_set))
    rows = [["method", *names]]
    for method, by_set in found.items():
        shown = (by_set.get(name, []) for name in names)
        rows.append([method, *(f"{statistics.fmean(v):.2f} ({min(v):.2f})" if v else "-" for v in shown)])
    return rows


def _time(records: Sequence[Record]) -> list[Row]:
    rows = [["glprune's", "cells", "median", "worst", "worst at"]]
    for label, clock in (("search", "search_seconds"), ("whole run", "cpu_seconds")):
        ratios = comparison.time_ratios(records, "glprune", clock, "lassonet")
        if ratios:
            name, k = max(ratios, key=lambda place: ratios[place])
            numbers = statistics.median(ratios.values()), ratios[name, k]
            rows.append([label, str(len(ratios)), *(f"{n:.2f}" for n in numbers), f"{name} {k}"])
    return rows


def _by_seed(records: Sequence[Record], method: str) -> dict[int, Record]:
    return {r["seed"]: r for r in records if r["method"] == method}


def _spread(records: dict[int, Record]) -> str:
    return spread([r["test"] for r in records.values()])


def _ratio(ours: dict[int, Record], theirs: dict[int, Record], name: str, other: str) -> float | None:
    """Of sums over the seeds that both have."""
    shared = [s for s in ours if s in theirs and name in ours[s]]
    return sum(ours[s][name] for s in shared) / sum(theirs[s][other] for s in shared) if shared else None


def _best_peer(records: Sequence[Record]) -> str | None:
    """The peer with the best mean among those that answered most seeds."""
    figures: dict[str, list[float]] = {}
    for r in records:
        if r["method"] not in ("glprune", "network") and r["status"] == "done":
            figures.setdefault(r["method"], []).append(r["test"])
    most = max(map(len, figures.values()), default=0)
    whole = {m: statistics.fmean(v) for m, v in figures.items() if len(v) == most}
    return max(whole, key=lambda m: whole[m], default=None)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard error (standard deviation)."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {standard_error(values):.4f} ({statistics.stdev(values):.4f})"


def standard_error(values: Sequence[float]) -> float:
    """Standard error of a mean; 0 where it cannot be said."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def aligned(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _mean(records: Sequence[Record], name: str) -> float | None:
    values = [r[name] for r in records if name in r]
    return statistics.fmean(values) if values else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


if __name__ == "__main__":
    default = Path(__file__).parent / "results" / "features.json"
    show(json.loads((Path(sys.argv[1]) if len(sys.argv) > 1 else default).read_text(encoding="utf-8")))
