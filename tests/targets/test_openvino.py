"""What the OpenVINO target exports is proven exact and integer, and a fault in it is found and named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dq_deploy import export, verify
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'dq-deploy[openvino]'")

CONV = "down_blocks.0.resnets.0.conv2"


def record_of(weight_bits=4, activation_bits=8):
    """Of a denoiser with attention and two levels at W4A8, of a smaller one at other bits."""
    denoiser = tiny_denoiser(**({} if (weight_bits, activation_bits) == (4, 8) else ONE_LEVEL))
    return random_record(denoiser, weight_bits=weight_bits, activation_bits=activation_bits)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Record and engine for some bits, made once."""
    known = {}

    def of(*bits):
        if bits not in known:
            path = tmp_path_factory.mktemp("openvino") / "unet.onnx"
            record = record_of(*bits)
            export(record, path, target="openvino")
            known[bits] = (record, path)
        return known[bits]

    return of


@pytest.mark.parametrize("bits", [(4, 8), (8, 8), (4, 4)])
def test_every_layer_is_integer_and_exact(made, bits):
    record, path = made(*bits)
    report = verify(record, path, steps=2, inputs=1, threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0
    assert report.layers_compared == report.layers_total == len(record.layers)
    assert report.integer_mac_share_of_quantizable > 0.99
    assert report.batch_equals_single


def test_exporting_twice_gives_the_same_bytes(made, tmp_path):
    record, path = made(4, 8)
    export(record, tmp_path / "again.onnx", target="openvino")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_four_bit_weights_are_stored_in_four_bits(made):
    proto = onnx.load(made(4, 8)[1])
    kinds = {i.data_type for i in proto.graph.initializer if i.name.endswith("/product_weight")}
    assert kinds == {TensorProto.INT4}


def test_eight_bit_weights_become_two_summands_and_the_manifest_says_so(made):
    from dq_deploy.graph.onnx_file import read_manifest

    layers = read_manifest(made(8, 8)[1]).layers
    assert {layer.form for layer in layers} == {"u8 x s8 in 2 summands"}
    assert {layer.form for layer in read_manifest(made(4, 8)[1]).layers} == {"u8 x s8"}


def damaged(path, tmp_path, damage):
    proto = onnx.load(path)
    damage(proto.graph)
    out = tmp_path / "damaged.onnx"
    out.write_bytes(proto.SerializeToString())
    return out


def finding(record, path):
    report = verify(record, path, steps=1, inputs=1, threads=1)
    return [line for line in report.failures if line.startswith("layer ")], report


def store(graph, name, array):
    next(t for t in graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))


def test_one_flipped_weight_is_found_and_named(made, tmp_path):
    record, path = made(8, 8)
    name = f"dq/{CONV}/product0_weight"

    def flip(graph):
        codes = np.array(numpy_helper.to_array(next(t for t in graph.initializer if t.name == name)))
        codes[-1, -1, 0, 0] += -1 if codes[-1, -1, 0, 0] > 0 else 1
        store(graph, name, codes)

    lines, report = finding(record, damaged(path, tmp_path, flip))
    assert [layer.name for layer in report.layers if layer.status == "differs"] == [CONV]
    assert any(CONV in line and "accumulator" in line for line in lines)


def test_a_saturating_weight_form_is_unsafe_even_where_this_machine_computes_it_rightly(made, tmp_path):
    record, path = made(8, 8)

    def join(graph):
        """All weights into the first summand, none into the second."""
        first, second = f"dq/{CONV}/product0_weight", f"dq/{CONV}/product1_weight"
        arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in (first, second)}
        whole = arrays[first].astype(np.int16) + arrays[second]
        store(graph, first, whole.astype(np.int8))
        store(graph, second, np.zeros_like(arrays[second]))

    _, report = finding(record, damaged(path, tmp_path, join))
    layer = next(x for x in report.layers if x.name == CONV)
    assert layer.status in ("unsafe", "differs")
    assert any(CONV in line for line in report.failures)


def test_a_layer_that_fell_back_to_float_is_named(made, tmp_path):
    record, path = made(4, 8)

    def float_weights(graph):
        """Weights without quantization around them: OpenVINO multiplies floats."""
        node = next(n for n in graph.node if n.name == f"dq/{CONV}/product_weight_values")
        source = next(t for t in graph.initializer if t.name == f"dq/{CONV}/product_weight")
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(source).astype(np.float32), "bare"))
        node.CopyFrom(helper.make_node("Identity", ["bare"], list(node.output), name=node.name))

    lines, report = finding(record, damaged(path, tmp_path, float_weights))
    assert [layer.name for layer in report.layers if not layer.integer] == [CONV]
    assert any(CONV in line and "float" in line for line in lines)
