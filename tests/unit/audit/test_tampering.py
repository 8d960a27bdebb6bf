"""Every way to tamper with a bundle that we know: caught without a new signature, and with the producer's own.

Each case changes a copy of one clean bundle. Once it is left as it is: the signature and the hashes must
catch it. Once the producer makes report, page, manifest and signature anew around it: then only
recomputation can catch it, by the check named in the table. What it cannot catch is in ``CEILING``.
"""

import base64
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from glprune.audit import signing
from glprune.audit.checks import rendering
from glprune.audit.checks.execution import measure
from glprune.audit.parsed_bundle import read_report
from glprune.audit.verify import VerificationOptions, verify
from glprune.schema import bundle as bundles
from glprune.schema.manifest import make_manifest
from tests.bundle_fixtures import copied, follow, resign, seal

INPUT, LINEAR = "features", "index_select"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """The producer's key, a stranger's, and the public half of the first."""
    folder = tmp_path_factory.mktemp("keys")
    publics = {name: signing.make_key(folder / name) for name in ("producer", "stranger")}
    return {name: signing.read_private_key(folder / name) for name in publics} | {
        "trust": [signing.read_public_key(publics["producer"])]
    }


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """As on an auditor's machine: drawing them for each case would take most of the time."""
    monkeypatch.setattr(rendering, "_cannot_draw", lambda report: None)
    monkeypatch.setattr(rendering, "_drawn_alike", lambda report, page: True)


def failed(verdict):
    return {c.id for c in verdict.checks if c.status == "failed"}


def told(verdict):
    return "\n".join(f"{c.id} {c.status} {c.note} {[str(f) for f in c.findings]}" for c in verdict.checks)


# --------------------------------------------------------------------------- changes of the report


def report(change):
    return lambda copy: copy.edit(change)


def feature(record, status):
    return next(f for f in record["features"] if f["status"] == status)


def flip_to_kept(r):
    feature(r, "removed").update(status="kept", norm_final=1.0, input_columns=[0])


def flip_to_removed(r):
    feature(r, "kept").update(status="removed", norm_final=None, input_columns=None, norm_selected=0.0)


def final_metric(r, value, low, high):
    """State another value with an interval that holds it, and its change as uncertain as that."""
    metric = r["performance"][0]
    metric["final"] = value
    metric["intervals"]["values"]["final"] = {"low": low, "high": high}
    first = metric["original"]
    metric["intervals"]["differences"]["final"] = {"low": low - first, "high": high - first}


def better_metric(r):
    final_metric(r, 0.9999, 0.9998, 1.0)


def worse_unsaid(r):
    final_metric(r, 0.51, 0.4, 0.62)
    r["warnings"] = [w for w in r["warnings"] if "worse" not in w]


def interval(metric, table, network, **ends):
    def change(r):
        r["performance"][metric]["intervals"][table][network].update(ends)

    return change


def in_interval(metric, key, value):
    return in_feature("performance", metric, "intervals", key, by=lambda _: value)


def certain_accuracy(r):
    metric = r["performance"][1]
    assert metric["name"] == "accuracy"
    metric["original"] = 0.75
    metric["intervals"]["values"]["original"] = {"low": 0.749, "high": 0.751}
    for network, found in metric["intervals"]["differences"].items():
        change = metric[network] - 0.75
        found.update(low=change - 0.2, high=change + 0.2)


def another_network(r):
    values = r["performance"][0]["intervals"]["values"]
    values["other"] = values["original"]


def none(_):
    return None


def unsettled_unsaid(r):
    selected = next(p for p in r["path"] if p["selected"])
    selected["kkt_active"] = 3.8
    r["warnings"] = [w for w in r["warnings"] if "not converged" not in w]


def other_choice(r):
    selected = next(p for p in r["path"] if p["selected"])
    other = selected | {"lam": 1.1 * selected["lam"], "features": selected["features"] + 1}
    r["path"].insert(r["path"].index(selected) + 1, other)
    selected["selected"] = False


def earlier_exit(r):
    feature(r, "removed")["lambda_exit"] *= 0.5


def in_feature(*path, by=lambda x: x + 1):
    def change(record):
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = by(record[path[-1]])

    return change


def renamed(r):
    feature(r, "kept")["name"] = "income"
    feature(r, "removed")["columns"] = ["income_2"]


def renamed_everywhere_but_the_model(copy):
    for name in (bundles.REPORT, bundles.PLAN, bundles.INPUT_SCHEMA):
        text = (copy / name).read_text().replace('"c"', '"zz"')
        (copy / name).write_text(text)


def raw(name, change):
    return lambda copy: (copy / name).write_bytes(change((copy / name).read_bytes()))


# --------------------------------------------------------------------------- changes of the model


def graph(change):
    def edit(copy):
        model = copy.model()
        change(model, copy)
        copy.put(model)

    return edit


def constant(model, name, array):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def first_linear(model):
    return next(n for n in model.graph.node if n.op_type == "Gemm")


def leak(model, nodes, value):
    """Add ``value`` (rows, 1) to the prediction, made by nodes that come first."""
    last = model.graph.node[-1]
    last.output[0] = "honest"
    nodes.append(helper.make_node("Add", ["honest", value], ["prediction"], "leak"))
    old = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:-1], *old, nodes[-1]])


