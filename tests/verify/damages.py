"""Single edits of one exported class-conditional engine, each a fault that an exporter or a hand could make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.verify import sabotage
from tests.verify.sabotage import Engine

LAYER = "down_blocks.0.resnets.0.conv2"
OTHER = "up_blocks.1.resnets.0.conv2"
LINEAR = "mid_block.attentions.0.to_k"
NORM = "norm/down_blocks.0.resnets.0.norm2"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One edit.

    Attributes:
        edit: done to the engine.
        named: what the comparison with the record must name.
        runs: whether running the engine shows it too, without that comparison.
    """

    edit: Callable[[Engine], None]
    named: str
    runs: bool = True


def constant_of(engine: Engine, node: str, index: int) -> str:
    """A constant of one node alone: a shared one is stored again under a name of its own."""
    name = engine.node(node).input[index]
    users = [n for n in engine.graph.node if name in n.input]
    if len(users) == 1:
        return name
    own = engine.add_constant(f"{node}/own", engine.array(name))
    engine.node(node).input[index] = own
    return own


def change(node: str, index: int, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Engine], None]:
    """Edit the constant a node reads."""

    def edit(engine: Engine) -> None:
        name = constant_of(engine, node, index)
        array = engine.array(name)
        engine.store(name, np.asarray(how(array), array.dtype).reshape(array.shape))

    return edit


def values(node: str, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Engine], None]:
    """Edit the channels' values behind a node's second input, which is looked up by step."""
    return lambda engine: engine.change_values(engine.node(node).input[1], how)


def on(op_type: str, how: Callable[[onnx.NodeProto, Engine], None], *, at: int = 0) -> Callable[[Engine], None]:
    """Edit a node of a type, in the order of the graph."""

    def edit(engine: Engine) -> None:
        nodes = [n for n in engine.graph.node if n.op_type == op_type and not n.name.startswith("dq/")]
        how(nodes[at], engine)

    return edit


def parameter(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Engine], None]:
    """Edit a constant by its name."""

    def edit(engine: Engine) -> None:
        array = engine.array(name)
        engine.store(name, np.asarray(how(array), array.dtype))

    return edit


def attribute(node: str, key: str, value: object) -> Callable[[Engine], None]:
    """Give an attribute of a node another value."""

    def edit(engine: Engine) -> None:
        set_attribute(engine.node(node), key, value)

    return edit


def set_attribute(node: onnx.NodeProto, key: str, value: object) -> None:
    kept = [a for a in node.attribute if a.name != key]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(key, value)])


def renamed(node: onnx.NodeProto, op_type: str) -> None:
    node.op_type = op_type


def swap(array: np.ndarray, first: int, second: int) -> np.ndarray:
    """Two rows exchanged."""
    found = array.copy()
    found[[first, second]] = array[[second, first]]
    return found


def one_more(array: np.ndarray) -> np.ndarray:
    """The last value becomes the next float."""
    found = array.copy()
    flat = found.reshape(-1)
    flat[-1] = np.nextafter(flat[-1], np.float32(np.inf))
    return found


def frequencies(engine: Engine) -> None:
    product = engine.node(producer(engine, first(engine, "Sin").input[0]))
    name = next(n for n in product.input if n in {t.name for t in engine.graph.initializer})
    engine.store(name, engine.array(name) * np.float32(1.5))


def first(engine: Engine, op_type: str) -> onnx.NodeProto:
    return next(n for n in engine.graph.node if n.op_type == op_type)


def producer(engine: Engine, value: str) -> str:
    return next(n.name for n in engine.graph.node if value in n.output)


def exchange(engine: Engine, a: str, b: str) -> None:
    """Two nodes of one input and one output change places: each makes what the other made."""
    one, two = first(engine, a), first(engine, b)
    one.op_type, two.op_type = b, a


def cast_timestep(engine: Engine) -> None:
    """The timestep is made whole before the embedding sees it."""
    users = [n for n in engine.graph.node if "timestep" in n.input and not n.name.startswith("dq/")]
    engine.insert_before(
        users[0].name,
        [
            helper.make_node("Cast", ["timestep"], ["whole"], to=TensorProto.INT64, name="whole"),
            helper.make_node("Cast", ["whole"], ["whole_float"], to=TensorProto.FLOAT, name="whole_float"),
        ],
    )
    for node in users:
        for i, name in enumerate(node.input):
            if name == "timestep":
                node.input[i] = "whole_float"


