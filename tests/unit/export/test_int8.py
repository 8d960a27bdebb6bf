"""The file in 8-bit integers: measured, reported, and held to the certified file by the auditor."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime import quantization
from torch import nn

import glprune
from glprune import pipeline
from glprune.audit.checks.int8 import (
    PAIR_LIMIT,
    _factor,
    _in_integers,
    largest_pair,
    products,
)
from glprune.audit.onnx_file.quantized import compare_graphs
from glprune.audit.onnx_reader import initializers
from glprune.audit.verify import verify
from glprune.errors import ModelError
from glprune.export.int8 import instruction_sets, quantize, write_int8
from glprune.export.onnx_export import FileVariants, OnnxSignature, export_onnx
from glprune.schema import bundle as bundles
from glprune.schema.manifest import write_manifest
from glprune.schema.recipe_loading import load_recipe
from tests.bundle_fixtures import copied, follow, write_problem

FILE = bundles.INT8


class Attention(nn.Module):
    """A transformer-like network: products of activations, and matrices on three axes."""

    def __init__(self):
        super().__init__()
        self.entry, self.norm, self.out = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        y = self.norm(self.entry(x))
        return self.out((torch.softmax(y @ y.transpose(1, 2), -1) @ y).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 8, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


CASES = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), (6,), "static"),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
        ),
        (6, 5),
        "static",
    ),
    "attention": (Attention, (5, 6), "dynamic"),
}


def exported(build, row, folder):
    torch.manual_seed(0)
    x = torch.randn(64, *row)
    network = build().eval()
    signature, variants = OnnxSignature(["x"], ["y"], 18), FileVariants([{"glprune.a": "b"}])
    export_onnx(network, (x[:4],), folder / "f.onnx", signature, variants)
    return network, x.numpy()


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_network_keeps_its_interface_and_nearly_its_outputs(name, tmp_path):
    build, row, method = CASES[name]
    network, x = exported(build, row, tmp_path)
    assert write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"x": x}]) == method
    model, source = onnx.load(tmp_path / "q.onnx"), onnx.load(tmp_path / "f.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.graph.input == source.graph.input
    assert {p.key: p.value for p in model.metadata_props}["glprune.a"] == "b"
    found = ort.InferenceSession(tmp_path / "q.onnx").run(None, {"x": x})[0]
    expected = network(torch.tensor(x)).detach().numpy()
    gap = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < gap < 0.1
    kinds = {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds


@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_certified_ones_rounded(name, tmp_path):
    build, row, _ = CASES[name]
    _, x = exported(build, row, tmp_path)
    write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"x": x}])
    model, source = onnx.load(tmp_path / "q.onnx"), onnx.load(tmp_path / "f.onnx")
    assert not list(compare_graphs(model.graph, source.graph))
    rounded = [t for t in model.graph.initializer if t.name.endswith("_quantized")]
    assert rounded
    for tensor in rounded:
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[0] += 2 if values.reshape(-1)[0] < 100 else -2
        other = onnx.ModelProto()
        other.CopyFrom(model)
        changed = next(t for t in other.graph.initializer if t.name == tensor.name)
        changed.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        assert [place for place, _ in compare_graphs(other.graph, source.graph)] == [
            f"weight {tensor.name!r}"
        ]


def products_in_pairs(activations, weights):
    """What a kernel with VPMADDUBSW computes: pairs of 8-bit products in 16 bits, saturated, then in 32."""
    products = activations[:, None, :].astype(np.int64) * weights[None]
    products = np.pad(products, ((0, 0), (0, 0), (0, products.shape[2] % 2)))
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(-1)
    return pairs.clip(-(2**15), 2**15 - 1).sum(-1)


def matrices(model):
    """The 8-bit weights of a file, shape (outputs, weights) each, as a kernel sees them."""
    stored, makers = initializers(model.graph), {name: n for n in model.graph.node for name in n.output}
    widened = {name for name, n in makers.items() if n.op_type == "DequantizeLinear"}
    return [
        _factor(n, stored, makers)
        for n in model.graph.node
        if n.op_type in {"Conv", "Gemm", "MatMul", "MatMulInteger"} and _in_integers(n, widened)
    ]


def saturates(model):
    """Whether a kernel that adds pairs in 16 bits computes something else, for activations of 0 and 255."""
    rng = np.random.default_rng(0)
    for weights in matrices(model):
        for signs in (weights > 0, weights < 0, rng.random(weights.shape) < 0.5):
            # the worst pairs: the largest weights of an output beside each other
            order = np.argsort(-np.abs(weights) * signs, axis=1)
            sorted_weights = np.take_along_axis(weights, order, 1).astype(np.int64)
            activations = np.where(np.take_along_axis(signs, order, 1), 255, 0)
            if not np.array_equal(
                products_in_pairs(activations, sorted_weights), activations @ sorted_weights.T
            ):
                return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_no_kernel_saturates_and_with_all_8_bits_one_would(name, tmp_path, monkeypatch):
    build, row, method = CASES[name]
    _, x = exported(build, row, tmp_path)
    write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"x": x}])
    model = onnx.load(tmp_path / "q.onnx")
    assert 0 < largest_pair(model) <= 255 * 128 <= PAIR_LIMIT
    assert not saturates(model)
    for function in ("quantize_static", "quantize_dynamic"):
        library = getattr(quantization, function)
        monkeypatch.setattr(
            quantization, function, lambda *a, f=library, **k: f(*a, **k | {"reduce_range": False})
        )
    quantize(tmp_path / "f.onnx", tmp_path / "full.onnx", method, [{"x": x}])
    full = onnx.load(tmp_path / "full.onnx")
    assert largest_pair(full) > PAIR_LIMIT
    assert saturates(full)
    with pytest.raises(ModelError, match="products of 8 bits would saturate"):
        write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"x": x}])


@pytest.mark.parametrize(
    ("weights", "transposed", "pair"),
    [
        ([[100, 28], [-1, -2]], 1, 128),
        ([[100, 28], [-1, -2]], 0, 100),
        ([[100, -28], [-127, -2]], 1, 129),
        ([[64, 1, 1, 63], [0, 0, 0, 0]], 1, 127),
        ([[-127]], 1, 127),
    ],
)
def test_the_largest_pair_is_of_one_output_and_one_sign(weights, transposed, pair):
    make = onnx.helper.make_node
    nodes = [
        make("DequantizeLinear", ["a", "s"], ["x"]),
        make("DequantizeLinear", ["w", "s"], ["v"]),
        make("Gemm", ["x", "v"], ["y"], transB=transposed),
    ]
    stored = [onnx.numpy_helper.from_array(np.array(weights, np.int8), "w")]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], stored))
    assert largest_pair(model) == 255 * pair


class Convolved(Attention):
    """A convolution, for which activations are quantised statically, before products of activations."""

    def __init__(self):
        super().__init__()
        self.before = nn.Conv1d(5, 5, 3, padding=1)

    def forward(self, x):
        return super().forward(self.before(x))


def test_products_of_two_activations_do_not_saturate(tmp_path):
    _, x = exported(Convolved, (5, 6), tmp_path)
    assert write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"x": x}]) == "static"
    model = onnx.load(tmp_path / "q.onnx")
    assert products(model) == (5, 5)
    assert largest_pair(model) <= 255 * 128


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 ssse3\n", ["SSSE3", "AVX2"]),
        (
            "flags\t\t: avx2 avx512bw avx512_vnni\nvmx flags\t: ssse3\n",
            ["AVX2", "AVX-512 BW", "AVX-512 VNNI"],
        ),
        ("Features\t: fp asimd asimddp i8mm\n", ["NEON", "NEON dot product", "NEON I8MM"]),
        (None, []),
    ],
)
def test_the_instruction_sets_of_the_processor_are_read(tmp_path, monkeypatch, text, found):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr("glprune.export.int8._CPU_INFO", tmp_path / "cpuinfo")
    assert instruction_sets() == found


def test_a_network_without_a_product_to_quantise_is_refused_in_one_line(tmp_path):
    _, x = exported(Recurrent, (5, 6), tmp_path)
    with pytest.raises(ModelError, match=r"export.quantize: int8: the network has no convolution.*GRU"):
        write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"x": x}])
    assert not (tmp_path / "q.onnx").exists()


def test_what_the_quantiser_raises_is_one_line(tmp_path):
    exported(*CASES["dense"][:2], tmp_path)
    with pytest.raises(ModelError) as caught:
        write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"z": np.zeros((2, 6), np.float32)}])
    assert str(caught.value).startswith("export.quantize: int8: the network cannot be quantised (")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs with the slim and with the original signature."""
    folder = tmp_path_factory.mktemp("int8")
    write_problem(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "LATENCY_BATCHES", (1,))
        return {
            signature: glprune.run(
                load_recipe(
                    folder / "plain.yaml",
                    ["export.exporter=auto", "export.quantize=int8", f"export.signature={signature}"],
                ),
                folder / "plain.pt",
                folder / signature,
            )
            for signature in ("slim", "original")
        }


