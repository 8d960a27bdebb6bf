"""Attacks on the ONNX file: hidden text, second networks, payloads, functions and operators in training mode."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from glprune.schema import bundle as bundles
from tests.unit.audit.attack import Attack

TEXT = "the applicant is refused " * 1040  # 26 kB
INPUT, OUTPUT = "features", "prediction"


def graph(change):
    def edit(copy):
        model = copy.model()
        change(model)
        copy.put(model)

    return edit


def constant(model, name, array):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return name


def payload(dtype):
    return lambda model: constant(model, "payload", np.frombuffer(TEXT.encode()[:24000], dtype=dtype))


def first(model, op_type="Gemm"):
    return next(n for n in model.graph.node if n.op_type == op_type)


def text_at(*path):
    """Write the text into a field."""

    def change(model):
        at = model
        for name in path[:-1]:
            at = at[name] if isinstance(name, int) else getattr(at, name)
        setattr(at, path[-1], TEXT)

    return change


def metadata_on(*path):
    def change(model):
        at = model
        for name in path:
            at = at[name] if isinstance(name, int) else getattr(at, name)
        at.metadata_props.add(key="note", value=TEXT)

    return change


def attribute_documentation(model):
    first(model).attribute[0].doc_string = TEXT


def denotation(model):
    model.graph.input[0].type.denotation = TEXT


def axis_denotation(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = TEXT


def axis_name(model):
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = TEXT


def annotation(model):
    note = model.graph.quantization_annotation.add(tensor_name=first(model).input[1])
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=TEXT)


def value_info(model):
    model.graph.value_info.append(helper.make_tensor_value_info(TEXT, TensorProto.FLOAT, [1]))


def training_graph(model):
    info = model.training_info.add()
    info.algorithm.name = TEXT


def overload(model):
    first(model).overload = TEXT


def device(model):
    model.configuration.add(name=TEXT, num_devices=1)


def spaced_metadata(model):
    entry = next(p for p in model.metadata_props if p.key == "glprune.inputs")
    entry.value = entry.value.replace(",", "," + " " * 26_000, 1)
    assert json.loads(entry.value)


def repeated_key(model):
    entry = next(p for p in model.metadata_props if p.key == "glprune.task")
    model.metadata_props.insert(0, onnx.StringStringEntryProto(key=entry.key, value=TEXT))


def key_of_its_own(model):
    model.metadata_props.add(key="glprune.note", value=TEXT)


def long_value_name(model):
    node, other = model.graph.node[0], model.graph.node[1]
    other.input[list(other.input).index(node.output[0])] = TEXT
    node.output[0] = TEXT


def invisible_name(model):
    model.graph.node[0].name = "a\u200b\u202eb"


def value_beside_the_attribute(model):
    next(a for a in first(model).attribute if a.name == "transB").s = TEXT.encode()


def list_beside_the_attribute(model):
    next(a for a in first(model).attribute if a.name == "transB").floats.extend([0.5] * 6000)


def text_tensor(model):
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [TEXT.encode()]))


def text_constant(model):
    model.graph.node.append(helper.make_node("Constant", [], ["words"], "words", value_string=TEXT))


def second_network(model):
    """A network of its own beside the certified one, whose output is not returned."""
    weight = constant(
        model, "other", np.ones((model.graph.input[0].type.tensor_type.shape.dim[1].dim_value, 4), "f")
    )
    model.graph.node.append(helper.make_node("MatMul", [INPUT, weight], ["hidden"], "other"))
    model.graph.node.append(helper.make_node("Relu", ["hidden"], ["refused"], "other_relu"))


def dead_branch(model):
    """A second reading of a hidden layer that nothing uses."""
    model.graph.node.append(
        helper.make_node("Sigmoid", [model.graph.node[0].output[0]], ["unused"], "unused")
    )


def payload_by_its_shape(model):
    """A payload of which the model uses the number of axes only."""
    payload(np.float32)(model)
    last = model.graph.node[-1]
    last.output[0] = "honest"
    zero = constant(model, "zero", np.float32(0))
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["payload"], ["shape"], "shape"),
            helper.make_node("Cast", ["shape"], ["size"], "size", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["size", zero], ["nil"], "nil"),
            helper.make_node("Add", ["honest", "nil"], [OUTPUT], "sum"),
        ]
    )


def _value(name, shape=None):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _branch(name, outputs, nodes, initializers=()):
    return helper.make_graph(nodes, name, [], [_value(o) for o in outputs], list(initializers))


def _through_if(model, branches):
    """Let the prediction pass an If whose branches both return it."""
    last = model.graph.node[-1]
    last.output[0] = "honest"
    yes = constant(model, "yes", np.array(True))
    names = [OUTPUT, *(f"rest_{n}" for n in range(len(branches[0].output) - 1))]
    node = helper.make_node("If", [yes], names, "branch", then_branch=branches[0], else_branch=branches[1])
    model.graph.node.append(node)


def payload_in_a_branch(model):
    note = numpy_helper.from_array(np.frombuffer(TEXT.encode()[:24000], "f4"), "note")
    same = [helper.make_node("Identity", ["honest"], ["a"], "same")]
    other = [helper.make_node("Identity", ["honest"], ["b"], "also")]
    _through_if(model, [_branch("then", ["a"], same, [note]), _branch("else", ["b"], other)])


def dead_node_in_a_branch(model):
    same = [helper.make_node("Identity", ["honest"], ["a"], "same")]
    other = [
        helper.make_node("Identity", ["honest"], ["b"], "also"),
        helper.make_node("Exp", ["honest"], ["c"], "dead"),
    ]
    _through_if(model, [_branch("then", ["a"], same), _branch("else", ["b"], other)])


def payload_returned_by_a_branch(model):
    payload(np.float32)(model)
    pairs = [
        _branch(name, [f"{name}_a", f"{name}_p"], [
            helper.make_node("Identity", ["honest"], [f"{name}_a"], name),
            helper.make_node("Identity", ["payload"], [f"{name}_p"], f"{name}_p"),
        ])
        for name in ("then", "else")
    ]  # fmt: skip
    _through_if(model, pairs)


def payload_carried_by_a_loop(model):
    """A loop carries the payload from turn to turn; nothing reads it."""
    payload(np.float32)(model)
    last = model.graph.node[-1]
    last.output[0] = "honest"
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"], "again"),
            helper.make_node("Identity", ["x"], ["x_out"], "x"),
            helper.make_node("Identity", ["p"], ["p_out"], "p"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            _value("x"),
            _value("p"),
        ],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), _value("x_out"), _value("p_out")],
    )
    once, yes = constant(model, "once", np.array(1)), constant(model, "yes", np.array(True))
    inputs = [once, yes, "honest", "payload"]
    model.graph.node.append(helper.make_node("Loop", inputs, [OUTPUT, "carried"], "loop", body=body))


def training_dropout(model):
    last = model.graph.node[-1]
    last.output[0] = "honest"
    ratio, mode = constant(model, "ratio", np.float32(0.5)), constant(model, "mode", np.array(True))
    model.graph.node.append(helper.make_node("Dropout", ["honest", ratio, mode], [OUTPUT], "drop"))


def hidden_training_dropout(model):
    """Dropout whose mode is computed, so that no constant shows it."""
    last = model.graph.node[-1]
    last.output[0] = "honest"
    ratio, zero = constant(model, "ratio", np.float32(0.5)), constant(model, "zero", np.float32(0))
    model.graph.node.extend(
        [
            helper.make_node("Equal", [zero, zero], ["mode"], "mode"),
            helper.make_node("Dropout", ["honest", ratio, "mode"], [OUTPUT], "drop"),
        ]
    )


def training_batch_norm(model):
    last = model.graph.node[-1]
    last.output[0] = "honest"
    one, zero = constant(model, "one", np.ones(1, "f")), constant(model, "none", np.zeros(1, "f"))
    inputs, outputs = ["honest", one, zero, zero, one], [OUTPUT, "mean", "variance"]
    model.graph.node.append(helper.make_node("BatchNormalization", inputs, outputs, "norm", training_mode=1))


def unused_function(model):
    body = [helper.make_node("Identity", ["x"], ["y"])]
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(
        helper.make_function("glprune", "Note", ["x"], ["y"], body, opset, doc_string=TEXT)
    )


def nested_functions(model):
    """Each function calls the one before it twice: 2 to the 28 nodes for a checker that inlines them."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    body = [helper.make_node("Identity", ["x"], ["y"])]
    for level in range(28):
        model.functions.append(helper.make_function("f", f"F{level}", ["x"], ["y"], body, opsets))
        call = f"F{level}"
        body = [
            helper.make_node(call, ["x"], ["z"], domain="f"),
            helper.make_node(call, ["z"], ["y"], domain="f"),
        ]
    model.opset_import.append(helper.make_opsetid("f", 1))
    last = model.graph.node[-1]
    last.output[0] = "honest"
    model.graph.node.append(helper.make_node("F27", ["honest"], [OUTPUT], "calls", domain="f"))


