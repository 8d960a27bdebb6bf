"""Attacks on how the network was chosen, on segments, and on what is said of the original network."""

import numpy as np
from onnx import numpy_helper

from glprune.schema import bundle as bundles
from tests.unit.audit.attack import Attack
from tests.unit.audit.attacks_columns import report

COMPARED = ("selection", "comparison")
CANDIDATES = (*COMPARED, "candidates")
ATTRIBUTE = ("segments", "attributes", 0)
SEGMENT = (*ATTRIBUTE, "segments", 0)


def put(*path, to):
    """Change one value of the report; ``to`` is the value or a function of the old one."""

    def change(record):
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = to(record[path[-1]]) if callable(to) else to

    return report(change)


def another_choice(record):
    """Mark a set as chosen that is hardly better than that of the path."""
    candidates = record["selection"]["comparison"]["candidates"]
    best = next(c for c in candidates if c["chosen"])
    figures = best["cross_validation"] or best["valid"]
    figures["gain_standard_error"] = figures["gain"]


def without_folds(record):
    for candidate in record["selection"]["comparison"]["candidates"]:
        candidate["cross_validation"] = None


def ranges_renamed(record):
    attribute = record["segments"]["attributes"][0]
    names = [segment["value"] for segment in attribute["segments"]]
    for segment, name in zip(attribute["segments"], reversed(names), strict=True):
        segment["value"] = name


def with_metric(record):
    metrics = record["segments"]["attributes"][0]["segments"][0]["metrics"]
    metrics.append(metrics[0] | {"name": "equal_opportunity_difference"})


def twice(record):
    metrics = record["segments"]["attributes"][0]["segments"][0]["metrics"]
    metrics.insert(0, metrics[0] | {"final": 0.99, "difference": 0.99 - metrics[0]["original"]})


def noisy_original(copy):
    """Make the original network worse than it was, so that the loss looks smaller."""
    model = copy.model(bundles.ORIGINAL)
    for tensor in model.graph.initializer:
        if tensor.name == "network.0.weight":
            weights = numpy_helper.to_array(tensor) + np.float32(0.1)
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    copy.put(model, bundles.ORIGINAL)


CASES = {
    "a rule that the recipe does not give": ("slim", put("selection", "rule", to="the best of 500 networks")),
    "a stage chosen by a rule that the recipe does not give": (
        "slim",
        put("stages", 0, "rule", to="approved by the committee"),
    ),
    "a stage with the limit of another target": (
        "slim",
        put("stages", 0, "rule", to=lambda rule: rule.replace("3", "2")),
    ),
    "a refit said to follow the original network": ("slim", put("refit", "distill", to=0.5)),
    "the lead of the chosen set": ("mixed", put(*COMPARED, "lead", to=lambda x: x + 0.1)),
    "the lead of the chosen set left out": ("mixed", put(*COMPARED, "lead", to=None)),
    "the standard error of the lead below zero": (
        "mixed",
        put(*COMPARED, "lead_standard_error", to=lambda x: -x),
    ),
    "another rule of the comparison": ("mixed", put(*COMPARED, "rule", to="the best one")),
    "a set found in a way that there is not": (
        "mixed",
        put(*CANDIDATES, 1, "found_by", to="exhaustive search"),
    ),
    "a set chosen without a clear gain": ("mixed", report(another_choice)),
    "cross-validated figures left out": ("mixed", report(without_folds)),
    "what divided the rows into segments": ("ruled", put(*ATTRIBUTE, "by", to="random halves")),
    "edges of segments said to be of the recipe": ("ruled", put(*ATTRIBUTE, "by", to="edges of the recipe")),
    "an edge of a range moved": ("ruled", put(*ATTRIBUTE, "edges", 0, to=lambda x: x - 1)),
    "names of ranges in another order": ("ruled", report(ranges_renamed)),
    "a segment left out": ("ruled", put(*ATTRIBUTE, "segments", to=lambda found: found[1:])),
    "a metric of a segment left out": ("ruled", put(*SEGMENT, "metrics", to=lambda found: found[1:])),
    "all metrics of a segment left out": ("ruled", put(*SEGMENT, "metrics", to=[])),
    "a metric of a segment stated twice": ("ruled", report(twice)),
    "a metric of a segment that the task does not have": ("ruled", report(with_metric)),
    "changed decisions of a segment left out": ("ruled", put(*SEGMENT, "decisions", to=None)),
    "changed decisions of all rows left out": ("ruled", put("segments", "decisions", to=None)),
    "directions of changed decisions left out": (
        "ruled",
        put(*SEGMENT, "decisions", "to_adverse", to=None),
    ),
    "agreement of the 8-bit file's decisions left out": ("kept", put("quantized", "same_decisions", to=None)),
    "an audit among the versions": (
        "slim",
        put("run", "versions", to=lambda found: found | {"audited": "yes"}),
    ),
}
OTHERS = [
    Attack(
        "the size of a feature's group", "slim", put("features", 0, "group_size", to=lambda n: n + 1), "C8"
    ),
    Attack("the size of a removed feature's group", "mixed", put("features", 7, "group_size", to=1), "C8"),
    Attack("a group norm of the original network", "kept", put("features", 0, "norm_original", to=9.0), "C8"),
    Attack("an original network with noise on its weights", "kept", noisy_original, "C8"),
    Attack("multiply-accumulates of the original", "kept", put("size", "macs_before", to=10**6), "C9"),
    Attack("a processor that there is not", "kept", put("quantized", "instruction_sets", to=["all"]), "C4"),
]
ATTACKS = [Attack(name, base, change, "C5") for name, (base, change) in CASES.items()] + OTHERS
