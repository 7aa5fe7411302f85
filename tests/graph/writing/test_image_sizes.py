"""What is computed in the graph for an image of any size equals what is computed in front for one size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from dq_deploy import numerics
from dq_deploy.graph.passes.openvino_layers import sums_inside
from dq_deploy.graph.writing.builder import CONTRIB_DOMAIN, Builder
from dq_deploy.graph.writing.image_sizes import ImageSizes, fixed_size, padded_shape, weights_inside
from dq_deploy.numerics.geometry import Window

WINDOWS = (
    Window(kernel=(3, 3), padding=(1, 1, 1, 1)),
    Window(kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    Window(kernel=(3, 3), stride=(2, 2), padding=(0, 0, 1, 1)),
    Window(kernel=(2, 2), stride=(2, 2)),
    Window(kernel=(3, 2), padding=(2, 0, 1, 1), dilation=(2, 1)),
)
SIZES = ((8, 8), (5, 12), (4, 7))


def graph_with(make, size=("height", "width"), *, engine=None):
    """An evaluator of what `make` writes for an image x [B, 2, height, width]: ONNX's own, or ONNX Runtime."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", 2, *size]))
    end = ir.node("Identity", [x], name="end")
    end.outputs[0].name, end.outputs[0].type, end.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], end.outputs, nodes=[end], opset_imports={"": 21}, name="image")
    b = Builder(graph, end, "dq/layer")
    made = make(b, x)
    made.type = made.type or ir.TensorType(ir.DataType.INT64)
    graph.outputs.append(made)
    if engine == "onnxruntime":
        graph.opset_imports[CONTRIB_DOMAIN] = 1
        proto = ir.to_proto(ir.Model(graph, ir_version=10))
        return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10)))


def patch_index(window, size):
    """Pixel of each kernel position of each output pixel, H * W in the padding, from the numerics' patches."""
    height, width = size
    numbered = np.arange(1, 1 + height * width, dtype=np.int64).reshape(1, 1, height, width)
    patches = numerics.im2col(numbered, window).reshape(-1)
    return np.where(patches == 0, height * width, patches - 1)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_patches_of_an_image_of_any_size_are_those_of_the_numerics(window):
    run = graph_with(lambda b, x: ImageSizes().patch_index(b, x, window), engine="onnxruntime")
    for size in SIZES:
        found = run.run(None, {"x": np.zeros((1, 2, *size), np.float32)})[1]
        np.testing.assert_array_equal(found, patch_index(window, size))


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@settings(max_examples=60, deadline=None)
def test_patches_of_an_image_of_one_size_are_those_of_the_numerics(kernel, stride, padding, dilation):
    window = numerics.Window(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    run = graph_with(lambda b, x: ImageSizes().patch_index(b, x, window), size=(7, 6), engine="onnxruntime")
    found = run.run(None, {"x": np.zeros((1, 2, 7, 6), np.float32)})[1]
    np.testing.assert_array_equal(found, patch_index(window, (7, 6)))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_weights_on_pixels_of_any_size_are_those_of_a_known_size(window):
    weight = np.random.default_rng(0).integers(-8, 8, (4, 2, *window.kernel))
    taps = weight.sum(axis=1)[None].astype(np.float32)
    run = graph_with(lambda b, x: weights_inside(b, ImageSizes(), x, window, b.constant(taps, "taps"), "product"))
    for size in SIZES:
        found = run.run(None, {"x": np.zeros((1, 2, *size), np.float32)})[1]
        table, rows, columns = sums_inside(window, weight, size)
        np.testing.assert_array_equal(found, table[:, :, rows][..., columns])


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_the_shape_behind_a_window_has_its_size_out(window):
    run = graph_with(lambda b, x: ImageSizes().image_shape(b, 6, x, window))
    for size in SIZES:
        found = run.run(None, {"x": np.zeros((1, 2, *size), np.float32)})[1]
        assert found.tolist() == [0, 6, *window.size_out(size)]


def test_layers_that_meet_the_same_image_share_its_nodes():
    sizes = ImageSizes()
    made = []

    def twice(b, x):
        made.extend(sizes.patch_index(b, x, WINDOWS[0]) for _ in range(2))
        return made[0]

    graph_with(twice, engine="onnxruntime")
    assert made[0] is made[1]


def test_padding_is_added_to_a_size_that_varies():
    value = ir.Value(name="x", shape=ir.Shape(["B", 2, "height", 7]))
    shape = padded_shape(value, (0, 1, 1, 1))
    assert shape is not None
    assert str(shape[2]) == "(height) + 1"
    assert shape[3] == 9
    assert fixed_size(value) is None
