"""Attacks on how the network was chosen: rules in words, compared sets of features, segments, group sizes."""

from tests.unit.audit.attack import Attack
from tests.unit.audit.attacks_columns import report

COMPARED = ("selection", "comparison")
CANDIDATES = (*COMPARED, "candidates")
ATTRIBUTE = ("segments", "attributes", 0)


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
    "the size of a feature's group": ("slim", put("features", 0, "group_size", to=lambda n: n + 1)),
    "the size of a removed feature's group": ("mixed", put("features", 7, "group_size", to=1)),
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
}
_UNITS = ("the size of a feature's group", "the size of a removed feature's group")
ATTACKS = [
    Attack(name, base, change, "C8" if name in _UNITS else "C5") for name, (base, change) in CASES.items()
]
