"""Attacks on the list of columns, on what follows from recipe and figures, and on counts."""

import json
from functools import partial

import numpy as np
import onnx
from ruamel.yaml import YAML
from safetensors.numpy import load, save

from glprune.audit.safetensors_reader import read_tensors
from glprune.schema import bundle as bundles
from glprune.schema.column_table import columns_digest
from tests.unit.audit.attack import Attack


def everywhere(*changes):
    return lambda copy: [change(copy) for change in changes]


def report(change):
    return lambda copy: copy.edit(change)


def plan(change):
    return lambda copy: copy.edit(change, bundles.PLAN)


def schema(change):
    return lambda copy: copy.edit(change, bundles.INPUT_SCHEMA)


def recipe(change):
    def edit(copy):
        path, yaml = copy / bundles.RECIPE, YAML()
        tree = yaml.load(path.read_text())
        change(tree)
        with path.open("w") as stream:
            yaml.dump(tree, stream)

    return edit


def metadata(change):
    """Change the records of the inputs in the file's metadata."""

    def edit(copy):
        model = copy.model()
        entry = next(p for p in model.metadata_props if p.key == "glprune.inputs")
        records = json.loads(entry.value)
        change(records)
        entry.value = json.dumps(records, ensure_ascii=False, separators=(",", ":"))
        copy.put(model)

    return edit


def header(change):
    """Change the list of columns, with its digest."""

    def edit(r):
        change(r["data"]["columns"])
        r["digests"]["columns"] = columns_digest(r["data"]["columns"])

    return report(edit)


def feature(r, status, number=0):
    return [f for f in r["features"] if f["status"] == status][number]


def set_at(record, *path, value):
    for key in path[:-1]:
        record = record[key]
    record[path[-1]] = value


# ------------------------------------------------------------------------- the axis of an input


def without_axis(copy):
    """Call the input of the features one without features, in every file but the recipe."""
    copy.edit(lambda r: set_at(r, "export", "inputs", 0, "axis", value=None))
    copy.edit(lambda p: p["inputs"][0].update(axis=None), bundles.PLAN)
    copy.edit(lambda s: s["inputs"][0].update(axis=None), bundles.INPUT_SCHEMA)
    metadata(lambda records: records[0].update(axis=None))(copy)


def without_axis_in_the_recipe_too(copy):
    without_axis(copy)
    recipe(lambda t: t["model"]["inputs"][0].update(axis=None))(copy)


def other_axis(copy):
    copy.edit(lambda r: set_at(r, "export", "inputs", 0, "axis", value=1))
    copy.edit(lambda p: p["inputs"][0].update(axis=1), bundles.PLAN)
    metadata(lambda records: records[0].update(axis=1))(copy)


# ------------------------------------------------------------------------- owners of columns


def renamed_column(r, name, other):
    """Leave the column of a removed feature to no feature."""
    found = next(f for f in r["features"] if f["name"] == name)
    found["columns"] = [other]


def left_to_no_feature(copy):
    """Say that a kept column's feature is removed and has another column."""

    def change(r):
        found = next(f for f in r["features"] if f["name"] == "c")
        found.update(
            columns=["c_1"], status="removed", norm_final=None, input_columns=None, norm_selected=0.0
        )

    copy.edit(change)


def given_to_another(copy):
    """Let a kept feature list a column of a removed one."""

    def change(r):
        feature(r, "kept")["columns"].append(feature(r, "removed")["columns"][0])
        feature(r, "removed")["columns"][0] += "_1"

    copy.edit(change)


def two_owners(r):
    feature(r, "kept")["columns"].append(feature(r, "removed")["columns"][0])


def swapped_features(r):
    r["features"][1], r["features"][2] = r["features"][2], r["features"][1]


def swapped_names(r):
    """Exchange the names of a kept and a removed feature, with their columns."""
    one, other = feature(r, "kept", 1), feature(r, "removed")
    for key in ("name", "columns"):
        one[key], other[key] = other[key], one[key]


def swapped_header(columns):
    (names,) = columns.values()
    names[-1], names[-2] = names[-2], names[-1]


def swapped_kept_header(columns):
    (names,) = columns.values()
    names[0], names[1] = names[1], names[0]


def twice(columns):
    (names,) = columns.values()
    names[-1] = names[0]


def longer(columns):
    (names,) = columns.values()
    names.append("sex")


def shorter(columns):
    (names,) = columns.values()
    names.pop()