def column(model, copy, name="spied"):
    """A Gather of one removed column."""
    index = constant(model, f"{name}_index", np.array([copy.removed()[0]]))
    return helper.make_node("Gather", [INPUT, index], [name], name, axis=1)


def second_gather(model, copy):
    scale = constant(model, "scale", np.float32(1e-3))
    leak(model, [column(model, copy), helper.make_node("Mul", ["spied", scale], ["small"], "small")], "small")


def trigger(model, copy):
    limit, zero = constant(model, "limit", np.float32(1e6)), constant(model, "zero", np.float32(0))
    nodes = [
        column(model, copy),
        helper.make_node("Greater", ["spied", limit], ["hit"], "hit"),
        helper.make_node("Where", ["hit", "spied", zero], ["bomb"], "bomb"),
    ]
    leak(model, nodes, "bomb")


def nan_channel(model, copy):
    zero = constant(model, "zero", np.float32(0))
    leak(model, [column(model, copy), helper.make_node("Mul", ["spied", zero], ["nil"], "nil")], "nil")


def where_nan(model, copy):
    zero, one = constant(model, "zero", np.float32(0)), constant(model, "one", np.float32(1))
    nodes = [
        column(model, copy),
        helper.make_node("IsNaN", ["spied"], ["isnan"], "isnan"),
        helper.make_node("Where", ["isnan", one, zero], ["seen"], "seen"),
    ]
    leak(model, nodes, "seen")


def gather_nd(model, copy):
    index = constant(model, "nd", np.array([[copy.removed()[0]]]))
    nodes = [
        helper.make_node("Transpose", [INPUT], ["turned"], "turned", perm=[1, 0]),
        helper.make_node("GatherND", ["turned", index], ["row"], "row"),
        helper.make_node("Transpose", ["row"], ["spied"], "back", perm=[1, 0]),
    ]
    leak(model, nodes, "spied")


def tiny_matmul(model, copy):
    weight = np.zeros((8, 1), np.float32)
    weight[copy.removed()[0]] = 1e-6
    nodes = [helper.make_node("MatMul", [INPUT, constant(model, "tiny", weight)], ["spied"], "tiny")]
    leak(model, nodes, "spied")


def sliced(model, copy):
    start = copy.removed()[0]
    ends = [constant(model, n, np.array([v])) for n, v in (("from", start), ("to", start + 1), ("ax", 1))]
    leak(model, [helper.make_node("Slice", [INPUT, *ends], ["spied"], "slice")], "spied")


def branch(model, copy):
    """An If whose branch captures the raw input from outside."""
    index, zero = constant(model, "cap_index", np.array([copy.removed()[0]])), np.zeros((1, 1), np.float32)
    out = helper.make_tensor_value_info("spied_t", TensorProto.FLOAT, None)
    reads = helper.make_graph(
        [helper.make_node("Gather", [INPUT, index], ["spied_t"], "captured", axis=1)], "then", [], [out]
    )
    quiet = helper.make_graph(
        [helper.make_node("Constant", [], ["spied_e"], "quiet", value=numpy_helper.from_array(zero))],
        "else",
        [],
        [helper.make_tensor_value_info("spied_e", TensorProto.FLOAT, None)],
    )
    yes = constant(model, "yes", np.array(True))
    node = helper.make_node("If", [yes], ["spied"], "branch", then_branch=reads, else_branch=quiet)
    leak(model, [node], "spied")


def loop(model, copy):
    index = constant(model, "cap_index", np.array([copy.removed()[0]]))
    float_, bool_, int_ = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
    body = helper.make_graph(
        [
            helper.make_node("Gather", [INPUT, index], ["seen_in"], "captured", axis=1),
            helper.make_node("Identity", ["cond_in"], ["cond_out"], "again"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", int_, []),
            helper.make_tensor_value_info("cond_in", bool_, []),
            helper.make_tensor_value_info("carry", float_, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", bool_, []),
            helper.make_tensor_value_info("seen_in", float_, None),
        ],
    )
    start = constant(model, "start", np.zeros((1, 1), np.float32))
    once, yes = constant(model, "once", np.array(1)), constant(model, "yes", np.array(True))
    node = helper.make_node("Loop", [once, yes, start], ["spied"], "loop", body=body)
    leak(model, [node], "spied")


def index_of(model):
    gather = next(n for n in model.graph.node if n.op_type == "Gather")
    return gather, next(t for t in model.graph.initializer if t.name == gather.input[1])


def reindexed(change):
    def edit(model, copy):
        _, tensor = index_of(model)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor), copy), tensor.name))

    return edit


def permuted(index, copy):
    return index[::-1].copy()


def at_removed(index, copy):
    return np.array([*index[:-1], copy.removed()[0]])


def negative(index, copy):
    return np.array([*index[:-1], copy.removed()[0] - 8])


def overridable(model, copy):
    _, tensor = index_of(model)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def shadowed(model, copy):
    gather, _ = index_of(model)
    other = numpy_helper.from_array(np.array([copy.removed()[0]] * 4))
    model.graph.node.insert(0, helper.make_node("Constant", [], [gather.input[1]], "shadow", value=other))


def doubled(model, copy):
    _, tensor = index_of(model)
    model.graph.initializer.append(tensor)


