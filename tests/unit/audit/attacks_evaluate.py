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


def _target_shares(report):
    shares = report["data"]["splits"]["test"]["target"]
    first, second = shares
    shares[first], shares[second] = shares[first] + 0.01, shares[second] - 0.01


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


def _wide_change(report):
    _metric(report, "log_loss")["intervals"]["differences"]["final"].update(low=-0.5, high=0.5)


def _wide_int8_change(report):
    metric = next(m for m in report["quantized"]["metrics"] if m["name"] == "auroc")
    metric["intervals"]["differences"]["int8"].update(low=-0.2, high=0.2)


def _wide_segment_change(report):
    for segment in report["segments"]["attributes"][0]["segments"]:
        for metric in segment["metrics"]:
            if metric["intervals"] is not None:
                metric["intervals"]["differences"]["final"].update(low=-1.0, high=1.0)


def _no_auroc_of_a_segment(report):
    segment = report["segments"]["attributes"][1]["segments"][0]
    segment["metrics"] = [m for m in segment["metrics"] if m["name"] != "auroc"]


def _calibrated(report):
    metric = _metric(report, "calibration_error")
    metric["final"] *= 0.8
    metric["intervals"]["values"]["final"]["low"] = 0.0


def _wide(name, low, high):
    def change(report):
        _metric(report, name)["intervals"]["values"]["final"].update(low=low, high=high)

    return change


def _worse_and_wide(report):
    metric = _metric(report, "auroc")
    metric["final"] = 1.0
    metric["intervals"]["values"]["final"].update(low=0.0, high=1.0)


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
    Attack(
        "wide_change",
        "the interval of a change is made so wide that it holds 0",
        _wide_change,
        "all rows | final and original | change of log_loss",
    ),
    Attack(
        "wide_int8_change",
        "the interval of the 8-bit file's change is made wide",
        _wide_int8_change,
        "all rows | int8 and final | change of auroc",
    ),
    Attack(
        "wide_segment_changes",
        "the intervals of all changes in segments are made wide",
        _wide_segment_change,
        "h = ",
    ),
    Attack("no_auroc", "a metric of a segment is left out", _no_auroc_of_a_segment, "kind = "),
    Attack(
        "target", "other shares of the classes are stated", _target_shares, "all rows | target | share of"
    ),
    Attack(
        "calibrated",
        "a calibration error is better than measured",
        _calibrated,
        "all rows | final | calibration_error",
    ),
]
ON_OWN_ROWS = [
    Attack(
        "wide_auroc",
        "an interval of AUROC is so wide that any own rows would agree",
        _worse_and_wide,
        "all rows | final | auroc",
    ),
    Attack(
        "wide_log_loss",
        "an interval of log loss is so wide that any own rows would agree",
        _wide("log_loss", 0.0, 9.0),
        "all rows | final | log_loss",
    ),
    Attack(
        "wide_brier_score",
        "an interval of the Brier score is so wide that any own rows would agree",
        _wide("brier_score", 0.0, 0.9),
        "all rows | final | brier_score",
    ),
    Attack(
        "wide_calibration",
        "an interval of the calibration error is so wide that any own rows would agree",
        _wide("calibration_error", 0.0, 1.0),
        "all rows | final | calibration_error",
    ),
]
