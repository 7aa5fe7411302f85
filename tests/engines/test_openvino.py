"""The OpenVINO runner: float32 held to, named arrays, and the kernels it tells of are the ones that run."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dq_deploy.engines.openvino import OpenVinoRunner
from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.models import example_inputs
from dq_deploy.open_engine import open_engine
from dq_deploy.targets import export
from tests.manifests import engine_manifest
from tests.tiny import random_record, tiny_denoiser

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'dq-deploy[openvino]'")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "unet.onnx"
    export(random_record(tiny_denoiser(classes=3)), path, target="openvino")
    return path


@pytest.fixture(scope="module")
def runner(engine):
    with open_engine(engine, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def feeds():
    return example_inputs(tiny_denoiser(classes=3).call, 3, 0)


def test_the_manifest_chooses_the_engine(runner):
    assert runner.engine == "openvino"
    assert [spec.name for spec in runner.inputs] == ["sample", "timestep", "class_labels"]
    assert [spec.dtype.name for spec in runner.inputs] == ["float32", "float32", "int64"]
    assert runner.inputs[0].shape == ("B", 1, "height", "width")


def test_float32_is_forced(runner):
    assert runner._compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_a_later_run_leaves_earlier_results_alone(runner, feeds):
    first = runner.run(feeds)["output"]
    kept = first.copy()
    runner.run({**feeds, "sample": feeds["sample"] + 1})
    assert (first == kept).all()


def test_a_batch_of_mixed_steps_equals_one_by_one(runner, feeds):
    mixed = {**feeds, "timestep": np.array([0.0, 400.0, 950.0], np.float32)}
    together = runner.run(mixed)["output"]
    for i in range(3):
        alone = runner.run({name: value[i : i + 1] for name, value in mixed.items()})["output"]
        assert alone.tobytes() == together[i : i + 1].tobytes()


def test_wrong_inputs_are_refused_before_they_reach_the_engine(runner, feeds):
    with pytest.raises(InputError, match="expected a numpy array of float32"):
        runner.run({**feeds, "sample": feeds["sample"].astype(np.float64)})
    with pytest.raises(InputError, match="expected finite numbers"):
        runner.run({**feeds, "timestep": np.full(3, np.nan, np.float32)})


def test_a_file_that_is_not_onnx_is_refused_in_one_line(tmp_path):
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(FileProblemError) as caught:
        open_engine(path, engine="openvino", require_manifest=False)
    assert "\n" not in str(caught.value)


def test_the_runtime_graph_names_the_onnx_nodes_and_their_operands(engine, tmp_path):
    written = tmp_path / "runtime.json"
    with open_engine(engine, threads=1, optimized_model_path=written) as runner:
        layers = runner.manifest.layers
    nodes = json.loads(written.read_text())["nodes"]
    by_name = {name.removesuffix("/DequantizationMultiply"): node for node in nodes for name in node["originals"]}
    for layer in layers:
        for name in layer.parts[0].products:
            assert by_name[name]["operands"][:2] == ["uint8", "int8"], layer.name
            assert by_name[name]["kernel"].lower().endswith("i8"), layer.name


def test_a_tensor_that_samples_share_has_its_own_first_size(tmp_path):
    shapes = {"hidden_states": ["B", "image_tokens", 3], "img_ids": ["image_tokens", 3]}
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", list(shapes), ["output"])],
        "positions",
        [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        [onnx.helper.make_tensor_value_info("output", kind, shapes["hidden_states"])],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "positions.onnx")
    entries = [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
    with OpenVinoRunner(tmp_path / "positions.onnx", engine_manifest(target="openvino", inputs=entries)) as runner:
        assert [spec.shape for spec in runner.inputs] == [("B", "image_tokens", 3), ("image_tokens", 3)]
        given = {"hidden_states": np.ones((2, 5, 3), np.float32), "img_ids": np.ones((5, 3), np.float32)}
        assert np.array_equal(runner.run(given)["output"], np.full((2, 5, 3), 2, np.float32))
        with pytest.raises(InputError, match="the size image_tokens 4, expected 5"):
            runner.run({**given, "img_ids": given["img_ids"][:4]})


def test_sizes_have_the_names_of_the_file_where_there_is_no_manifest(tmp_path):
    """Frames that are folded into the first axis are no batch."""
    kinds = {"rows": ["entries", 4], "timestep": ["B"], "free": [None, 4]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in kinds.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, shape) for name, shape in kinds.items()]
    nodes = [helper.make_node("Abs", [name], [f"{name}_out"]) for name in kinds]
    graph = helper.make_graph(nodes, "piece", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "piece.onnx")
    with open_engine(tmp_path / "piece.onnx", engine="openvino", require_manifest=False) as runner:
        assert {spec.name: spec.shape for spec in runner.inputs} == {
            "rows": ("entries", 4),
            "timestep": ("B",),
            "free": ("B", 4),
        }
        feeds = {"rows": -np.ones((6, 4)), "timestep": np.ones(2), "free": np.ones((2, 4))}
        feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
        assert runner.run(feeds)["rows_out"].shape == (6, 4)