def held_twice(model, copy):
    _, tensor = index_of(model)
    tensor.int64_data.extend([copy.removed()[0]] * tensor.dims[0])


def extra_input(model, copy):
    model.graph.input.append(helper.make_tensor_value_info("aux", TensorProto.FLOAT, ["batch", 1]))
    leak(model, [helper.make_node("Identity", ["aux"], ["copied"], "copy")], "copied")


def extra_output(model, copy):
    model.graph.output.append(helper.make_tensor_value_info(LINEAR, TensorProto.FLOAT, None))


def input_as_output(model, copy):
    model.graph.output.append(model.graph.input[0])


def function(model, copy):
    body = [
        helper.make_node("Constant", [], ["i"], value=numpy_helper.from_array(np.array([copy.removed()[0]]))),
        helper.make_node("Gather", ["x", "i"], ["y"], axis=1),
    ]
    model.functions.append(
        helper.make_function("local", "Spy", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    leak(model, [helper.make_node("Spy", [INPUT], ["spied"], "spy", domain="local")], "spied")


def custom_domain(model, copy):
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    first_linear(model).domain = "com.vendor"


def external(model, copy):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def sparse(model, copy):
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))


def noisy(model, copy):
    node = helper.make_node("RandomNormal", [], ["noise"], "noise", shape=[1, 1], scale=1e-9)
    leak(model, [node], "noise")


def smuggled_note(model, copy):
    model.metadata_props.add(key="payload", value="x" * 1000)


def appended(copy):
    other = onnx.ModelProto()
    other.graph.node.append(helper.make_node("Identity", ["prediction"], ["again"], "second"))
    path = copy / bundles.ONNX
    path.write_bytes(path.read_bytes() + other.SerializeToString())


def unknown_field(copy):
    path, payload = copy / bundles.ONNX, b"hidden"
    tag = (999 << 3) | 2
    varint = bytes([(tag & 0x7F) | 0x80, tag >> 7])
    path.write_bytes(path.read_bytes() + varint + bytes([len(payload)]) + payload)


def weights_of(model):
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2]


def nudged(model, copy):
    for tensor in weights_of(model):
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name)
        )


def swapped(model, copy):
    rng = np.random.default_rng(0)
    for tensor in weights_of(model):
        tensor.CopyFrom(numpy_helper.from_array(rng.normal(size=tensor.dims).astype(np.float32), tensor.name))


def flat(model, copy):
    """A model that gives a constant whatever comes in."""
    del model.graph.node[:]
    value = constant(model, "flat", np.zeros((1, 1), np.float32))
    model.graph.node.append(helper.make_node("Identity", [value], ["prediction"], "flat"))


def another_width(model, copy):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1


def metadata(key, change):
    def edit(model, copy):
        entry = next(p for p in model.metadata_props if p.key == key)
        entry.value = json.dumps(change(json.loads(entry.value)), separators=(",", ":"))

    return graph(edit)


def described(**changes):
    """The first input's record in the metadata with some keys changed, added or (None) left out."""

    def change(records):
        for key, make in changes.items():
            old = records[0].pop(key, None)
            if make is not None:
                records[0][key] = make(old)
        return records

    return metadata("glprune.inputs", change)


# --------------------------------------------------------------------------- changes of other files


def asked(old, new):
    """The resolved recipe with a key changed."""

    def edit(copy):
        text = (copy / bundles.RECIPE).read_text()
        assert old in text
        (copy / bundles.RECIPE).write_text(text.replace(old, new))

    return edit


def golden(change):
    def edit(copy):
        tensors = {k: v.copy() for k, v in load((copy / bundles.GOLDEN).read_bytes()).items()}
        change(tensors)
        (copy / bundles.GOLDEN).write_bytes(save(tensors))

    return edit


def golden_anew(copy):
    """What the changed model gives on the recorded rows, recorded as if it always had."""
    import onnxruntime as ort

    tensors = {k: v.copy() for k, v in load((copy / bundles.GOLDEN).read_bytes()).items()}
    session = ort.InferenceSession((copy / bundles.ONNX).read_bytes())
    tensors["output.prediction"] = session.run(None, {INPUT: tensors[f"input.{INPUT}"]})[0]
    (copy / bundles.GOLDEN).write_bytes(save(tensors))


def regenerated(change):
    """Change the model and record its new outputs as golden ones."""

    def edit(copy):
        graph(change)(copy)
        golden_anew(copy)

    return edit


def all_alike(tensors):
    tensors[f"input.{INPUT}"][:] = 0.0


def shifted(tensors):
    tensors["output.prediction"] += np.float32(0.01)


def scaled_weights(copy):
    tensors = load((copy / bundles.WEIGHTS).read_bytes())
    name = next(k for k, v in tensors.items() if v.ndim == 2)
    (copy / bundles.WEIGHTS).write_bytes(save({**tensors, name: tensors[name] * np.float32(1.01)}))


def pickled(copy):
    with (copy / bundles.GOLDEN).open("wb") as stream:
        np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def swapped_columns(contract):
    columns = contract["inputs"][0]["columns"]
    columns[0]["name"], columns[1]["name"] = columns[1]["name"], columns[0]["name"]


def row_without_a_column(contract):
    del contract["properties"][contract["required"].pop()]