def skip_node(op_type: str, at: int = 0) -> Callable[[Engine], None]:
    """A node is taken out: its first input takes its place."""

    def how(node: onnx.NodeProto, engine: Engine) -> None:
        value, source = node.output[0], node.input[0]
        engine.graph.node.remove(node)
        for user in engine.graph.node:
            for i, name in enumerate(user.input):
                if name == value:
                    user.input[i] = source

    return on(op_type, how, at=at)


def extra_node(engine: Engine) -> None:
    """The output of the last norm passes a product by 1.0001."""
    anchor = engine.node("norm/conv_norm_out/out")
    value = anchor.output[0]
    anchor.output[0] = f"{value}/inner"
    factor = engine.add_constant("more", np.float32(1.0001))
    at = list(engine.graph.node).index(anchor) + 1
    engine.graph.node.insert(at, helper.make_node("Mul", [anchor.output[0], factor], [value], name="more"))


def renamed_output(engine: Engine) -> None:
    last = next(n for n in engine.graph.node if "output" in n.output)
    last.output[0] = engine.graph.output[0].name = "result"


def residual_dropped(engine: Engine) -> None:
    """The second operand of a residual sum becomes the first once more."""
    node = next(n for n in engine.graph.node if n.op_type == "Add" and f"dq/{LAYER}/out" in n.input)
    other = next(i for i, name in enumerate(node.input) if name == f"dq/{LAYER}/out")
    node.input[other] = node.input[1 - other]


def reversed_inputs(node: onnx.NodeProto, _engine: Engine) -> None:
    names = list(node.input)
    del node.input[:]
    node.input.extend(reversed(names))


def gelu_for_silu(node: onnx.NodeProto, engine: Engine) -> None:
    """x * sigmoid(1.702 x), as GELU is often approximated."""
    factor = engine.add_constant("gelu", np.float32(1.702))
    engine.insert_before(node.name, [helper.make_node("Mul", [node.input[0], factor], ["steep"], name="steep")])
    node.input[0] = "steep"


def floor_first(engine: Engine) -> None:
    """A layer's codes are of whole numbers below its scaled input."""
    codes = engine.node(f"dq/{LAYER}/codes")
    engine.insert_before(codes.name, [helper.make_node("Floor", [codes.input[0]], ["below"], name="below")])
    codes.input[0] = "below"


def a_type(engine: Engine) -> onnx.ValueInfoProto:
    """What a file may say of the first node's result."""
    return helper.make_tensor_value_info(engine.graph.node[0].output[0], TensorProto.FLOAT, None)


def tenth_bucket(engine: Engine) -> None:
    """Samples of bucket 1 read the tables of bucket 0."""
    name = engine.table_behind(engine.node(f"dq/{LAYER}/scaled").input[1])
    table = engine.array(name)
    table[1] = table[0]
    engine.store(name, table)


def half_precision(engine: Engine) -> None:
    """A bias stored in float16."""
    node = engine.node(f"dq/{LAYER}/biased")
    array = engine.array(node.input[1]).astype(np.float16)
    narrow = engine.add_constant("narrow", array)
    engine.insert_before(node.name, [helper.make_node("Cast", [narrow], ["wide"], to=TensorProto.FLOAT, name="wide")])
    node.input[1] = "wide"


def wrong_opset(engine: Engine) -> None:
    next(entry for entry in engine.proto.opset_import if not entry.domain).version = 20


def double(array: np.ndarray) -> np.ndarray:
    return array * 2


def bare_node(engine: Engine) -> None:
    """A node that says neither its name nor what it makes."""
    node = engine.graph.node[4]
    node.ClearField("output")
    node.name = ""


def attribute_twice(engine: Engine) -> None:
    """Which of the two counts is the reader's choice."""
    node = next(n for n in engine.graph.node if n.attribute)
    node.attribute.append(node.attribute[0])


def referring(engine: Engine) -> None:
    """An attribute that is taken from a function's, outside of any."""
    attribute = next(a for n in engine.graph.node for a in n.attribute if a.type == onnx.AttributeProto.INT)
    attribute.ref_attr_name = "other"


