"""Accumulators of a graph whose products run on scaled weights: a second product beside each, on its integers alone.

A graph for TensorRT multiplies the values of DequantizeLinear, and the scale of the weights is in them. On another
engine its product is a float sum and not the accumulator. The second product takes the same tensor of codes and the
same weight initializer and multiplies those: in int32 as MatMulInteger, or as Conv in float32 on weights split into
high and low halves where one float32 could not hold the sum.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import ModelError
from dq_deploy.graph.onnx_file import read_manifest
from dq_deploy.manifest.values import ManifestPart
from dq_deploy.numerics import FLOAT32_EXACT

if TYPE_CHECKING:
    import onnx

LARGEST_CODE = 128
LARGEST_WEIGHT = {"int4": 8, "int8": 128}
SPLIT = 16.0
"""Weights are split as w = 16 * high + low with high in [-8, 7] and low in [0, 15]."""


def graph_note(target: str) -> str:
    """What a comparison of a graph shows and what it does not."""
    return (
        f"this is the graph for {target}, run by ONNX Runtime with its optimizations off, and not the engine: codes "
        "and accumulators are those the graph defines; which kernels run in integers is shown by the plan built from it"
    )


def integer_products(path: Path) -> list[onnx.NodeProto]:
    """Nodes that make the tensors the manifest names as accumulators, to be added to a copy of the graph.

    Args:
        path: ONNX file of a TensorRT target, with its manifest.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    made = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for layer in read_manifest(path).layers:
        for part in layer.parts or ():
            if part.accumulator and part.accumulator not in made and part.node is not None and part.node in made:
                nodes += integer_product_nodes(part, made[part.node])
    return nodes


def integer_product_nodes(part: ManifestPart, product: onnx.NodeProto) -> list[onnx.NodeProto]:
    """One product on its integers: nodes that end in the tensor the part names as its accumulator.

    Args:
        part: its manifest entry.
        product: its MatMul or Conv in the graph.
    """
    from onnx import TensorProto, helper

    out, weight, rows, shape = str(part.accumulator), str(part.weight), str(part.rows), part.product
    if shape is None or part.weight_type not in LARGEST_WEIGHT:
        raise ModelError(f"the manifest's part with node {part.node} has no product or weight type; export it again")
    if shape.kind == "gemm":
        nodes = []
        if part.weight_type == "int4":
            nodes.append(helper.make_node("Cast", [weight], [f"{out}/weight"], to=TensorProto.INT8))
            weight = f"{out}/weight"
        return [*nodes, helper.make_node("MatMulInteger", [rows, weight], [out])]
    nodes = [
        helper.make_node("Cast", [rows], [f"{out}/codes"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [weight], [f"{out}/weight"], to=TensorProto.FLOAT),
    ]
    terms = (shape.c or 0) * prod(shape.kernel or ())
    attributes = {a.name: helper.get_attribute_value(a) for a in product.attribute}
    if terms * LARGEST_CODE * LARGEST_WEIGHT[part.weight_type] < FLOAT32_EXACT:
        return [*nodes, helper.make_node("Conv", [f"{out}/codes", f"{out}/weight"], [out], **attributes)]
    return nodes + _split(out, attributes)


def _split(out: str, attributes: dict[str, Any]) -> list[onnx.NodeProto]:
    """Two convolutions, of the high and of the low parts of the weights, added in float64."""
    from onnx import TensorProto, helper

    codes, weight = f"{out}/codes", f"{out}/weight"
    sixteen = helper.make_tensor("", TensorProto.FLOAT, [], [SPLIT])
    wide = helper.make_tensor("", TensorProto.DOUBLE, [], [SPLIT])
    return [
        helper.make_node("Constant", [], [f"{out}/sixteen"], value=sixteen),
        helper.make_node("Constant", [], [f"{out}/wide"], value=wide),
        helper.make_node("Div", [weight, f"{out}/sixteen"], [f"{out}/divided"]),
        helper.make_node("Floor", [f"{out}/divided"], [f"{out}/high"]),
        helper.make_node("Mul", [f"{out}/high", f"{out}/sixteen"], [f"{out}/high_part"]),
        helper.make_node("Sub", [weight, f"{out}/high_part"], [f"{out}/low"]),
        helper.make_node("Conv", [codes, f"{out}/high"], [f"{out}/a"], **attributes),
        helper.make_node("Conv", [codes, f"{out}/low"], [f"{out}/b"], **attributes),
        helper.make_node("Cast", [f"{out}/a"], [f"{out}/a_wide"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", [f"{out}/b"], [f"{out}/b_wide"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", [f"{out}/a_wide", f"{out}/wide"], [f"{out}/a_shifted"]),
        helper.make_node("Add", [f"{out}/a_shifted", f"{out}/b_wide"], [out]),
    ]
