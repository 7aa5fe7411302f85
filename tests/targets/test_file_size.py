"""An exported file stores its weights and little else, and nothing twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from dq_deploy import open_engine
from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.models import example_inputs
from dq_deploy.targets import TARGETS, engine_graph, simulation_graph
from dq_deploy.targets.traced_graphs import traced_denoiser
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser


def of_one_size(record):
    """The record of a model that computes with its height and width, which are then fixed."""

    def numbers(shape):
        return tuple(size if size == "B" else record.call.sizes.get(size, size) for size in shape)

    call = record.call
    inputs = tuple(replace(entry, shape=numbers(entry.shape)) for entry in call.inputs)
    outputs = {name: numbers(shape) for name, shape in call.outputs.items()}
    return replace(record, call=replace(call, inputs=inputs, outputs=outputs, sizes={}))


@pytest.fixture(scope="module", params=["any size", "one size"])
def made(request):
    """A record of some 30 layers for images of 32 x 32 pixels, with its traced graph."""
    changes = {**ONE_LEVEL, "sample_size": 32, "block_out_channels": [16], "layers_per_block": 3}
    denoiser = tiny_denoiser(**changes)
    record = replace(random_record(denoiser, weight_bits=8), call=denoiser.call)
    record = of_one_size(record) if request.param == "one size" else record
    return record, traced_denoiser(record.family, record.model_config, record, record.call)


def stored(record):
    """Bytes of a record's codes and of the floats that an engine needs."""
    parts = [part for layer in record.layers.values() for part in layer.parts]
    codes = sum(part.w_code.size for part in parts)
    biases = sum(layer.bias.size for layer in record.layers.values() if layer.bias is not None)
    scales = sum(part.pre.size + part.weight_scale.size + 3 * part.scale.size for part in parts)
    return codes + 4 * (biases + scales + sum(value.size for value in record.float_parameters.values()))


def content(tensor):
    return tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("target", TARGETS)
def test_constants_are_unique_and_nothing_is_noted_beside_the_graph(made, target, tmp_path):
    record, traced = made
    write_onnx(engine_graph(record, target=target, traced=traced).model, tmp_path / "engine.onnx", None)
    graph = onnx.load(tmp_path / "engine.onnx").graph
    assert [count for count in Counter(map(content, graph.initializer)).values() if count > 1] == []
    assert not {value.name for value in graph.value_info} & {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if node.metadata_props]


def test_constants_take_no_more_than_the_records_numbers(made, tmp_path):
    record, traced = made
    write_onnx(engine_graph(record, traced=traced).model, tmp_path / "engine.onnx", None)
    constants = onnx.load(tmp_path / "engine.onnx").graph.initializer
    assert len(record.layers) >= 25
    assert sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in constants) <= 1.15 * stored(record)


def test_an_engine_that_computes_its_indices_equals_the_simulation(made, tmp_path):
    record, traced = made
    engine = engine_graph(record, traced=traced)
    write_onnx(engine.model, tmp_path / "engine.onnx", engine.manifest)
    simulation_graph(record, tmp_path / "simulation.onnx", traced=traced)
    feeds = example_inputs(record.call, 2, 1)
    simulation = open_engine(tmp_path / "simulation.onnx", threads=1, require_manifest=False)
    with open_engine(tmp_path / "engine.onnx", threads=1) as runner, simulation:
        np.testing.assert_array_equal(simulation.run(feeds)["output"], runner.run(feeds)["output"])
