import logging
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from glprune.audit.checks.graph import ExpectedGraph, ExpectedInput, check_graph
from glprune.errors import ModelError
from glprune.export import exporters
from glprune.export import onnx_export as module
from glprune.export.diagnosis import failing_layer
from glprune.export.onnx_export import ColumnSelector, FileVariants, OnnxSignature, export_onnx
from glprune.export.onnx_runtime import OnnxFile
from glprune.model.standardize import with_standardization
from glprune.pruning.surgery import ConstantFill
from glprune.schema.bundle import size_limit


class Untraceable(nn.Module):
    """Leaves tensors for NumPy, which no exporter follows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(4, 4)

    def forward(self, x, *, gain=1.0):
        values, _ = torch.linalg.eig(self.scale(x).transpose(0, 1) @ x)
        return x * gain + values.real.sum() * 0


class Block(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(4), inner

    def forward(self, x):
        return self.inner(self.norm(x), gain=2.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([Block(Plain()), Block(Untraceable())])
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        x = self.entry(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Plain(nn.Module):
    def forward(self, x, *, gain):
        return x * gain


def export(network, example, path, outputs=("prediction",), names=("x",), **options):
    signature = OnnxSignature(names, outputs, 18, **options)
    return export_onnx(network.eval(), example, path, signature).exporter


def test_a_failing_export_names_the_deepest_layer_and_leaves_no_file(tmp_path, capfd):
    with pytest.raises(ModelError) as caught:
        export(Net(), (torch.randn(4, 3),), tmp_path / "m.onnx")
    message = str(caught.value)
    assert 'layer "blocks.1.inner" (Untraceable)' in message
    assert "torchscript: " in message
    assert "dynamo: " in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert not (tmp_path / "m.onnx").exists()
    assert "graph(" not in capfd.readouterr().out


def test_a_network_whose_layers_all_export_alone_has_no_culprit():
    assert failing_layer(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (torch.randn(4, 3),), 18) is None


def test_an_input_the_network_does_not_use_is_refused_by_name(tmp_path, monkeypatch):
    class Ignores(nn.Module):
        def forward(self, x, mask):
            return x.sum(1)

    exporter = export(Ignores(), (torch.randn(4, 3), torch.ones(4)), tmp_path / "m.onnx", names=("x", "mask"))
    # an exporter that keeps unused inputs is welcome; one that drops them is not believed
    assert exporter in ("dynamo", "torchscript")
    assert OnnxFile(tmp_path / "m.onnx").names == ["x", "mask"]
    model = module.onnx.load(tmp_path / "m.onnx")
    del model.graph.input[1]
    request = exporters.ExportRequest(Ignores(), (), ("x", "mask"), ("prediction",), (), 18)
    with pytest.raises(ValueError, match="'mask' is not used"):
        module._check_signature(model, request)


class TwoInputs(nn.Module):
    def forward(self, a, ids):
        return a.sum(1), ids + 1


def test_select_gathers_the_inputs_with_an_axis_and_passes_the_others(tmp_path):
    network = ColumnSelector(
        TwoInputs(), (torch.tensor([0, 2]), torch.empty(0, dtype=torch.int64)), (-1, None)
    )
    a, ids = torch.randn(4, 3), torch.randint(0, 9, (4, 5))
    export(
        network, (a, ids), tmp_path / "m.onnx", ("sum", "next"), ("a", "ids"), dynamic={"ids": {1: "length"}}
    )
    file = OnnxFile(tmp_path / "m.onnx")
    total, following = file((a, torch.cat([ids, ids], dim=1)))
    np.testing.assert_allclose(total, a[:, [0, 2]].sum(1), atol=1e-6)
    assert torch.equal(following, torch.cat([ids, ids], dim=1) + 1)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_an_auditor_finds_thousands_of_kept_columns_in_a_gather(tmp_path, exporter, monkeypatch):
    monkeypatch.setattr(module, "EXPORTERS", [e for e in module.EXPORTERS if e[0] == exporter])
    kept = torch.arange(0, 18_000, 2)
    network = ColumnSelector(nn.Linear(9000, 2), (kept,), (1,))
    export(network, (torch.randn(4, 18_000),), tmp_path / "m.onnx")
    raw = (tmp_path / "m.onnx").read_bytes()
    given = ExpectedInput("x", 1, 18_000, tuple(kept.tolist()))
    assert check_graph(onnx.load_from_string(raw), raw, ExpectedGraph([given], ["prediction"], 18)) == []


def test_a_single_number_may_be_an_index_or_what_is_selected_from(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x.index_select(1, torch.tensor(1)) + x.sum().index_select(0, torch.tensor([0]))

    export(Odd(), (torch.ones(4, 3),), tmp_path / "m.onnx")
    (given,) = OnnxFile(tmp_path / "m.onnx")((2 * torch.ones(5, 3),))
    assert given.tolist() == [[32.0]] * 5


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_axes_of_any_length_are_dynamic_with_either_exporter(tmp_path, exporter, monkeypatch):
    monkeypatch.setattr(module, "EXPORTERS", [e for e in module.EXPORTERS if e[0] == exporter])

    class Step(nn.Module):
        def forward(self, x):
            return x * 2 + torch.arange(x.shape[1]), x.mean(1)

    example = (torch.randn(4, 7),)
    assert (
        export(Step(), example, tmp_path / "m.onnx", ("step", "mean"), dynamic={"x": {-1: "length"}})
        == exporter
    )
    session = ort.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == ["batch", "length"]
    assert session.get_outputs()[0].shape[0] == "batch"
    x = torch.randn(2, 11)
    for found, expected in zip(session.run(None, {"x": x.numpy()}), Step()(x), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["perceptron", "wide perceptron", "convolutions", "attention"])
def test_a_slim_file_is_hardly_larger_than_its_parameters(name, tmp_path):
    torch.manual_seed(0)
    network, row = SLIM[name]()
    names = {"glprune.inputs": "x" * 400}
    path = tmp_path / "m.onnx"
    signature, variants = OnnxSignature(["x"], ["y"], 18), FileVariants([names])
    export_onnx(network.eval(), (torch.randn(4, *row),), path, signature, variants)
    parameters = sum(p.numel() for p in network.parameters())
    assert 4 * parameters < path.stat().st_size <= size_limit(parameters)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(24), nn.Linear(24, 3)
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x):
        y = self.norm(x)
        return self.out((torch.softmax(self.q(y) @ self.k(y).transpose(1, 2), -1) @ self.v(y)).mean(1))


def convolutions():
    layers = [
        nn.Conv2d(3, 13, 3),
        nn.BatchNorm2d(13),
        nn.ReLU(),
        nn.Conv2d(13, 21, 3),
        nn.BatchNorm2d(21),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(21, 5)), (3, 9, 9)


def scaled_perceptron():
    inner = nn.Sequential(nn.Linear(300, 61), nn.ReLU(), nn.Linear(61, 17), nn.ReLU(), nn.Linear(17, 2))
    return with_standardization(inner, torch.randn(300), torch.rand(300) + 1), (300,)


SLIM = {
    "perceptron": lambda: (nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 1)), (7,)),
    "wide perceptron": scaled_perceptron,
    "convolutions": convolutions,
    "attention": lambda: (Attention(), (6, 24)),
}


def limited(network, example, path, limit, metadata=({},), names=("x",)):
    signature, variants = OnnxSignature(names, ["y"], 18), FileVariants(metadata, limit)
    return export_onnx(network.eval(), example, path, signature, variants)


class Trimmed(nn.Module):
    """Sums bags of any length, which an exporter writes as a loop with a graph of its own."""

    def __init__(self):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(9, 4, mode="sum"), nn.Linear(4, 1)

    def forward(self, ids):
        return self.out(torch.relu(self.bag(ids)))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["attention", "convolutions", "selection", "bags"])
def test_a_terse_graph_computes_the_same_to_the_bit(name, exporter, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXPORTERS", [e for e in module.EXPORTERS if e[0] == exporter])
    torch.manual_seed(0)
    if name == "selection":
        kept = torch.arange(3, 60, 2)
        inner = nn.Sequential(nn.Linear(len(kept), 4), nn.Tanh(), nn.Linear(4, 1))
        network, example = ColumnSelector(inner, (kept,), (1,)), torch.randn(4, 80)
    elif name == "bags":
        network, example = Trimmed(), torch.randint(0, 9, (4, 5))
    else:
        network, row = SLIM[name]()
        example = torch.randn(4, *row)
    long, short = tmp_path / "long.onnx", tmp_path / "short.onnx"
    limited(network, (example,), long, None)
    limited(network, (example,), short, 1)
    assert short.stat().st_size < long.stat().st_size
    assert b"site-packages" not in long.read_bytes()
    model = module.onnx.load(short)
    assert [i.name for i in model.graph.input] == ["x"]
    assert {node.name for node in model.graph.node} == {""}
    if name == "selection":
        (index,) = [t for t in model.graph.initializer if len(t.dims) == 1 and t.dims[0] == len(kept)]
        assert index.data_type == module.onnx.TensorProto.INT32
    for rows in (1, 4):
        for expected, found in zip(
            *(OnnxFile(path)((example[:rows],)) for path in (long, short)), strict=True
        ):
            assert torch.equal(expected, found)


def test_leaner_metadata_is_taken_only_where_nothing_else_fits(tmp_path):
    network, row = SLIM["attention"]()
    example, path = (torch.randn(4, *row),), tmp_path / "m.onnx"
    offered = [{"glprune.a": "x" * 900}, {"glprune.a": "-"}]
    assert limited(network, example, path, None, offered).choice == 0
    whole = path.stat().st_size
    assert limited(network, example, path, whole, offered).choice == 0
    assert path.stat().st_size == whole
    assert limited(network, example, path, whole - 1, offered).choice == 0  # in fewer bytes, names and all
    terse = path.stat().st_size
    assert terse < whole
    assert limited(network, example, path, terse - 1, offered).choice == 1
    assert path.stat().st_size < terse


class Steps(nn.Module):
    """A plain recurrent layer, whose steps one exporter writes out and the other does not."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.RNN(3, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