def lookalike(r, old="h", new="\u04bb"):
    """Give a removed feature a Cyrillic letter for a Latin one."""
    found = next(f for f in r["features"] if f["name"] == old)
    found.update(name=new, columns=[new])


def other_digest(r):
    r["digests"]["columns"] = "sha256:" + 64 * "0"


def extra_input(copy):
    """An input of the file that report, plan and metadata list, and the recipe does not."""
    model = copy.model()
    extra = onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 1])
    model.graph.input.append(extra)
    out = model.graph.output[0].name
    for node in model.graph.node:
        for n, name in enumerate(node.output):
            if name == out:
                node.output[n] = "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "more"], [out], "add_more"))
    copy.put(model)
    given = {"name": "more", "dtype": "float32", "axis": None, "columns": ["sex"]}
    copy.edit(lambda r: r["export"]["inputs"].append(dict(given)))
    copy.edit(lambda r: r["data"]["columns"].update(more=["sex"]))
    copy.edit(lambda r: set_at(r, "digests", "columns", value=columns_digest(r["data"]["columns"])))
    whole = given | {"size": 1, "kept": [0], "constants": None, "readers": []}
    copy.edit(lambda p: p["inputs"].append(whole), bundles.PLAN)
    metadata(lambda records: records.append(dict(given)))(copy)


# ------------------------------------------------------------------------- recipe and policy


def must_drop_more(tree):
    tree["policy"]["must_drop"].append("d")


def rule(key, value):
    return lambda tree: tree["policy"].update({key: value})


def of_policy(key, value):
    return lambda r: r["policy"].update({key: value})


def without_policy(copy):
    def change(r):
        for key in ("policy", "segments", "reason_codes", "proxies"):
            r[key] = None
        for f in r["features"]:
            f["reason"] = "penalty" if f["status"] == "removed" else None
        r["digests"]["outputs"].pop(bundles.PROXIES, None)

    copy.edit(change)
    (copy / bundles.PROXIES).unlink(missing_ok=True)


def without_attribute(r):
    r["segments"]["attributes"].pop()


def without_measure(n):
    return lambda r: r["not_measured"].pop(n)


def measured_more(r):
    r["not_measured"].append("The weather.")


def without_warning(begin):
    return lambda r: r.update(warnings=[w for w in r["warnings"] if not w.startswith(begin)])


def softened(r):
    r["warnings"] = [w.replace("have not converged", "have almost converged") for w in r["warnings"]]


# ------------------------------------------------------------------------- weights and counts


def tensors_of(change):
    def edit(copy):
        path = copy / bundles.WEIGHTS
        arrays = dict(load(path.read_bytes()))
        change(arrays)
        path.write_bytes(save(arrays, metadata={"format": "pt"}))

    return edit


def statistic(copy):
    """Call a weight a statistic of BatchNorm, which is not counted."""
    arrays = read_tensors((copy / bundles.WEIGHTS).read_bytes()).arrays
    name = next(n for n, x in arrays.items() if x.ndim == 2 and n.endswith("weight"))
    other = name.removesuffix("weight") + "running_mean"
    tensors_of(lambda a: a.update({other: a.pop(name)}))(copy)
    copy.edit(
        lambda r: set_at(
            r, "size", "parameters_after", value=r["size"]["parameters_after"] - arrays[name].size
        )
    )

    def rename(p):
        text = json.dumps(p).replace(json.dumps(name), json.dumps(other))
        p.clear()
        p.update(json.loads(text))

    copy.edit(rename, bundles.PLAN)


def bias_as_statistic(copy):
    arrays = read_tensors((copy / bundles.WEIGHTS).read_bytes()).arrays
    name = next(n for n, x in arrays.items() if n.endswith("bias") and x.size > 1)
    other = name.removesuffix("bias") + "running_var"
    tensors_of(lambda a: a.update({other: a.pop(name)}))(copy)
    copy.edit(
        lambda r: set_at(
            r, "size", "parameters_after", value=r["size"]["parameters_after"] - arrays[name].size
        )
    )


def inflated_axis(copy):
    """Say that a tensor was larger, and count its parameters."""
    found = next(a for a in copy.json(bundles.PLAN)["axes"])
    copy.edit(
        lambda p: next(a for a in p["axes"] if a == found).update(size=found["size"] + 100), bundles.PLAN
    )
    copy.edit(lambda r: set_at(r, "size", "parameters_before", value=r["size"]["parameters_before"] + 1000))