def stored(change, file=bundles.ONNX):
    """Change how the first initializer of a file is stored."""

    def edit(copy):
        model = onnx.load_from_string((copy / file).read_bytes())
        change(model.graph.initializer[0])
        (copy / file).write_bytes(model.SerializeToString(deterministic=True))

    return edit


def of_type(number):
    return lambda tensor: setattr(tensor, "data_type", number)


def of_shape(*dims):
    return lambda tensor: tensor.dims.__setitem__(slice(None), dims)


def cut_off(tensor):
    tensor.raw_data = tensor.raw_data[:-1]


def in_the_field_of_another_type(tensor):
    values = numpy_helper.to_array(tensor).ravel().tolist()
    tensor.ClearField("raw_data")
    tensor.double_data.extend(values)


def constant_without_a_type(model):
    model.graph.node.insert(
        0, helper.make_node("Constant", [], ["none"], value=TensorProto(raw_data=b"abcd"))
    )


STORAGE = {
    "a weight without a data type": of_type(TensorProto.UNDEFINED),
    "a weight of an unknown data type": of_type(999),
    "a weight whose data type is a negative number": of_type(-(2**31)),
    "a weight of a data type that its bytes do not fill": of_type(TensorProto.COMPLEX128),
    "a weight of text": of_type(TensorProto.STRING),
    "a weight without a shape": of_shape(),
    "a weight whose shape is larger than its values": of_shape(7, 2**40),
    "a weight with a size below zero": of_shape(-1),
    "a weight with two sizes below zero": of_shape(-1, -1),
    "a weight of 100 axes": of_shape(*[1] * 100),
    "a weight whose last byte is missing": cut_off,
    "a weight whose values are in the field of another type": in_the_field_of_another_type,
}
"""Ways to store an initializer from which no values follow; C6 names the initializer."""