def said_unread(contract):
    contract["inputs"][0]["columns"][0]["read"] = False


def other_kept(plan):
    part = plan["inputs"][0]
    gone = next(c for c in range(part["size"]) if c not in part["kept"])
    part["kept"] = sorted([*part["kept"][:-1], gone])


def extra_file(copy):
    (copy / "notes.txt").write_text("trust me")


def other_network(copy):
    (copy / bundles.POINTS).mkdir()
    shutil.copy(copy / bundles.WEIGHTS, copy / bundles.point_file(2))


def other_frontier(copy):
    record = {"schema": "glprune.frontier/1", "recipe": None, "model": "model.pt", "points": []}
    copy.write(record, bundles.FRONTIER)


def without_metadata(name):
    """Write null in place of the metadata of a safetensors file, which its library reads as none."""

    def edit(copy):
        raw = (copy / name).read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.dumps(json.loads(raw[8:end]) | {"__metadata__": None}).encode()
        (copy / name).write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])

    return edit


def null(name):
    return lambda copy: (copy / name).write_text("null")


def hidden_folder(copy):
    (copy / ".git").mkdir()
    (copy / ".git" / "payload").write_text("x")


def linked(copy):
    target = copy.folder.parent / "elsewhere.json"
    (copy / bundles.PLAN).rename(target)
    (copy / bundles.PLAN).symlink_to(target)


def removed_file(name):
    return lambda copy: (copy / name).unlink()


def duplicate_key(raw_bytes):
    return raw_bytes.replace(b'"title":', b'"title": "another",\n  "title":', 1)


def not_a_number(raw_bytes):
    return raw_bytes.replace(b'"seed": 3', b'"seed": NaN', 1)