def findings_of(folder):
    """What does not hold, but for pictures, which the changed copies of these tests lack."""
    verdict = verify(folder, isolated=False)
    return {(c.id, f.file, f.where) for c in verdict.checks for f in c.findings if c.id != "C12"}


@pytest.mark.parametrize("signature", ["slim", "original"])
def test_a_bundle_with_the_file_is_verified_and_the_report_tells_its_figures(results, signature):
    result = results[signature]
    assert verify(result.bundle, isolated=False).exit_code == 0
    found = result.report.quantized
    file = result.bundle / FILE
    assert found.bytes == file.stat().st_size
    assert result.report.digests.outputs[FILE] == bundles.digest(file)
    assert (found.products, found.products_of) == (3, 3)
    assert 0 < found.difference < 0.2
    assert found.same_decisions > 0.9
    assert FILE in (result.bundle / bundles.MANIFEST).read_text()
    main = next(m for m in found.metrics if m.name == result.report.selection.metric)
    for name in (bundles.PAGE, bundles.SUMMARY):
        page = (result.bundle / name).read_text()
        assert "not lossless" in page
        assert "of 32,767: no kernel saturates. It was measured on" in page
        change = main.intervals.differences["int8"]
        assert f"95 % interval of the change {change.low:+.4f} to {change.high:+.4f}" in page
    value = main.intervals.values["int8"]
    assert f"{value.low:.4f} to {value.high:.4f}" in (result.bundle / bundles.PAGE).read_text()
    assert found.largest_pair == largest_pair(onnx.load(file)) <= 255 * 128
    assert found.instruction_sets == instruction_sets()