SIN_COS = "dq/conv_in"
DAMAGES: dict[str, Damage] = {
    # weights, scales, biases, bounds and zero points of integer layers
    "weight code": Damage(edit=lambda e: sabotage.flip_weight_code(e, LAYER), named=f"dq/{LAYER}/weight"),
    "weight code of a linear layer": Damage(
        edit=lambda e: sabotage.flip_weight_code(e, LINEAR), named=f"dq/{LINEAR}/weight"
    ),
    "weight scale by one ulp": Damage(edit=values(f"dq/{LAYER}/scaled", one_more), named="/values", runs=False),
    "weight scale of a channel": Damage(
        edit=values(f"dq/{LAYER}/scaled", lambda a: a * np.float32(1.001)), named="/values"
    ),
    "pre": Damage(edit=values(f"dq/{LAYER}/scaled_input", lambda a: a * np.float32(1.01)), named="/values"),
    "bias": Damage(edit=change(f"dq/{LAYER}/biased", 1, lambda a: a + np.float32(1e-3)), named=f"dq/{LAYER}/biased"),
    "bias by one ulp": Damage(edit=change(f"dq/{LAYER}/biased", 1, one_more), named="biased", runs=False),
    "sum of weights": Damage(edit=values(f"dq/{LAYER}/canonical", lambda a: a + 1), named="/values"),
    "activation scale": Damage(
        edit=lambda e: e.change_column(e.node(f"dq/{LAYER}/scaled").input[1], 1, 1e-3), named="dq/steps/"
    ),
    "zero point": Damage(edit=lambda e: sabotage.shift_zero_point(e, LAYER, 1), named="dq/const/"),
    "code of the padding": Damage(edit=lambda e: sabotage.pad_with_another_code(e, LAYER), named=f"dq/{LAYER}/padded"),
    "padded pixel": Damage(edit=lambda e: sabotage.pad_with_neighbour(e, LAYER), named=f"dq/{LAYER}/gathered"),
    "tables swapped": Damage(edit=lambda e: sabotage.swap_output_tables(e, LAYER, OTHER), named="scaled"),
    "input tables swapped": Damage(edit=lambda e: sabotage.swap_input_tables(e, LAYER, OTHER), named="scaled_input"),
    "step edge": Damage(edit=lambda e: sabotage.move_edge(e, 0), named="dq/steps/edges"),
    "bucket": Damage(edit=tenth_bucket, named="/table"),
    "edge compared otherwise": Damage(
        edit=lambda e: renamed(e.node("dq/steps/passed"), "Greater"), named="dq/steps/passed"
    ),
    "product in float": Damage(edit=lambda e: sabotage.fall_back_to_float(e, LAYER), named=f"dq/{LAYER}/product"),
    "rows of pixels transposed": Damage(
        edit=attribute(f"dq/{LAYER}/channels_first", "perm", [0, 1, 2]), named="channels_first"
    ),
    "rounded down": Damage(edit=lambda e: floor_first(e), named=f"dq/{LAYER}/codes"),
    "dtype of a constant": Damage(edit=half_precision, named=f"dq/{LAYER}/biased"),
    # norms
    "eps of a norm": Damage(edit=attribute(f"{NORM}/normalized", "epsilon", 1e-3), named=f"{NORM}/normalized"),
    "eps of a norm by a tenth": Damage(
        edit=attribute(f"{NORM}/normalized", "epsilon", 1.1e-5), named="epsilon", runs=False
    ),
    "scale of a norm": Damage(
        edit=change(f"{NORM}/scaled", 1, lambda a: a * np.float32(1.0001)), named=f"{NORM}/scaled"
    ),
    "offset of a norm": Damage(edit=change(f"{NORM}/out", 1, lambda a: a + np.float32(1e-4)), named=f"{NORM}/out"),
    "channels of a norm exchanged": Damage(
        edit=change(f"{NORM}/scaled", 1, lambda a: a[:, ::-1]), named=f"{NORM}/scaled"
    ),
    "groups of a norm": Damage(edit=lambda e: exchange_groups(e), named=f"{NORM}/grouped"),
    # activations, residuals, attention
    "silu becomes gelu": Damage(edit=on("Sigmoid", gelu_for_silu, at=3), named="Sigmoid"),
    "silu becomes relu": Damage(edit=on("Sigmoid", lambda n, _e: renamed(n, "Relu"), at=4), named="Relu"),
    "residual": Damage(edit=residual_dropped, named="(Add)"),
    "residual subtracted": Damage(
        edit=lambda e: renamed(
            next(n for n in e.graph.node if n.op_type == "Add" and f"dq/{LAYER}/out" in n.input), "Sub"
        ),
        named="Sub",
    ),
    "scale of attention": Damage(edit=lambda e: attention_scale(e), named="constant"),
    "softmax over another axis": Damage(edit=on("Softmax", lambda n, _e: set_attribute(n, "axis", -2)), named="axis"),
    "softmax dropped": Damage(edit=skip_node("Softmax"), named="Softmax"),
    "queries for keys": Damage(edit=on("MatMul", reversed_inputs), named="(MatMul)"),
    # up and down, joins
    "mode of upsampling": Damage(edit=on("Resize", lambda n, _e: set_attribute(n, "mode", "linear")), named="mode"),
    "rounding of upsampling": Damage(
        edit=on("Resize", lambda n, _e: set_attribute(n, "coordinate_transformation_mode", "align_corners")),
        named="coordinate_transformation_mode",
    ),
    "order of a concatenation": Damage(edit=on("Concat", reversed_inputs, at=-2), named="(Concat)"),
    # time and classes
    "time frequencies": Damage(edit=frequencies, named="constant"),
    "sine and cosine": Damage(edit=lambda e: exchange(e, "Sin", "Cos"), named="Cos"),
    "timestep made whole": Damage(edit=cast_timestep, named="whole"),
    "classes exchanged": Damage(
        edit=parameter("class_embedding.weight", lambda a: swap(a, 0, 2)), named="class_embedding"
    ),
    "a class scaled": Damage(
        edit=parameter("class_embedding.weight", lambda a: a * np.array([[1], [1.001], [1]])), named="class_embedding"
    ),
    "time embedding": Damage(
        edit=parameter("time_embedding.linear_1.weight", lambda a: swap(a, 0, 1)),
        named="time_embedding.linear_1.weight",
    ),
    "bias of the time embedding": Damage(
        edit=parameter("time_embedding.linear_2.bias", lambda a: a + np.float32(1e-4)), named="time_embedding.linear_2"
    ),
    "gain of a linear layer": Damage(edit=on("Gemm", lambda n, _e: set_attribute(n, "alpha", 1.001)), named="alpha"),
    # the graph itself
    "a node more": Damage(edit=extra_node, named="more"),
    "output renamed": Damage(edit=renamed_output, named="output"),
    "opset": Damage(edit=wrong_opset, named="opset", runs=False),
    "metadata": Damage(
        edit=lambda e: e.proto.metadata_props.append(onnx.StringStringEntryProto(key="note", value="x")),
        named="metadata",
        runs=False,
    ),
    "a constant of no known type": Damage(
        edit=lambda e: setattr(e.graph.initializer[0], "data_type", 99), named="unknown type 99", runs=False
    ),
    "an input of no known type": Damage(
        edit=lambda e: setattr(e.graph.input[0].type.tensor_type, "elem_type", 99), named="input sample", runs=False
    ),
    "a node without name and outputs": Damage(edit=bare_node, named="without a name", runs=False),
    "an attribute twice": Damage(edit=attribute_twice, named="there twice", runs=False),
    "a reference for an attribute": Damage(edit=referring, named="unreadable", runs=False),
    "values stored twice": Damage(
        edit=lambda e: next(t for t in e.graph.initializer if t.data_type == TensorProto.FLOAT).float_data.append(1),
        named="raw_data and float_data",
        runs=False,
    ),
    "a type written down twice": Damage(
        edit=lambda e: e.graph.value_info.extend([a_type(e), a_type(e)]), named="there twice", runs=False
    ),
    "words in a node": Damage(
        edit=lambda e: setattr(e.graph.node[3], "doc_string", "x"), named="doc_string", runs=False
    ),
    "words in the graph": Damage(edit=lambda e: setattr(e.graph, "doc_string", "x"), named="doc_string", runs=False),
    "another producer": Damage(
        edit=lambda e: setattr(e.proto, "producer_version", "9"), named="producer_version", runs=False
    ),
}


def attention_scale(engine: Engine) -> None:
    """Scores of the attention 1 % larger."""
    scores = next(n for n in engine.graph.node if n.op_type == "Mul" and n.output[0] in first(engine, "MatMul").input)
    constants = {t.name for t in engine.graph.initializer}
    name = next(n for n in scores.input if n in constants)
    engine.store(name, engine.array(name) * np.float32(1.01))


def exchange_groups(engine: Engine) -> None:
    """Half as many groups."""
    reshape = engine.node(f"{NORM}/grouped")
    shape = engine.array(reshape.input[1])
    shape[1] //= 2
    reshape.input[1] = engine.add_constant("groups", shape)
    norm = engine.node(f"{NORM}/normalized")
    for i in (1, 2):
        norm.input[i] = engine.add_constant(f"groups/{i}", engine.array(norm.input[i])[: shape[1]])
