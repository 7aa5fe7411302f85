"""Vectors made for all layers at once are each layer's own product, rounded once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from dq_deploy.graph.writing.channel_steps import ChannelSteps

BUCKETS = np.array([2, 0, 1, 2])
RANDOM = np.random.default_rng(0)


def evaluated(steps, ask):
    """Values of what `ask` takes of the tables, for BUCKETS, and the number of nodes."""
    bucket = ir.Value(name="bucket", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B"]))
    end = ir.node("Identity", [bucket], name="end")
    end.outputs[0].name, end.outputs[0].type = "y", bucket.type
    graph = ir.Graph([bucket], end.outputs, nodes=[end], opset_imports={"": 21}, name="steps")
    tables = ChannelSteps(graph, end, steps)
    made = ask(tables)
    tables.write(bucket)
    constants = [value.const_value.numpy() for value in made if value.const_value is not None]
    if constants:
        return constants, len(graph) - 1
    graph.outputs.extend(made)
    run = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10)))
    return run.run(None, {"bucket": BUCKETS})[1:], len(graph) - 1


@pytest.mark.parametrize(
    ("rank", "axis", "shape"),
    [(2, 1, (5,)), (3, 2, (1, 5)), (4, 3, (1, 1, 5)), (4, 2, (1, 5, 1))],
    ids=["rank 2", "rank 3", "rank 4", "rank 4, third axis"],
)
def test_vectors_of_one_length_are_made_together_and_are_products_rounded_once(rank, axis, shape):
    tables = RANDOM.standard_normal((3, 3)).astype(np.float32)
    values = RANDOM.standard_normal((3, 5)).astype(np.float32)
    made, nodes = evaluated(3, lambda s: [s.products(t, v, rank, axis) for t, v in zip(tables, values, strict=True)])
    for got, table, value in zip(made, tables, values, strict=True):
        np.testing.assert_array_equal(got, (table[BUCKETS][:, None] * value).reshape(len(BUCKETS), *shape))
    assert nodes == (4 if rank == 2 else 3)


def test_equal_vectors_are_made_once():
    table, value = np.array([1, 2, 3], np.float32), np.ones(4, np.float32)
    tables = ChannelSteps(ir.Graph([], [], nodes=[]), ir.node("Identity", []), 3)
    assert tables.products(table, value, 3, 2) is tables.products(table, value, 3, 2)
    assert tables.products(table, value, 3, 2) is not tables.products(table, value, 4, 2)


def test_codes_and_zero_points_are_the_sample_s_own():
    table = np.array([7, 0, 255])
    (codes, zero, ones), _ = evaluated(3, lambda s: [s.codes(table, 6, 4), s.zero_point(table), s.ones()])
    want = table.astype(np.uint8)[BUCKETS]
    np.testing.assert_array_equal(codes, np.broadcast_to(want.reshape(-1, 1, 1, 1), (4, 1, 1, 6)))
    np.testing.assert_array_equal(zero, want)
    np.testing.assert_array_equal(ones, np.ones(4, np.float32))
    assert codes.dtype == zero.dtype == np.uint8


def test_with_one_step_bucket_all_is_constant_and_no_node_is_written():
    table, value = np.array([0.3], np.float32), RANDOM.standard_normal(4).astype(np.float32)
    made, nodes = evaluated(
        1,
        lambda s: [s.products(table, value, 4, 2), s.codes(np.array([9]), 3, 3), s.zero_point(np.array([9])), s.ones()],
    )
    np.testing.assert_array_equal(made[0], (table[0] * value).reshape(1, 1, 4, 1))
    np.testing.assert_array_equal(made[1], np.full((1, 1, 3), 9, np.uint8))
    assert made[2].tolist() == 9
    assert made[3].tolist() == 1
    assert nodes == 0