def test_the_figures_are_those_of_the_file_run_by_hand(results):
    from safetensors.numpy import load_file

    result = results["slim"]
    golden = load_file(result.bundle / bundles.GOLDEN)
    session = ort.InferenceSession(result.bundle / FILE)
    found = session.run(None, {"features": golden["input.features"]})[0]
    wanted = golden["output.prediction"]
    gap = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert result.report.quantized.golden_difference == pytest.approx(gap, rel=1e-3)


def test_the_file_is_run_in_a_process_of_its_own_too(results):
    verdict = verify(results["original"].bundle)
    notes = {c.id: c.note for c in verdict.checks}
    assert verdict.exit_code == 0
    assert FILE in notes["C9"]


def edited(results, place, change, signature="slim", honest=True):
    """A copy whose 8-bit file was changed; honest: report and page were brought up to date."""
    copy = copied(results[signature].bundle, place)
    model = onnx.load(copy / FILE)
    raw = change(model)
    (copy / FILE).write_bytes(raw if raw is not None else model.SerializeToString(deterministic=True))
    if honest:
        copy.edit(lambda r: r["quantized"].update(bytes=(copy / FILE).stat().st_size))
        follow(copy)
    write_manifest(copy.folder)
    return copy


def other_weights(model):
    tensor = next(
        t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    )
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))


def other_property(model):
    model.metadata_props.add(key="glprune.note", value="8 bits, certified")


def appended(model):
    return model.SerializeToString(deterministic=True) + b"\x0a\x03abc"


def bias_moved(model):
    tensor = next(t for t in model.graph.initializer if t.name.endswith("bias_quantized"))
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values + 2, tensor.name))


def other_mean(model):
    tensor = next(t for t in model.graph.initializer if t.name == "standardize.mean")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere.bin")


