"""Layout optimum: one timestep for a batch, Optimum's names, and inside them the graph that is proven without it."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.errors import OptionError
from dq_deploy.graph.onnx_file import write_onnx
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.open_engine import open_engine
from dq_deploy.targets import check_target, engine_graph
from dq_deploy.targets.manifest import call_of_manifest
from dq_deploy.verify import verify
from dq_deploy.verify.file.same_file import TracedOnce
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(**ONE_LEVEL), weight_bits=8, steps=2)


@pytest.fixture(scope="module")
def traced(record):
    return TracedOnce(record)


@pytest.fixture(scope="module")
def written(record, traced, tmp_path_factory):
    """Files of ONNX Runtime by layout, and of OpenVINO."""
    place, found = tmp_path_factory.mktemp("border"), {}
    for name, target, layout in (
        ("own", "onnxruntime", None),
        ("ort", "onnxruntime", "optimum"),
        ("ov", "openvino", "optimum"),
    ):
        made = engine_graph(record, target=target, layout=layout, traced=traced())
        found[name] = place / f"{name}.onnx"
        write_onnx(made.model, found[name], made.manifest)
    return found


@pytest.fixture(scope="module")
def feeds(record):
    given = example_inputs(call_of_record(record), 3, 0)
    return {**given, "timestep": np.full(3, 700, np.float32)}


@pytest.mark.parametrize("name", ["ort", "ov"])
def test_one_timestep_stands_for_the_whole_batch(name, written, feeds):
    import onnxruntime
    import openvino

    with open_engine(written[name], threads=1) as runner:
        each = runner.run(feeds)["out_sample"]
    one = {**feeds, "timestep": feeds["timestep"][:1]}
    if name == "ort":
        session = onnxruntime.InferenceSession(str(written[name]))
        assert [value.name for value in session.get_inputs()] == ["sample", "timestep"]
        (found,) = session.run(["out_sample"], one)
    else:
        compiled = openvino.compile_model(str(written[name]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = compiled(one)["out_sample"]
    assert np.array_equal(found, each)


def test_the_border_changes_no_bit(written, feeds):
    with open_engine(written["own"], threads=1) as own, open_engine(written["ort"], threads=1) as bordered:
        mixed = {**feeds, "timestep": np.array([700, 0, 950], np.float32)}
        assert np.array_equal(own.run(mixed)["output"], bordered.run(mixed)["out_sample"])


def test_it_is_proven_like_any_other_and_says_its_layout(record, traced, written):
    report = verify(record, written["ort"], steps=1, inputs=1, threads=1, traced=traced)
    assert report.exact
    assert report.file_differences == ()
    with open_engine(written["ort"]) as runner:
        assert runner.manifest.options.layout == "optimum"
        assert [entry.name for entry in runner.manifest.outputs] == ["out_sample"]
        assert call_of_manifest(runner.manifest) == call_of_record(record)


def test_other_targets_and_tools_have_no_such_layout():
    with pytest.raises(OptionError, match=r"layout is 'optimum' for target tensorrt; it can be given for onnxruntime"):
        check_target("tensorrt", "exact", layout="optimum")
    with pytest.raises(OptionError, match="layout is 'diffusers'"):
        check_target("onnxruntime", "exact", layout="diffusers")