def attack(name, change, base="slim", check="C6"):
    return Attack(name, base, graph(change), check)


ATTACKS = [
    attack("26 kB of text in an unused initializer of bytes", payload(np.uint8)),
    attack("26 kB of an unused initializer of numbers", payload(np.float32)),
    attack("an unused initializer of positions", payload(np.int64)),
    attack("an initializer of which the model uses the shape only", payload_by_its_shape),
    attack("a second network beside the certified one", second_network),
    attack("a second network in a file that selects its columns", second_network, "wide"),
    attack("a node whose result nothing uses", dead_branch),
    attack("an initializer in a branch that nothing uses", payload_in_a_branch),
    attack("a node in a branch that nothing uses", dead_node_in_a_branch),
    attack("a payload returned by branches, which no node reads", payload_returned_by_a_branch),
    attack("a payload carried through a loop, which no node reads", payload_carried_by_a_loop),
    attack("documentation of the model", text_at("doc_string")),
    attack("documentation of the graph", text_at("graph", "doc_string")),
    attack("documentation of a node", text_at("graph", "node", 0, "doc_string")),
    attack("documentation of an attribute", attribute_documentation),
    attack("documentation of a weight", text_at("graph", "initializer", 0, "doc_string")),
    attack("documentation of an input", text_at("graph", "input", 0, "doc_string")),
    attack("metadata of the graph", metadata_on("graph")),
    attack("metadata of a node", metadata_on("graph", "node", 0)),
    attack("metadata of a weight", metadata_on("graph", "initializer", 0)),
    attack("metadata of an output", metadata_on("graph", "output", 0)),
    attack("metadata under a key that glprune does not write", key_of_its_own),
    attack("a key of the metadata twice", repeated_key),
    attack("26 kB of spaces in the metadata", spaced_metadata),
    attack("denotation of an input", denotation),
    attack("denotation of an axis", axis_denotation),
    attack("26 kB of text as the name of an axis", axis_name),
    attack("26 kB of text as the name of a node", text_at("graph", "node", 0, "name")),
    attack("26 kB of text as the name of a value", long_value_name),
    attack("26 kB of text as the name of the graph", text_at("graph", "name")),
    attack("26 kB of text as the name of the exporter", text_at("producer_name")),
    attack("26 kB of text as the domain of the model", text_at("domain")),
    attack("an invisible character in the name of a node", invisible_name),
    attack("an annotation of quantisation", annotation),
    attack("a stated shape of a value that does not exist", value_info),
    attack("a graph for training", training_graph),
    attack("an overload of an operator", overload),
    attack("a configuration of devices", device),
    attack("text beside the number of an attribute", value_beside_the_attribute),
    attack("numbers beside the number of an attribute", list_beside_the_attribute),
    attack("a tensor of text", text_tensor),
    attack("a constant text", text_constant),
    attack("a function that is not called", unused_function),
    attack("functions that call each other, 28 levels deep", nested_functions),
    attack("Dropout in training mode", training_dropout),
    attack("Dropout whose training mode is computed", hidden_training_dropout),
    attack("BatchNormalization in training mode", training_batch_norm),
    attack("a constant without a data type", constant_without_a_type),
    *(Attack(name, "slim", stored(change), "C6") for name, change in STORAGE.items()),
    *(
        Attack(f"in {file}: {name}", "kept", stored(STORAGE[name], file), "C6")
        for file in (bundles.INT8, bundles.ORIGINAL)
        for name in ("a weight without a data type", "a weight of an unknown data type")
    ),
]