def all_8_bits(model):
    """The same values in steps of half the size."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name.endswith("weight_quantized"):
            tensor.CopyFrom(
                onnx.numpy_helper.from_array((values.clip(-63, 63) * 2).astype(np.int8), tensor.name)
            )
        if tensor.name.endswith("weight_scale"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(values / 2, tensor.name))


def past_the_gather(model):
    """Read a removed column beside the Gather, as a second way to the output."""
    name = model.graph.input[0].name
    model.graph.node.append(onnx.helper.make_node("ReduceSum", [name, ""], ["leak"], keepdims=1))
    last = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if o == last else o for o in node.output]
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "leak"], [last]))


CHANGES = {
    "weights": (other_weights, "slim", ("C6", FILE, "weight 'network.0.weight_quantized'")),
    "biases": (bias_moved, "slim", ("C6", FILE, "weight 'network.0.bias_quantized'")),
    "what is not quantised": (other_mean, "slim", ("C6", FILE, "weight 'standardize.mean'")),
    "metadata": (other_property, "slim", ("C6", FILE, "metadata_props")),
    "weights that make kernels saturate": (all_8_bits, "slim", ("C6", FILE, "")),
    "bytes behind the end": (appended, "slim", None),
    "external data": (external, "slim", None),
    "a way past the choice of columns": (past_the_gather, "original", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_found_out_though_its_digests_follow(results, tmp_path, name):
    change, signature, expected = CHANGES[name]
    copy = edited(results, tmp_path / "copy", change, signature)
    findings = findings_of(copy.folder)
    found = {(check, file) for check, file, _ in findings}
    assert expected in findings if expected else {("C6", FILE), ("C4", FILE)} & found


def test_a_changed_file_whose_digests_do_not_follow_is_found_out(results, tmp_path):
    copy = edited(results, tmp_path / "copy", other_weights, honest=False)
    findings = findings_of(copy.folder)
    assert ("C2", bundles.REPORT, f"/digests/outputs/{FILE}") in findings


def test_a_file_that_is_missing_is_missed(results, tmp_path):
    copy = copied(results["slim"].bundle, tmp_path / "copy")
    (copy / FILE).unlink()
    assert ("C2", bundles.REPORT, f"/digests/outputs/{FILE}") in findings_of(copy.folder)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda q: q.update(bytes=q["bytes"] - 1), "/quantized/bytes"),
        (lambda q: q["metrics"][0].update(float32=0.123), "/quantized/metrics/0/float32"),
        (lambda q: q["metrics"][0].update(int8=1.5), "/quantized/metrics/0/int8"),
        (lambda q: q.update(same_decisions=1.01), "/quantized/same_decisions"),
        (lambda q: q["latency"][0].update(speedup=99.0), "/quantized/latency/0/speedup"),
        (lambda q: q.update(golden_difference=0.9), "/quantized/golden_difference"),
        (lambda q: q.update(largest_pair=1), ""),
    ],
)
def test_a_figure_that_is_not_so_is_found_out(results, tmp_path, change, where):
    copy = copied(results["slim"].bundle, tmp_path / "copy")
    copy.edit(lambda r: change(r["quantized"]))
    follow(copy)
    write_manifest(copy.folder)
    findings = findings_of(copy.folder)
    assert where in {place for _, _, place in findings}


def test_figures_that_are_left_out_are_missed(results, tmp_path):
    copy = copied(results["slim"].bundle, tmp_path / "copy")
    copy.edit(lambda r: r.update(quantized=None))
    follow(copy)
    write_manifest(copy.folder)
    assert "/quantized" in {place for _, _, place in findings_of(copy.folder)}


def test_a_file_slipped_in_beside_a_report_that_knows_of_none_is_refused(audited, results, tmp_path):
    copy = copied(audited["slim"], tmp_path / "copy")
    shutil.copy(results["slim"].bundle / FILE, copy / FILE)
    write_manifest(copy.folder)
    findings = findings_of(copy.folder)
    assert ("C5", bundles.REPORT, "/quantized") in findings


def test_a_bundle_without_the_key_has_no_such_file(audited):
    assert not (audited["slim"] / FILE).exists()
    assert json.loads((audited["slim"] / bundles.REPORT).read_text())["quantized"] is None


@pytest.mark.parametrize("name", ["slim", "recurrent"])
def test_the_certified_file_is_hardly_larger_than_its_parameters(audited, name):
    size = json.loads((audited[name] / bundles.REPORT).read_text())["size"]
    assert size["onnx_bytes_after"] <= 1.05 * 4 * size["parameters_after"] + 4096


def _tensor(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def _set(model, name, values):
    _tensor(model, name).CopyFrom(onnx.numpy_helper.from_array(values, name))


def _first(model, suffix):
    name = next(t.name for t in model.graph.initializer if t.name.endswith(suffix))
    return name, onnx.numpy_helper.to_array(_tensor(model, name)).copy()


def another_node(model):
    """A node between two layers."""
    node = next(n for n in model.graph.node if n.op_type in ("Relu", "Softmax"))
    node.input[0], old = "between", node.input[0]
    at = list(model.graph.node).index(node)
    model.graph.node.insert(at, onnx.helper.make_node("Tanh", [old], ["between"], "between"))


def another_operator(model):
    next(n for n in model.graph.node if n.op_type in ("Relu", "Softmax")).op_type = "Sigmoid"


def another_attribute(model):
    node = next(n for n in model.graph.node if n.op_type in ("Gemm", "LayerNormalization"))
    next(a for a in node.attribute if a.name in ("alpha", "epsilon")).f = 0.5


def weights_rounded_to_nothing(model):
    """A scale so large that every weight is zero, within half a step."""
    name, values = _first(
        model, "0.weight_quantized" if _has(model, "0.weight_quantized") else "val_0_quantized"
    )
    scale = name.removesuffix("_quantized") + "_scale"
    _set(model, name, values * 0)
    _set(model, scale, onnx.numpy_helper.to_array(_tensor(model, scale)) * np.float32(1000))


def _has(model, name):
    return any(t.name == name for t in model.graph.initializer)


def weights_of_another_layer(model):
    name, values = _first(model, "_quantized")
    _set(model, name, np.roll(values, 1, axis=0))


def bias_rounded_to_nothing(model):
    name, values = (
        _first(model, "bias_quantized") if _has(model, "0.bias_quantized") else _first(model, ".bias")
    )
    _set(model, name, values * 0)
    if _has(model, f"{name}_scale"):
        scale = onnx.numpy_helper.to_array(_tensor(model, f"{name}_scale"))
        _set(model, f"{name}_scale", scale * np.float32(1e9))


def negative_scale(model):
    name, values = _first(model, "weight_scale" if _has(model, "0.weight_scale") else "val_0_scale")
    _set(model, name, -values)


def too_many_scales(model):
    name, values = _first(model, "weight_scale" if _has(model, "0.weight_scale") else "val_0_scale")
    _set(model, name, np.resize(values, 3 * values.size + 2))


def too_many_zero_points(model):
    name, values = _first(
        model, "0.weight_zero_point" if _has(model, "0.weight_zero_point") else "val_0_zero_point"
    )
    _set(model, name, np.resize(values, 3 * values.size + 2))


def signed_activation(model):
    """Quantised and widened with different steps, which scales the activation."""
    name, values = _first(model, "relu_scale") if _has(model, "relu_scale") else _first(model, "_scale")
    model.graph.initializer.append(onnx.numpy_helper.from_array(values * np.float32(2), "doubled"))
    node = next(n for n in model.graph.node if name in n.input and n.op_type in ("DequantizeLinear", "Mul"))
    node.input[list(node.input).index(name)] = "doubled"


def added_to_the_output(model):
    last = model.graph.node[-1]
    result, last.output[0] = last.output[0], "honest"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "more"))
    model.graph.node.append(onnx.helper.make_node("Add", ["honest", "more"], [result], "more"))


@pytest.mark.parametrize("name", ["dense", "attention"])
@pytest.mark.parametrize(
    "change",
    [another_node, another_operator, another_attribute, weights_rounded_to_nothing, weights_of_another_layer,
     bias_rounded_to_nothing, negative_scale, too_many_scales, too_many_zero_points, signed_activation,
     added_to_the_output],
)  # fmt: skip
def test_an_8_bit_file_that_is_not_the_certified_graph_is_found(change, name, tmp_path):
    build, row, _ = CASES[name]
    _, x = exported(build, row, tmp_path)
    write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx", [{"x": x}])
    model, source = onnx.load(tmp_path / "q.onnx"), onnx.load(tmp_path / "f.onnx")
    assert not list(compare_graphs(model.graph, source.graph))
    change(model)
    assert list(compare_graphs(model.graph, source.graph))
