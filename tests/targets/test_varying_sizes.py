"""One exported file is right at heights, widths, token counts and batches that it was not traced with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dq_deploy import open_engine
from dq_deploy.errors import InputError
from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.graph.varying import VaryingSizes
from dq_deploy.manifest.values import ManifestOptions
from dq_deploy.models import default_call, example_inputs
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.models.pipeline.open import sized_as_called
from dq_deploy.targets import engine_graph, simulation_graph
from dq_deploy.targets.manifest import call_of_manifest, manifest_of
from dq_deploy.targets.traced_graphs import traced_denoiser
from tests.tiny import random_record, tiny_conditional_denoiser

SIZES = ({"height": 8, "width": 8, "tokens": 77}, {"height": 12, "width": 6, "tokens": 1})


@pytest.fixture(scope="module")
def made():
    """A record of a tiny text UNet and its traced graph; another record of it has the same graph."""
    denoiser = tiny_conditional_denoiser(mid_block_type=None)
    call = default_call(denoiser.config)
    record = replace(random_record(denoiser), call=call)
    wide = replace(random_record(denoiser, weight_bits=8, seed=1), call=call)
    return record, wide, traced_denoiser(record.family, record.model_config, record, call)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_engine_equals_its_simulation_at_sizes_it_was_not_traced_with(made, bits, tmp_path):
    record = made[0] if bits == 4 else made[1]
    engine = engine_graph(record, traced=made[2])
    write_onnx(engine.model, tmp_path / "engine.onnx", engine.manifest)
    simulation_graph(record, tmp_path / "simulation.onnx", traced=made[2])
    simulation = open_engine(tmp_path / "simulation.onnx", threads=1, require_manifest=False)
    with open_engine(tmp_path / "engine.onnx", threads=1) as runner, simulation:
        for sizes in SIZES:
            feeds = example_inputs(record.call, 3, 1, sizes=sizes)
            feeds["timestep"] = np.array([0, 470, 940], np.float32)
            np.testing.assert_array_equal(simulation.run(feeds)["output"], runner.run(feeds)["output"])
        with pytest.raises(InputError, match="height"):
            runner.run(example_inputs(record.call, 1, 1, sizes={**SIZES[0], "height": 9}))


def test_the_manifest_says_names_and_multiples(made):
    manifest = engine_graph(made[0], traced=made[2]).manifest
    assert manifest.inputs[0].shape == ("B", 4, "height", "width")
    assert manifest.outputs[0].shape == ("B", 4, "height", "width")
    assert manifest.multiples == {"height": 2, "width": 2}
    assert manifest.sizes == {"height": 8, "width": 8, "tokens": 77}


def test_a_file_with_a_fixed_size_has_a_call_and_is_drawn_in_that_size(made):
    record = made[0]
    varying = VaryingSizes(traced=record.call.sizes, fixed={"width": "the model computes with it"})
    options = ManifestOptions(target="onnxruntime", mode="exact")
    manifest = manifest_of(record, layers=(), notes=(), options=options, varying=varying)
    assert manifest.sizes == record.call.sizes
    call = call_of_manifest(manifest)
    assert (call.inputs[0].shape, dict(call.sizes)) == (("B", 4, "height", 8), {"height": 8, "tokens": 77})
    asked = sized_as_called(PipelineCall(), {"sample_size": 16}, call)
    assert (asked.height, asked.width) == (8, 8)
    assert sized_as_called(PipelineCall(), {"sample_size": 8}, call) == PipelineCall()
