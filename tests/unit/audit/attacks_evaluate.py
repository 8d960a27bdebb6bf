"""Figures that a dishonest producer changes, page and manifest made again; ``glprune evaluate`` finds each.

``verify`` cannot: nobody but the owner of the rows can measure a metric again. Every case gives the change of the
report and the beginning of a figure that must disagree, as ``rows | model | figure``.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Attack:
    name: str
    description: str
    change: Any
    figure: str
    code: int = 1


def _metric(report, name):
    return next(m for m in report["performance"] if m["name"] == name)


def _better(report):
    metric = _metric(report, "log_loss")
    metric["final"] *= 0.9
    for side in ("low", "high"):
        metric["intervals"]["values"]["final"][side] *= 0.9


def _accuracy_of_one_row(report):
    _metric(report, "accuracy")["final"] += 1 / 48


def _interval(report):
    ends = _metric(report, "brier_score")["intervals"]["values"]["final"]
    middle = (ends["low"] + ends["high"]) / 2
    ends["low"], ends["high"] = (ends["low"] + middle) / 2, (ends["high"] + middle) / 2


def _worse_original(report):
    _metric(report, "auroc")["original"] -= 0.02


def _int8(report):
    next(m for m in report["quantized"]["metrics"] if m["name"] == "log_loss")["int8"] -= 0.03


def _same_decisions(report):
    report["quantized"]["same_decisions"] -= 2 / 48


def _segment(report):
    segment = report["segments"]["attributes"][0]["segments"][0]
    metric = next(m for m in segment["metrics"] if m["name"] == "accuracy")
    metric["final"] = 1.0 if metric["final"] < 1 else 0.9


def _flipped(report):
    report["segments"]["decisions"]["flipped"] -= 1


def _adverse(report):
    report["segments"]["decisions"]["adverse_final"] -= 2


def _moved_rows(report):
    first, second = report["segments"]["attributes"][0]["segments"][:2]
    first["rows"], second["rows"] = first["rows"] + 1, second["rows"] - 1


def _hidden_segment(report):
    report["segments"]["attributes"][1]["segments"].pop()


def _swapped_classes(report):
    report["data"]["classes"].reverse()


ATTACKS = [
    Attack(
        "better_metric",
        "a metric of the shipped model is better than measured",
        _better,
        "all rows | final | log_loss",
    ),
    Attack("one_row", "accuracy counts one row more", _accuracy_of_one_row, "all rows | final | accuracy"),
    Attack("narrow_interval", "an interval is half as wide", _interval, "all rows | final | brier_score"),
    Attack(
        "worse_original", "the original is said to be worse", _worse_original, "all rows | original | auroc"
    ),
    Attack(
        "better_int8",
        "a metric of the 8-bit file is better than measured",
        _int8,
        "all rows | int8 | log_loss",
    ),
    Attack(
        "int8_decisions",
        "the share of equal decisions is changed",
        _same_decisions,
        "all rows | int8 and final",
    ),
    Attack("segment_metric", "a metric of a segment is changed", _segment, "h = "),
    Attack("flipped", "a flipped decision is left out", _flipped, "all rows | final and original | flipped"),
    Attack("adverse", "fewer adverse decisions are stated", _adverse, "all rows | final | adverse final"),
    Attack("moved_rows", "a row is moved from one segment to another", _moved_rows, "h = "),
    Attack("hidden_segment", "a segment is left out", _hidden_segment, "kind = other values | final | rows"),
    Attack(
        "swapped_classes", "the order of the classes is turned", _swapped_classes, "all rows | final | auroc"
    ),
]
