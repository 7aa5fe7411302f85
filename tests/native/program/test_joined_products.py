"""Products of the same codes are one: q, k and v; what is another product stays one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dq_deploy import numerics
from dq_deploy.native.program.joined_products import columns_of, joined_layer, with_joined_products
from dq_deploy.native.program.program import Buffer, Op, Program, View, at_batch, from_json
from dq_deploy.native.trace.traced import traced_program
from tests.graph.passes.single_layer import random_layer
from tests.tiny import random_record, tiny_conditional_denoiser, with_shared_quantizers

CODES = View(buffer=0, offset=0, sizes=(2, 3, 8), strides=(48, 16, 1))


def layers_of(*outputs, **changes):
    """Linear layers of one quantizer: each with weights, scales and a bias of its own."""
    found = {}
    for index, count in enumerate(outputs):
        rng = np.random.default_rng(index)
        layer = random_layer(rng, kind="linear", widths=(8,), outputs=count, weight_bits=8)
        first = next(iter(found.values()), layer).parts[0]
        own = {name: getattr(first, name) for name in ("pre", "scale", "zero_point")}
        part = dataclasses.replace(layer.parts[0], **own)
        found[f"l{index}"] = dataclasses.replace(layer, name=f"l{index}", parts=(part,), **changes)
    return found


def program_of(layers, *, readers="attention", outputs=()):
    """A product of each layer, all of the same codes, and who reads them."""
    buffers, ops = [Buffer(elements=96, dtype="uint8")], []
    for name, layer in layers.items():
        n = layer.out_channels
        y = View(buffer=len(buffers), offset=0, sizes=(2, 3, n), strides=(3 * n, n, 1))
        attributes = {"layer": name, "part": 0, "final": True, "padded": [0, 0, 0, 0]}
        ops.append(Op(kind="int_linear", reads={"codes": CODES}, writes={"y": y}, attributes=attributes))
        buffers.append(Buffer(elements=6 * n, dtype="float32"))
    made = View(buffer=len(buffers), offset=0, sizes=(1,), strides=(1,))
    heads = {op.attributes["layer"]: _heads(op.writes["y"]) for op in ops}
    ops.append(Op(kind=readers, reads=heads, writes={"y": made}))
    results = {name: ops[i].writes["y"] for i, name in enumerate(layers) if name in outputs}
    buffers.append(Buffer(elements=1, dtype="float32"))
    return Program(buffers=tuple(buffers), inputs={"x": CODES}, outputs={"y": made, **results}, ops=tuple(ops))


def _heads(y):
    """A result as [B, heads, rows, 2]."""
    (b, rows, n), (sb, sr, _) = y.sizes, y.strides
    return View(buffer=y.buffer, offset=y.offset, sizes=(b, n // 2, rows, 2), strides=(sb, 2, sr, 1))


def test_three_products_are_one_and_their_reader_sees_its_own_columns():
    layers = layers_of(4, 6, 4)
    made = with_joined_products(program_of(layers), layers)
    product, reader = made.program.ops
    assert columns_of(product) == [("l0", 4), ("l1", 6), ("l2", 4)]
    assert product.writes["y"].sizes == (2, 3, 14)
    assert product.writes["y"].strides == (42, 14, 1)
    assert [view.offset for view in reader.reads.values()] == [0, 4, 10]
    assert [view.strides for view in reader.reads.values()] == [(42, 2, 14, 1)] * 3
    assert len(made.program.buffers) == 3
    assert set(made.layers) == {"l0+l1+l2"}


def test_the_joined_layer_gives_the_bits_of_each():
    layers = layers_of(4, 6)
    x, step = np.random.default_rng(9).normal(0, 6, (5, 3, 8)).astype(np.float32), np.arange(5) % 3
    whole = numerics.integer_layer(joined_layer(list(layers.values())), x, step)
    first, second = (numerics.integer_layer(layer, x, step) for layer in layers.values())
    np.testing.assert_array_equal(whole.output, np.concatenate([first.output, second.output], axis=-1))
    both = [first.accumulators[0], second.accumulators[0]]
    np.testing.assert_array_equal(whole.accumulators[0], np.concatenate(both, axis=-1))


def other_scale(layer):
    part = layer.parts[0]
    return dataclasses.replace(layer, parts=(dataclasses.replace(part, scale=part.scale * np.float32(2)),))


@pytest.mark.parametrize(
    "change",
    [
        other_scale,
        lambda layer: dataclasses.replace(layer, bias=None),
        lambda layer: dataclasses.replace(layer, bias=np.stack([layer.bias] * 3)),
    ],
    ids=["another scale", "no bias, whose sum keeps the sign of a zero", "a bias by step"],
)
def test_a_layer_that_ends_otherwise_stays_alone(change):
    layers = layers_of(4, 4, 4)
    layers["l1"] = change(layers["l1"])
    made = with_joined_products(program_of(layers), layers)
    assert [columns_of(op) for op in made.program.ops[:2]] == [[("l0", 4), ("l2", 4)], [("l1", None)]]


@pytest.mark.parametrize("given", [{"readers": "layer_norm_quantize"}, {"outputs": ("l0", "l1")}])
def test_results_that_must_lie_as_they_do_stay_apart(given):
    layers = layers_of(4, 4)
    made = with_joined_products(program_of(layers, **given), layers)
    assert made.layers == {}
    assert [columns_of(op) for op in made.program.ops[:2]] == [[("l0", None)], [("l1", None)]]


def test_a_denoisers_self_attention_has_one_product_for_three():
    record = with_shared_quantizers(random_record(tiny_conditional_denoiser()))
    program = from_json(at_batch(traced_program(record), 2))
    made = with_joined_products(program, record.layers)
    products = [columns_of(op) for op in made.program.ops if op.kind == "int_linear"]
    joined = [[name for name, _ in columns] for columns in products if len(columns) > 1]
    own = [names for names in joined if "attn1" in names[0]]
    assert own
    assert all([name.rpartition(".")[2] for name in names] == ["to_q", "to_k", "to_v"] for names in own)
    before = sum(op.kind == "int_linear" for op in program.ops)
    assert len(products) == before - sum(len(names) - 1 for names in joined)