def inflated_hidden(copy):
    """Say that a layer had more units, and that more were cut."""

    def change(r):
        layer = r["hidden"][0]
        layer["before"] += 40
        cut = next(c for c in r["removal"]["cuts"] if c["name"] == layer["name"])
        cut["units"] += 40

    copy.edit(change)


def inflated_units(copy):
    inflated_hidden(copy)
    name = copy.json()["hidden"][0]["name"]

    def change(p):
        next(u for u in p["units"] if u["name"] == name)["before"] += 40

    copy.edit(change, bundles.PLAN)


def ghost_layer(copy):
    """A layer of nine units, all kept, in a tensor that does not exist."""
    every = list(range(9))
    places = [{"tensor": "ghost.weight", "dim": 0, "units": every}]
    units = {"name": "ghost", "kind": "hidden", "before": 9, "kept": every, "places": places}
    copy.edit(lambda p: p["units"].append(units), bundles.PLAN)
    copy.edit(lambda r: r["hidden"].append(r["hidden"][0] | {"name": "ghost", "before": 9, "after": 9}))


def without_units(copy):
    copy.edit(lambda p: p.update(units=[]), bundles.PLAN)


def kept_more(copy):
    """Say that a layer keeps fewer units than it does."""

    def change(r):
        layer = next(h for h in r["hidden"] if h["before"] > h["after"] > 1)
        layer["after"] -= 1
        next(c for c in r["removal"]["cuts"] if c["name"] == layer["name"])["units"] += 1

    copy.edit(change)


def no_readers(copy):
    copy.edit(lambda p: p["inputs"][0].update(readers=[]), bundles.PLAN)
    copy.edit(lambda r: [f.update(norm_final=9.0) for f in r["features"] if f["status"] == "kept"])


def other_readers(copy):
    """Make a kept column look unimportant: smaller weights in the weights file alone, and its norm with them."""
    p = copy.json(bundles.PLAN)
    reader = p["inputs"][0]["readers"][0]
    column = p["inputs"][0]["kept"][-1]

    def scale(arrays):
        at = [slice(None)] * arrays[reader["tensor"]].ndim
        at[reader["dim"]] = reader["columns"].index(column)
        arrays[reader["tensor"]] = arrays[reader["tensor"]].copy()
        arrays[reader["tensor"]][tuple(at)] /= 1024

    tensors_of(scale)(copy)
    copy.edit(lambda p: p.update(in_model=[n for n in p["in_model"] if n != reader["tensor"]]), bundles.PLAN)
    name = p["inputs"][0]["columns"][-1]
    copy.edit(
        lambda r: [
            f.update(norm_final=f["norm_final"] / 1024) for f in r["features"] if f["columns"] == [name]
        ]
    )


# ------------------------------------------------------------------------- what the recipe asks for


def by_the_penalty(copy):
    """Say that the penalty removed what the policy did, with figures of the path that fit."""

    def change(r):
        for f in r["features"]:
            if (f["reason"] or "").startswith(("must_drop", "derived_from")):
                first = r["path"][0]
                f.update(reason="penalty", stage_exit=first["stage"], lambda_exit=first["lam"])

    copy.edit(change)


def counted_in_pytorch(r):
    r["size"].update(macs_of="pytorch", macs_after=1)


def fake_refusal(r):
    r["removal"]["refused"].append({"name": "zz", "units": 0, "reason": "Softmax"})


def other_meaning(copy):
    """Name the other class as that of the output, in every file."""
    old = copy.json()["export"]["outputs"][0]["meaning"]
    new = old.replace("'yes'", "'no'")
    assert new != old
    copy.edit(lambda r: r["export"]["outputs"][0].update(meaning=new))
    copy.edit(lambda s: s["outputs"][0].update(meaning=new), bundles.INPUT_SCHEMA)
    model = copy.model()
    next(p for p in model.metadata_props if p.key == "glprune.output").value = new
    copy.put(model)


def nan_golden(copy):
    path = copy / bundles.GOLDEN
    arrays = {name: np.full_like(x, np.nan) for name, x in load(path.read_bytes()).items()}
    for name, x in arrays.items():
        if name.startswith("input."):
            x.view(np.uint32)[0] += 1  # rows that differ
    path.write_bytes(save(arrays))