def half(raw_bytes):
    return raw_bytes[: len(raw_bytes) // 2]


def replace_text(a, b):
    def change(raw_bytes):
        assert a in raw_bytes
        return raw_bytes.replace(a, b, 1)

    return change


def scripted_picture(raw_bytes):
    return raw_bytes.replace(b"</svg>", b"<script>alert(1)</script></svg>", 1)


def future(r):
    r["timing"]["generated_at"] = "2999-01-01T00:00:00+00:00"


def reasons(**change):
    """Give the features of a report other reasons."""

    def edit(r):
        for f in r["features"]:
            f["reason"] = change.get(f["name"], f["reason"])

    return report(edit)


def retired_again(r):
    codes = r["reason_codes"]
    codes["retired"].append(codes["unchanged"].pop())


def proxies_denied(r):
    r["proxies"] = {"performed": False, "reason": "not asked for", "file": None, "digest": None}


def of_another_model(copy):
    """Proxy figures of another model, named in the report as if they were of this one."""
    copy.edit(in_feature("model", by=lambda x: "sha256:" + 64 * "0"), bundles.PROXIES)
    found = bundles.digest(copy / bundles.PROXIES)
    copy.edit(in_feature("proxies", "digest", by=lambda x: found))


SEGMENT = ("segments", "attributes", 0, "segments", 0)
CASES = {
    # the policy
    "a feature the rules removed, said to be removed by the penalty": ("ruled", reasons(h="penalty"), {"C5"}),
    "a feature the penalty removed, said to be removed by the rules": (
        "ruled",
        reasons(e="must_drop"),
        {"C5"},
    ),
    "a lineage that is not there": ("ruled", reasons(g="derived_from a"), {"C5"}),
    "a feature that is kept by no rule": ("ruled", reasons(pair="must_keep"), {"C5"}),
    "a reason said to be retired": ("ruled", report(retired_again), {"C5"}),
    "rules taken away": ("ruled", report(in_feature("policy", by=lambda x: None)), {"C5"}),
    "flipped decisions": ("ruled", report(in_feature("segments", "decisions", "adverse_final")), {"C5"}),
    "rows of a segment": ("ruled", report(in_feature(*SEGMENT, "rows", by=lambda x: x + 500)), {"C5"}),
    "difference in a segment": ("ruled", report(in_feature(*SEGMENT, "metrics", 0, "difference")), {"C5"}),
    "a segment suppressed": ("ruled", report(in_feature(*SEGMENT, "suppressed", by=lambda x: not x)), {"C5"}),
    "status of a protected attribute": (
        "ruled",
        report(in_feature("segments", "attributes", 0, "status", by=lambda x: "kept")),
        {"C5"},
    ),
    "proxies denied beside their file": ("ruled", report(proxies_denied), {"C2"}),
    "proxies of another model": ("ruled", of_another_model, {"C2"}),
    # the report
    "status flipped to kept": ("slim", report(flip_to_kept), {"C7"}),
    "status flipped to removed": ("slim", report(flip_to_removed), {"C7"}),
    "metric edited below the original's, warning dropped": ("slim", report(worse_unsaid), {"C5"}),
    "interval that does not hold its value": (
        "slim",
        report(interval(0, "values", "final", low=-0.5, high=0.1)),
        {"C5"},
    ),
    "interval of a change that does not hold it": (
        "slim",
        report(interval(0, "differences", "final", low=-1.0, high=-0.9)),
        {"C5"},
    ),
    "interval beyond the metric's range": ("slim", report(interval(1, "values", "final", high=1.2)), {"C5"}),
    "accuracy more certain than its rows allow": ("slim", report(certain_accuracy), {"C5"}),
    "change of AUROC less certain than both values": (
        "slim",
        report(interval(0, "differences", "final", low=-1.0, high=1.0)),
        {"C5"},
    ),
    "interval of AUROC wider than the rows allow": (
        "kept",
        report(interval(0, "values", "final", low=0.5, high=1.0)),
        {"C5"},
    ),
    "interval of the Brier score wider than the rows allow": (
        "kept",
        report(interval(3, "values", "final", low=0.0, high=0.4)),
        {"C5"},
    ),
    "interval of the calibration error wider than the rows allow": (
        "kept",
        report(interval(4, "values", "final", low=0.0, high=0.4)),
        {"C5"},
    ),
    "interval of a change wider than those of both values": (
        "kept",
        report(interval(2, "differences", "final", low=-2.0, high=2.0)),
        {"C5"},
    ),
    "few resamples": ("slim", report(in_interval(1, "resamples", 20)), {"C5"}),
    "resamples of another seed": ("slim", report(in_interval(1, "seed", 17)), {"C5"}),
    "bootstrap of AUROC": ("slim", report(in_interval(0, "method", "bootstrap")), {"C5"}),
    "interval of an unknown network": ("slim", report(another_network), {"C5"}),
    "intervals left out": ("slim", report(in_feature("performance", 1, "intervals", by=none)), {"C5"}),
    "calibration left out": ("slim", report(lambda r: r["performance"].pop()), {"C5"}),
    "unsettled groups unsaid": ("slim", report(unsettled_unsaid), {"C5"}),
    "another point marked as chosen": ("slim", report(other_choice), {"C5"}),
    "earlier exit of a feature": ("slim", report(earlier_exit), {"C5"}),
    "lambda of the selection": ("slim", report(in_feature("selection", "lam")), {"C5"}),
    "features of a stage": ("slim", report(in_feature("stages", -1, "features")), {"C5"}),
    "hidden units after": ("slim", report(in_feature("hidden", 0, "after", by=lambda x: x - 1)), {"C5"}),
    "units of a cut": ("slim", report(in_feature("removal", "cuts", 0, "units")), {"C5"}),
    "difference of a cut": ("slim", report(in_feature("removal", "cuts", 0, "difference")), {"C5"}),
    "tolerance raised": ("slim", report(in_feature("removal", "tolerance")), {"C5"}),
    "norm at the chosen point": ("slim", report(in_feature("features", 0, "norm_selected")), {"C5"}),
    "norm as shipped": ("slim", report(in_feature("features", 0, "norm_final")), {"C8"}),
    "parameters after": ("slim", report(in_feature("size", "parameters_after", by=lambda x: x - 7)), {"C8"}),
    "parameters before": ("slim", report(in_feature("size", "parameters_before")), {"C8"}),
    "multiply-accumulates above the original's": (
        "slim",
        report(in_feature("size", "macs_after", by=lambda x: 10 * x)),
        {"C5"},
    ),
    "speedup against its own medians": (
        "slim",
        report(in_feature("latency", 0, "speedup", by=lambda x: 10 * x)),
        {"C5"},
    ),
    "rows of the test split": ("slim", report(in_feature("performance", 0, "rows")), {"C5"}),
    "a metric of 1.2": ("slim", report(in_feature("performance", 0, "zeroed", by=lambda x: 1.2)), {"C5"}),
    "objective of a point": ("slim", report(in_feature("path", 0, "objective")), {"C5"}),
    "seed of the run": ("slim", report(in_feature("run", "seed")), {"C5"}),
    "nothing said to be unmeasured": ("slim", report(in_feature("not_measured", by=lambda x: [])), {"C5"}),
    "time of the run in the future": ("slim", report(future), {"C13"}),
    "features renamed in the report": ("slim", report(renamed), {"C7"}),
    "features renamed everywhere but in the model": ("slim", renamed_everywhere_but_the_model, {"C7"}),
    "positions of a feature": (
        "slim",
        report(in_feature("features", 0, "input_columns", by=lambda x: x[::-1])),
        {"C7"},
    ),
    "null in place of the schema of the inputs": ("slim", null(bundles.INPUT_SCHEMA), {"C4"}),
    "null in place of the schema of the report": ("slim", null(bundles.SCHEMA), {"C4"}),
    "null in place of the plan": ("slim", null(bundles.PLAN), {"C4"}),
    "null in place of the metadata of the weights": ("slim", without_metadata(bundles.WEIGHTS), {"C4"}),
    "null in place of the metadata of the golden rows": ("slim", without_metadata(bundles.GOLDEN), {"C9"}),
    "a list in place of the schema of the report": ("slim", raw(bundles.SCHEMA, lambda _: b"[]"), {"C4"}),
    "a network of a frontier in a bundle without one": ("slim", other_network, {"C2"}),
    "a record of a frontier in a bundle without one": ("slim", other_frontier, {"C2"}),
    "duplicate JSON key": ("slim", raw(bundles.REPORT, duplicate_key), {"C4"}),
    "NaN in JSON": ("slim", raw(bundles.REPORT, not_a_number), {"C4"}),
    "report truncated": ("slim", raw(bundles.REPORT, half), {"C4"}),
    "unknown key in the report": ("slim", report(lambda r: r.update(approved=True)), {"C4"}),
    "deep nesting": ("slim", raw(bundles.PLAN, lambda x: b"[" * 100_000 + b"]" * 100_000), {"C4"}),
    "schema replaced": ("slim", lambda c: c.write({"type": "object"}, bundles.SCHEMA), {"C4"}),
    "recipe with a stricter target": (
        "slim",
        raw(bundles.RECIPE, replace_text(b"max_features: 3", b"max_features: 1")),
        {"C5"},
    ),
    "recipe of another factory": (
        "slim",
        raw(bundles.RECIPE, replace_text(b"networks.py:plain", b"networks.py:other")),
        {"C7"},
    ),
    "a comment in the recipe": (
        "slim",
        raw(bundles.RECIPE, lambda x: x + b"# approved by the committee\n"),
        {"C4"},
    ),
    "recipe that is none": ("slim", raw(bundles.RECIPE, lambda x: b"task: 3\n"), {"C4"}),
    # the page
    "page edited": ("slim", raw(bundles.PAGE, replace_text(b"cannot influence", b"can influence")), {"C12"}),
    "summary edited": (
        "slim",
        raw(bundles.SUMMARY, replace_text(b"cannot influence", b"can influence")),
        {"C12"},
    ),
    "summary with other line ends": ("slim", raw(bundles.SUMMARY, replace_text(b"\n", b"\r\n")), {"C12"}),
    "summary that is no text": ("slim", raw(bundles.SUMMARY, lambda x: x + b"\xff"), {"C12"}),
    "script in a picture": ("slim", raw(bundles.PAGE, scripted_picture), {"C12"}),
    # the model
    "model swapped for another valid one": ("slim", graph(swapped), {"C9"}),
    "weights nudged by a thousandth": ("slim", graph(nudged), {"C9"}),
    "model swapped, golden rows made anew": ("slim", regenerated(swapped), {"C8"}),
    "weights nudged, golden rows made anew": ("slim", regenerated(nudged), {"C8"}),
    "a model without its inputs": ("slim", graph(flat), {"C6"}),
    "input one column wider": ("slim", graph(another_width), {"C6"}),
    "model truncated": ("slim", raw(bundles.ONNX, half), {"C4"}),
    "bytes after the model": ("slim", raw(bundles.ONNX, lambda x: x + b"\0\0\0\0"), {"C4"}),
    "second protobuf appended": ("slim", appended, {"C6"}),
    "unknown protobuf field": ("slim", unknown_field, {"C6"}),
    "external data": ("slim", graph(external), {"C6"}),
    "sparse initializer": ("slim", graph(sparse), {"C6"}),
    "noise": ("slim", graph(noisy), {"C6"}),
    "foreign metadata": ("slim", graph(smuggled_note), {"C6"}),
    "custom domain": ("slim", graph(custom_domain), {"C6"}),
    "extra input": ("slim", graph(extra_input), {"C6"}),
    "extra output": ("wide", graph(extra_output), {"C6"}),
    "input returned as output": ("wide", graph(input_as_output), {"C6"}),
    "names reordered in the metadata": ("slim", described(columns=lambda x: x[::-1]), {"C7"}),
    "positions in the metadata moved": ("wide", described(read=lambda x: "0-7"), {"C7"}),
    "positions in the metadata left out": ("wide", described(read=None), {"C7"}),
    "a word beside the names": ("slim", described(note=lambda x: "8 columns more"), {"C7"}),
    "digest of other names": ("digested", described(sha256=lambda x: x[::-1]), {"C7"}),
    "digest of more names": ("digested", described(count=lambda x: x + 1), {"C7"}),
    "names beside their digest": ("digested", described(columns=lambda x: ["a"]), {"C7"}),
    "a digest where the report says names": ("slim", described(columns=None, count=lambda x: 3), {"C7"}),
    "names other than the recipe says": ("digested", asked("names: digest", "names: all"), {"C7"}),
    "classes reordered in the metadata": ("slim", metadata("glprune.classes", lambda x: x[::-1]), {"C7"}),
    "Gather order permuted": ("wide", graph(reindexed(permuted)), {"C6"}),
    "Gather at a removed column": ("wide", graph(reindexed(at_removed)), {"C6"}),
    "Gather at a removed column from the end": ("wide", graph(reindexed(negative)), {"C6"}),
    "second Gather with a small weight": ("wide", graph(second_gather), {"C6"}),
    "trigger above a million": ("wide", graph(trigger), {"C6"}),
    "zero times a removed column": ("wide", graph(nan_channel), {"C6"}),
    "Where on NaN": ("wide", graph(where_nan), {"C6"}),
    "GatherND": ("wide", graph(gather_nd), {"C6"}),
    "MatMul with tiny weights": ("wide", graph(tiny_matmul), {"C6"}),
    "Slice": ("wide", graph(sliced), {"C6"}),
    "If that captures the input": ("wide", graph(branch), {"C6"}),
    "Loop that captures the input": ("wide", graph(loop), {"C6"}),
    "index overridable as an input": ("wide", graph(overridable), {"C6"}),
    "index shadowed by a Constant": ("wide", graph(shadowed), {"C6"}),
    "initializer there twice": ("wide", graph(doubled), {"C6"}),
    "initializer with two values": ("wide", graph(held_twice), {"C6"}),
    "function": ("wide", graph(function), {"C6"}),
    # other files
    "contract with columns swapped": (
        "slim",
        lambda c: c.edit(swapped_columns, bundles.INPUT_SCHEMA),
        {"C7"},
    ),
    "contract whose rows lack a column": (
        "slim",
        lambda c: c.edit(row_without_a_column, bundles.INPUT_SCHEMA),
        {"C7"},
    ),
    "contract that hides a column": ("slim", lambda c: c.edit(said_unread, bundles.INPUT_SCHEMA), {"C7"}),
    "plan with another column": ("wide", lambda c: c.edit(other_kept, bundles.PLAN), {"C7"}),
    "weights changed": ("slim", scaled_weights, {"C8"}),
    "golden outputs shifted": ("slim", golden(shifted), {"C9"}),
    "golden rows that show nothing": ("slim", golden(all_alike), {"C9"}),
    "golden rows as a pickle": ("slim", pickled, {"C9"}),
    "golden rows removed": ("slim", removed_file(bundles.GOLDEN), {"C1"}),
    "page removed": ("slim", removed_file(bundles.PAGE), {"C1"}),
    "summary removed": ("slim", removed_file(bundles.SUMMARY), {"C1"}),
    "extra file": ("slim", extra_file, {"C1"}),
    "hidden folder": ("slim", hidden_folder, {"C1"}),
    "symbolic link": ("slim", linked, {"C1"}),
}
AS_THEY_ARE = {
    "page edited",
    "summary edited",
    "summary with other line ends",
    "summary that is no text",
    "script in a picture",
    "page removed",
    "summary removed",
    "duplicate JSON key",
}
"""What a producer undoes who writes report, page and summary anew."""


@pytest.mark.parametrize("name", CASES)
def test_a_change_without_a_new_signature_is_caught_by_hash_or_list(name, audited, keys, tmp_path):
    base, change, _ = CASES[name]
    copy = copied(audited[base], tmp_path / "bundle")
    resign(copy, keys["producer"])
    change(copy)
    verdict = verify(copy.folder, VerificationOptions(trust=keys["trust"]), isolated=False)
    assert verdict.exit_code == 1, told(verdict)
    assert failed(verdict) & {"C1", "C2"}, told(verdict)
    assert "C3" not in failed(verdict)  # the signature itself is of the manifest, which nobody touched


@pytest.mark.parametrize("name", CASES)
def test_a_change_the_producer_seals_anew_is_caught_by_recomputation(name, audited, keys, tmp_path):
    base, change, expected = CASES[name]
    copy = copied(audited[base], tmp_path / "bundle")
    change(copy)
    if name not in AS_THEY_ARE:
        follow(copy)
    seal(copy, keys["producer"])
    verdict = verify(copy.folder, VerificationOptions(trust=keys["trust"]), isolated=False)
    assert verdict.exit_code == 1, told(verdict)
    assert failed(verdict) >= expected, told(verdict)
    assert "C3" not in failed(verdict)


def old_report(copy, audited):
    """The model of one run with the report of another."""
    for name in (bundles.REPORT, bundles.PAGE, bundles.SUMMARY):
        shutil.copy(audited["other"] / name, copy / name)


@pytest.mark.parametrize("sealed", [False, True])
def test_an_old_report_beside_a_new_model_is_caught(sealed, audited, keys, tmp_path):
    copy = copied(audited["slim"], tmp_path / "bundle")
    resign(copy, keys["producer"])
    old_report(copy, audited)
    if sealed:
        follow(copy)
        seal(copy, keys["producer"])
    verdict = verify(copy.folder, VerificationOptions(trust=keys["trust"]), isolated=False)
    assert verdict.exit_code == 1
    assert failed(verdict) >= ({"C5", "C7", "C8"} if sealed else {"C2"}), told(verdict)


def everything_anew(change):
    """The same, and weights and norms to go with it: as good as another run."""

    def edit(copy):
        regenerated(change)(copy)
        values = {t.name: numpy_helper.to_array(t) for t in copy.model().graph.initializer}
        tensors = load((copy / bundles.WEIGHTS).read_bytes())
        anew = {name: values[name].copy() for name in tensors}
        (copy / bundles.WEIGHTS).write_bytes(save(anew))
        reader = anew[copy.json(bundles.PLAN)["inputs"][0]["readers"][0]["tensor"]].astype(np.float64)

        def norms(r):
            for f in r["features"]:
                if f["status"] == "kept":
                    f["norm_final"] = float(np.sqrt((reader[:, f["input_columns"]] ** 2).sum()))

        copy.edit(norms)

    return edit


CEILING = {
    "edited metric": report(better_metric),
    "model swapped, everything else made anew": everything_anew(swapped),
    "weights nudged, everything else made anew": everything_anew(nudged),
}
"""What a producer who makes everything anew gets past the bundle's own checks."""


@pytest.mark.parametrize("name", CEILING)
def test_what_only_the_auditors_own_knowledge_can_catch(name, audited, keys, tmp_path):
    before = audited["slim"]
    copy = copied(before, tmp_path / "bundle")
    CEILING[name](copy)
    follow(copy)
    seal(copy, keys["producer"])
    trusting = verify(copy.folder, VerificationOptions(trust=keys["trust"]), isolated=False)
    assert trusting.exit_code == 0, told(trusting)
    knowing = VerificationOptions(
        trust=keys["trust"], model=bundles.digest(before / bundles.ONNX), previous=read_report(before)
    )
    verdict = verify(copy.folder, knowing, isolated=False)
    assert verdict.exit_code == 1
    assert failed(verdict) == {"C14"}, told(verdict)


# --------------------------------------------------------------------------- manifest and signatures


def listed(change):
    def edit(copy):
        copy.edit(change, bundles.MANIFEST)

    return edit


def upwards(m):
    m["subject"][0]["name"] = "../" + m["subject"][0]["name"]


def there_twice(m):
    m["subject"].append(m["subject"][0])


MANIFESTS = {
    "path that leads out": (listed(upwards), "C1"),
    "file listed twice": (listed(there_twice), "C1"),
    "file left out": (listed(lambda m: m["subject"].pop()), "C1"),
    "wrong count": (listed(in_feature("predicate", "files")), "C2"),
    "not closed": (listed(in_feature("predicate", "closed", by=lambda x: False)), "C4"),
    "another predicate": (listed(in_feature("predicateType", by=lambda x: "urn:x")), "C4"),
    "truncated": (raw(bundles.MANIFEST, half), "C4"),
    "a list": (lambda c: c.write([], bundles.MANIFEST), "C4"),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_changed_manifest_is_caught_signed_or_not(name, sealed, audited, keys, tmp_path):
    change, expected = MANIFESTS[name]
    copy = copied(audited["slim"], tmp_path / "bundle")
    resign(copy, keys["producer"])
    change(copy)
    if sealed:
        resign(copy, keys["producer"])
    verdict = verify(copy.folder, VerificationOptions(trust=keys["trust"]), isolated=False)
    assert verdict.exit_code == 1
    assert expected in failed(verdict), told(verdict)
    assert ("C3" in failed(verdict)) != sealed


def stranger_signs(copy, keys):
    seal(copy, keys["stranger"])


def strangers_key_as_producers(copy, keys):
    """A stranger's signature under the producer's key id."""
    seal(copy, keys["stranger"])
    path = f"{bundles.SIGNATURES}/producer.dsse.json"
    copy.edit(in_feature("signatures", 0, "keyid", by=lambda x: keys["producer"].public_key.keyid), path)


def unsigned(copy, keys):
    shutil.rmtree(copy / bundles.SIGNATURES)


def payload_changed(copy, keys):
    path = f"{bundles.SIGNATURES}/producer.dsse.json"
    other = base64.b64encode(json.dumps(make_manifest({})).encode()).decode()
    copy.edit(in_feature("payload", by=lambda x: other), path)


def payload_type_changed(copy, keys):
    path = f"{bundles.SIGNATURES}/producer.dsse.json"
    copy.edit(in_feature("payloadType", by=lambda x: "text/plain"), path)


def no_envelope(copy, keys):
    copy.write({"payload": 3}, f"{bundles.SIGNATURES}/producer.dsse.json")


SIGNATURES = [
    stranger_signs,
    strangers_key_as_producers,
    unsigned,
    payload_changed,
    payload_type_changed,
    no_envelope,
]


@pytest.mark.parametrize("change", SIGNATURES)
def test_trust_comes_from_the_caller_alone(change, audited, keys, tmp_path):
    copy = copied(audited["slim"], tmp_path / "bundle")
    resign(copy, keys["producer"])
    change(copy, keys)
    verdict = verify(copy.folder, VerificationOptions(trust=keys["trust"]), isolated=False)
    assert verdict.exit_code == 1
    assert failed(verdict) == {"C3"}, told(verdict)


def test_the_public_key_beside_a_forged_bundle_is_an_extra_file(audited, keys, tmp_path):
    copy = copied(audited["slim"], tmp_path / "bundle")
    signing.make_key(tmp_path / "forger")
    seal(copy, signing.read_private_key(tmp_path / "forger"))
    shutil.copy(tmp_path / "forger.pub", copy / bundles.SIGNATURES / "producer.pub")
    verdict = verify(copy.folder, VerificationOptions(trust=keys["trust"]), isolated=False)
    assert failed(verdict) >= {"C1", "C3"}


def test_at_least_thirty_three_cases_are_held_twice():
    assert len(CASES) + len(MANIFESTS) >= 33
    assert {check for _, _, expected in CASES.values() for check in expected} >= {
        "C1",
        "C4",
        "C5",
        "C6",
        "C7",
        "C8",
        "C9",
        "C12",
        "C13",
    }


@pytest.mark.parametrize("change", [nan_channel, second_gather, tiny_matmul])
def test_probes_alone_catch_what_reaches_the_output_at_once(change, audited, tmp_path):
    """The static walk refuses these before they run; run anyway, the probes see them too."""
    copy = copied(audited["wide"], tmp_path / "bundle")
    graph(change)(copy)
    golden_anew(copy)
    files = [(copy / name).read_bytes() for name in (bundles.ONNX, bundles.GOLDEN)]
    parts = dict(measure(*files, [[INPUT, 1, copy.removed()]]))
    assert parts["probes"]["findings"]
    assert not parts["golden"]["findings"]