@pytest.mark.slow
def test_the_other_exporter_is_tried_where_the_first_file_is_too_large(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network, example, path = Steps(), (torch.randn(4, 60, 3),), tmp_path / "m.onnx"
    limit = size_limit(sum(p.numel() for p in network.parameters()))
    assert limited(network, example, path, None).exporter == "dynamo"
    assert path.stat().st_size > limit
    assert limited(network, example, path, limit).exporter == "torchscript"
    assert path.stat().st_size <= limit
    np.testing.assert_allclose(OnnxFile(path)(example)[0], network(*example).detach(), atol=1e-6)

    def wrong(job, path):
        torchscript(job, path)
        model = module.onnx.load(path)
        for tensor in model.graph.initializer:
            tensor.raw_data = bytes(len(tensor.raw_data))
        module.onnx.save(model, path)

    torchscript = exporters._export_torchscript
    monkeypatch.setattr(module, "EXPORTERS", (module.EXPORTERS[0], ("torchscript", wrong)))
    assert limited(network, example, path, limit).exporter == "dynamo"
    np.testing.assert_allclose(OnnxFile(path)(example)[0], network(*example).detach(), atol=1e-6)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_constants_for_removed_columns_export_without_a_word(exporter, tmp_path, monkeypatch, capfd):
    kept, values = torch.tensor([1, 4]), torch.arange(6.0)
    network = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)).eval()
    network.register_forward_pre_hook(ConstantFill(0, 1, kept, values))
    monkeypatch.setattr(module, "EXPORTERS", [e for e in exporters.EXPORTERS if e[0] == exporter])
    example = torch.randn(8, 2)
    assert export(network, (example,), tmp_path / "m.onnx") == exporter
    assert capfd.readouterr() == ("", "")
    for rows in (1, 3, 8):
        (found,) = OnnxFile(tmp_path / "m.onnx")((example[:rows],))
        torch.testing.assert_close(found, network(example[:rows]))


def test_what_an_exporter_prints_stays_out_of_the_terminal(capsys):
    with exporters.silence_exporters():
        print("a graph")
        print("a graph", file=sys.stderr)
        logging.getLogger("torch.onnx").warning("a graph")
    assert capsys.readouterr() == ("", "")


def test_a_file_that_differs_at_one_row_is_refused_and_the_other_exporter_tried(tmp_path, monkeypatch):
    class Branch(nn.Linear):
        wrong = False

        def forward(self, x):
            return super().forward(x) + (1 if self.wrong and x.shape[0] > 1 else 0)

    def wrong(request, path):
        Branch.wrong = True
        try:
            exporters.EXPORTERS[1][1](request, path)  # traced at several rows, where one is added
        finally:
            Branch.wrong = False

    monkeypatch.setattr(module, "EXPORTERS", [("wrong", wrong), exporters.EXPORTERS[1]])
    network = Branch(3, 1).eval()
    assert export(network, (torch.randn(4, 3),), tmp_path / "m.onnx") == "torchscript"
    monkeypatch.setattr(module, "EXPORTERS", [("wrong", wrong)])
    with pytest.raises(ModelError, match="its outputs in a batch of 1 differ from the network's by"):
        export(network, (torch.randn(4, 3),), tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()