ASKED = {
    "features that the rules removed, with an exit from the path": ("ruled", by_the_penalty, "C5"),
    "a removed feature without a reason": ("slim", report(lambda r: feature(r, "removed").update(reason=None)), "C5"),
    "a reason in free words": (
        "slim", report(lambda r: feature(r, "removed").update(reason="the regulator approved")), "C5",
    ),
    "multiply-accumulates said to be counted in PyTorch": ("slim", report(counted_in_pytorch), "C9"),
    "a protected attribute that was never an input, said to be removed": (
        "ruled", report(lambda r: r["segments"]["attributes"][1].update(status="removed")), "C5",
    ),
    "a layer that is not there, said to be refused": ("slim", report(fake_refusal), "C5"),
    "stability that the recipe asks for": (
        "slim", recipe(lambda t: t.update(stability={"n_resamples": 50})), "C5",
    ),
    "baselines that the recipe asks for": (
        "slim", recipe(lambda t: t.setdefault("report", {}).update(baselines=True)), "C5",
    ),
    "costs of dropping features that the recipe asks for": (
        "slim", recipe(lambda t: t.update(stability={"n_resamples": 0, "drop_cost": True})), "C5",
    ),
    "the refit left out": ("slim", report(lambda r: r.update(refit=None)), "C5"),
    "more epochs of the refit": ("slim", report(lambda r: r["refit"].update(epochs=900)), "C5"),
    "another metric of the selection": ("slim", report(lambda r: r["selection"].update(metric="accuracy")), "C5"),
    "a share of single weights in a plain group LASSO": (
        "slim", report(lambda r: r["penalty"].update(l1_ratio=0.5)), "C5",
    ),
    "no digests of the data": ("slim", report(lambda r: r["digests"].update(data={})), "C5"),
    "another source of the data": ("slim", report(lambda r: r["data"].update(source="census.csv")), "C5"),
    "no rows compared": ("slim", report(lambda r: r["removal"].update(rows=0)), "C5"),
    "no latency": ("slim", report(lambda r: r.update(latency=[])), "C5"),
    "another exporter": ("slim", report(lambda r: r["export"].update(exporter="by hand")), "C5"),
    "agreement of an output that there is not": (
        "slim",
        report(lambda r: r["agreement"].append({"name": "x", "r2": 0.9, "max_change": 0.0, "trained_for": True})),
        "C5",
    ),
    "the meaning of the output: the other class": ("slim", other_meaning, "C5"),
    "golden rows of NaN": ("slim", nan_golden, "C9"),
}  # fmt: skip
COLUMNS = {
    "an input said to have no features": ("slim", without_axis, "C7"),
    "an input said to have no features, which keeps its width": ("wide", without_axis, "C7"),
    "an input said to have no features in the recipe too": ("slim", without_axis_in_the_recipe_too, "C4"),
    "another axis of the columns": ("slim", other_axis, "C7"),
    "a kept column that no feature lists": ("slim", left_to_no_feature, "C7"),
    "a removed column under another name": (
        "slim",
        report(partial(renamed_column, name="d", other="d_1")),
        "C7",
    ),
    "a removed column given to a kept feature": ("slim", given_to_another, "C7"),
    "a column with two owners": ("slim", report(two_owners), "C7"),
    "features in another order": ("slim", report(swapped_features), "C7"),
    "names of a kept and a removed feature exchanged": ("slim", report(swapped_names), "C7"),
    "names exchanged in the full-width file": ("wide", report(swapped_names), "C7"),
    "removed columns in another order": ("slim", header(swapped_header), "C7"),
    "kept columns in another order": ("slim", header(swapped_kept_header), "C7"),
    "a column named twice": ("slim", header(twice), "C7"),
    "a column more": ("slim", header(longer), "C7"),
    "a column less": ("slim", header(shorter), "C7"),
    "a Cyrillic letter in a removed feature": ("slim", report(lookalike), "C7"),
    "a Latin name in another case": ("slim", report(partial(lookalike, new="H")), "C7"),
    "an invisible character in a removed feature": ("slim", report(partial(lookalike, new="h\u200b")), "C7"),
    "a mark of direction in a removed feature": ("slim", report(partial(lookalike, new="\u202eh")), "C7"),
    "another digest of the columns": ("slim", report(other_digest), "C7"),
    "an input that the recipe does not know": ("slim", extra_input, "C5"),
    "columns the recipe excludes": ("slim", recipe(lambda t: t["data"].update(exclude=["y", "a"])), "C7"),
    "a column that is the recipe's target": ("slim", recipe(lambda t: t["data"].update(target="a")), "C7"),
    "columns that the recipe does not list": (
        "slim",
        recipe(lambda t: t["data"].update(features=["a", "b", "c"])),
        "C7",
    ),
    "columns the recipe lists in another order": (
        "slim",
        recipe(lambda t: t["data"].update(features=list("bacdefgh"))),
        "C7",
    ),
    "a group of columns that the recipe has not": (
        "slim",
        recipe(lambda t: t["data"].pop("feature_groups")),
        "C7",
    ),
    "a group of columns under another name": (
        "slim",
        recipe(lambda t: t["data"].update(feature_groups={"couple": ["a", "b"]})),
        "C7",
    ),
    "columns of the export in another order": (
        "slim",
        report(lambda r: r["export"]["inputs"][0]["columns"].reverse()),
        "C7",
    ),
    "kept positions moved in the plan": (
        "slim",
        plan(lambda p: p["inputs"][0].update(kept=[0, 1, 2, 7])),
        "C7",
    ),
    "the size of an input in the plan": ("slim", plan(lambda p: p["inputs"][0].update(size=99)), "C7"),
    "the type of an input": (
        "mixed",
        recipe(lambda t: t["model"]["inputs"][1].update(dtype="float")),
        "C7",
    ),
    "columns of a loader under other names": (
        "recurrent",
        header(lambda c: c["x"].__setitem__(0, "age")),
        "C7",
    ),
}
DERIVED = {
    "a longer must_drop in the recipe": ("ruled", recipe(must_drop_more), "C5"),
    "a shorter must_drop in the report": ("ruled", report(of_policy("must_drop", [])), "C5"),
    "another lineage in the report": ("ruled", report(of_policy("derived_from", {})), "C5"),
    "no protected attributes in the report": ("ruled", report(of_policy("protected", [])), "C5"),
    "must_keep of the recipe alone": ("ruled", recipe(rule("must_keep", ["d", "pair"])), "C5"),
    "a policy that the report leaves out": ("ruled", without_policy, "C5"),
    "a policy that the recipe has not": ("ruled", recipe(lambda t: t.pop("policy")), "C5"),
    "segments of an attribute left out": ("ruled", report(without_attribute), "C5"),
    "another size of small segments": ("ruled", recipe(rule("min_segment_rows", 50)), "C5"),
    "other adverse classes": ("ruled", recipe(rule("adverse", ["yes"])), "C5"),
    "another threshold of decisions": ("ruled", recipe(rule("threshold", 0.7)), "C5"),
    "a proxy analysis that the recipe does not ask for": ("ruled", recipe(rule("proxies", False)), "C5"),
    "a reason code left out of the recipe": ("ruled", recipe(rule("reason_codes", {"h": "Too much of h"})), "C5"),
    "the first thing that was not measured left out": ("slim", report(without_measure(0)), "C5"),
    "the last thing that was not measured left out": ("slim", report(without_measure(-1)), "C5"),
    "proxies said to be measured": (
        "slim", report(lambda r: r.update(not_measured=[s for s in r["not_measured"] if "proxies" not in s])), "C5",
    ),
    "an invented entry in the list of what was not measured": ("slim", report(measured_more), "C5"),
    "a warning in softer words": ("slim", report(softened), "C5"),
    "a warning of kept groups left out": ("slim", report(without_warning("The kept groups")), "C5"),
}  # fmt: skip
COUNTS = {
    "a weight called a statistic": ("slim", statistic, "C8"),
    "a bias called a statistic": ("slim", bias_as_statistic, "C8"),
    "a tensor said to have been larger": ("slim", inflated_axis, "C8"),
    "a layer said to have been wider": ("slim", inflated_hidden, "C8"),
    "a layer said to have been wider, in the plan too": ("slim", inflated_units, "C8"),
    "a layer that does not exist": ("slim", ghost_layer, "C8"),
    "a layer said to keep a unit less": ("slim", kept_more, "C8"),
    "fewer multiply-accumulates than the file computes": (
        "slim",
        report(lambda r: set_at(r, "size", "macs_after", value=r["size"]["macs_after"] - 10)),
        "C9",
    ),
    "no units in the plan": ("slim", without_units, "C8"),
    "weights of a column that are not those of the model": ("slim", other_readers, "C8"),
    "no readers of the columns, so that norms are free": ("slim", no_readers, "C8"),
}
ATTACKS = [
    Attack(name, base, change, check)
    for table in (COLUMNS, DERIVED, COUNTS, ASKED)
    for name, (base, change, check) in table.items()
]
