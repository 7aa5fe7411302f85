"""A denoiser of one step, class, channel, picture element and level runs on every engine as its simulation does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dq_kernels.cpu.library import known_isas

from dq_deploy.errors import InputError
from dq_deploy.models import call_denoiser, call_of_record, example_inputs
from dq_deploy.native.runner import NativeRunner
from dq_deploy.open_engine import open_engine
from dq_deploy.simulation.fake_quant import simulate
from dq_deploy.targets import export
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

SMALLEST = {**ONE_LEVEL, "sample_size": 1}
"""One picture element; torch itself refuses as many groups as channels there."""


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(classes=1, **SMALLEST), steps=1)


@pytest.fixture(scope="module", params=[1, 2], ids=["batch 1", "batch 2"])
def feeds(request, record):
    return example_inputs(call_of_record(record), request.param, 0)


def simulated(record, feeds):
    return call_denoiser(simulate(record), {name: torch.from_numpy(value) for name, value in feeds.items()}).numpy()


@pytest.fixture(scope="module")
def graphs(record, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smallest")
    kinds = {
        "onnxruntime": {},
        "onnxruntime fast": {"mode": "fast"},
        "openvino": {"target": "openvino"},
        "tensorrt-rtx": {"target": "tensorrt-rtx", "float_type": "float32"},
    }
    for name, options in kinds.items():
        export(record, folder / f"{name}.onnx", **options)
    return folder


@pytest.mark.parametrize("isa", known_isas())
def test_native(record, feeds, isa):
    with NativeRunner(record, threads=1, isa=isa) as runner:
        np.testing.assert_allclose(runner.run(feeds)["output"], simulated(record, feeds), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "engine", "within"),
    [
        ("onnxruntime", "onnxruntime", 1e-5),
        ("onnxruntime fast", "onnxruntime", 5 * 8 / 255),  # steps of the declared requantization
        ("openvino", "openvino", 1e-5),
        ("tensorrt-rtx", "onnxruntime", 1e-4),
    ],
)
def test_graphs(record, graphs, feeds, kind, engine, within):
    pytest.importorskip(engine)
    want = simulated(record, feeds)
    with open_engine(graphs / f"{kind}.onnx", engine=engine, threads=1) as runner:
        got = runner.run(feeds)["output"]
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=within)


def test_no_graph_for_openvino_holds_a_constant_without_elements(graphs):
    import onnx

    model = onnx.load(graphs / "openvino.onnx")
    assert [tensor.name for tensor in model.graph.initializer if 0 in tensor.dims] == []


def test_a_simulation_refuses_no_sample_as_the_engines_do(record, feeds):
    empty = {name: torch.from_numpy(value[:0]) for name, value in feeds.items()}
    with pytest.raises(InputError, match="batch is empty"):
        call_denoiser(simulate(record), empty)
