"""What dq-export writes: valid, deterministic, described, and refused early where it cannot be written."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from dq_deploy.errors import FileProblemError, InputError, OptionError, RecordError
from dq_deploy.graph import trace
from dq_deploy.graph.onnx_file import manifest_path, read_manifest
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.native.file.content import write_program_file
from dq_deploy.open_engine import open_engine
from dq_deploy.recent import Recent
from dq_deploy.record import content_sha256
from dq_deploy.targets import export, float_graph, simulation_graph
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

WITHOUT_ATTENTION = {
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
}


@pytest.fixture(scope="module")
def record():
    return random_record(tiny_denoiser(classes=3))


@pytest.fixture(scope="module")
def exact(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("exact") / "unet.onnx"
    export(record, path)
    return path


def test_exporting_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    record = random_record(tiny_denoiser(**ONE_LEVEL))
    for name in ("once.onnx", "again.onnx"):
        monkeypatch.setattr(trace, "_GRAPHS", Recent(1))  # traced again
        export(record, tmp_path / name)
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


@pytest.mark.parametrize("write", [export, write_program_file], ids=["export", "write_program_file"])
def test_a_path_is_no_record_and_another_extension_no_engine(record, tmp_path, write):
    with pytest.raises(RecordError, match="the record is a str, expected a Record"):
        write("model.pt", tmp_path / "unet.onnx")
    with pytest.raises(FileProblemError, match=r"x\.txt has the extension '\.txt', expected \.(onnx|dqn)"):
        write(record, tmp_path / "x.txt")


def test_manifest_stands_in_the_file_and_beside_it(record, exact):
    inside = read_manifest(exact)
    beside = json.loads(manifest_path(exact).read_text())
    assert beside.pop("onnx_sha256")
    assert beside == inside.to_json()
    assert inside.record_sha256 == content_sha256(record)
    assert {layer.name for layer in inside.layers} == set(record.layers)
    assert all(layer.integer for layer in inside.layers)


def test_checker_accepts_the_file_and_no_float_weight_of_a_quantized_layer_is_left(record, exact):
    model = onnx.load(exact)
    onnx.checker.check_model(model)
    names = {initializer.name for initializer in model.graph.initializer}
    assert not [name for name in record.layers if f"{name}.weight" in names]
    assert not any(node.op_type == "Conv" for node in model.graph.node)


def test_four_bit_weights_are_stored_in_four_bits(exact):
    model = onnx.load(exact)
    kinds = [i.data_type for i in model.graph.initializer if i.name.endswith("/weight")]
    assert kinds
    assert set(kinds) == {onnx.TensorProto.INT4}


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_mixed_batch_equals_one_by_one_bit_for_bit(record, exact, batch):
    feeds = example_inputs(call_of_record(record), batch, 1)
    feeds["timestep"] = np.linspace(0, 940, batch).astype(np.float32)
    with open_engine(exact, threads=1) as runner:
        together = runner.run(feeds)["output"]
        for index in range(batch):
            alone = runner.run({name: value[index : index + 1] for name, value in feeds.items()})["output"]
            np.testing.assert_array_equal(alone[0], together[index])


def test_fast_mode_takes_one_step_bucket_a_batch(record, tmp_path):
    path = tmp_path / "fast.onnx"
    assert export(record, path, mode="fast").single_step_batch
    feeds = example_inputs(call_of_record(record), 2, 1)
    with open_engine(path, threads=1) as runner:
        feeds["timestep"] = np.array([500, 510], np.float32)
        assert np.isfinite(runner.run(feeds)["output"]).all()
        feeds["timestep"] = np.array([0, 900], np.float32)
        with pytest.raises(InputError, match="one bucket a batch"):
            runner.run(feeds)


def test_external_data_is_written_beside_a_large_model(record, tmp_path):
    from dq_deploy.graph.onnx_file import write_onnx
    from dq_deploy.targets.onnxruntime import integer_graph

    graph = integer_graph(record, mode="exact")
    path = tmp_path / "large.onnx"
    write_onnx(graph.model, path, None, external_above=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    feeds = example_inputs(call_of_record(record), 1, 1)
    with open_engine(path, threads=1, require_manifest=False) as runner:
        assert np.isfinite(runner.run(feeds)["output"]).all()


def test_float_graph_has_the_same_inputs_and_agrees_with_torch(record, exact, tmp_path):
    import torch

    from dq_deploy.models import denoiser_from_record

    path = tmp_path / "float.onnx"
    float_graph(read_manifest(exact), path, record=record)
    feeds = example_inputs(call_of_record(record), 2, 1)
    module = denoiser_from_record(record)
    with torch.no_grad():
        expected = module(**{k: torch.from_numpy(v) for k, v in feeds.items()}, return_dict=False)[0].numpy()
    with open_engine(path, engine="onnxruntime", threads=1, require_manifest=False) as runner:
        np.testing.assert_allclose(runner.run(feeds)["output"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("bits", "mode"), [((4, 8), "exact"), ((8, 8), "exact"), ((4, 4), "exact"), ((4, 8), "fast")])
def test_engine_equals_the_float32_simulation_of_the_same_graph_bit_for_bit(bits, mode, tmp_path):
    denoiser = tiny_denoiser(**({} if bits == (4, 8) else ONE_LEVEL))
    record = random_record(denoiser, weight_bits=bits[0], activation_bits=bits[1])
    export(record, tmp_path / "engine.onnx", mode=mode)
    simulation_graph(record, tmp_path / "simulation.onnx", mode=mode)
    feeds = example_inputs(call_of_record(record), 6, 1)
    feeds["timestep"] = np.linspace(0, 940, 6).astype(np.float32) if mode == "exact" else np.full(6, 300, np.float32)
    with open_engine(tmp_path / "engine.onnx", threads=1) as runner:
        engine = runner.run(feeds)["output"]
    with open_engine(tmp_path / "simulation.onnx", threads=1, require_manifest=False) as runner:
        np.testing.assert_array_equal(runner.run(feeds)["output"], engine)


def test_unknown_target_and_mode_are_named(record, tmp_path):
    with pytest.raises(OptionError, match="expected one of onnxruntime, openvino"):
        export(record, tmp_path / "x.onnx", target="coreml")
    with pytest.raises(OptionError, match="expected one of exact, fast"):
        export(record, tmp_path / "x.onnx", mode="quick")


def test_the_float_graph_of_a_misspelt_target_is_refused(exact, tmp_path):
    manifest = replace(read_manifest(exact), target="onnxruntme")
    with pytest.raises(OptionError, match="target is 'onnxruntme', expected one of onnxruntime, openvino"):
        float_graph(manifest, tmp_path / "float.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_output_folder_is_refused_before_any_work(record, tmp_path):
    with pytest.raises(FileProblemError, match="does not exist"):
        export(record, tmp_path / "none" / "x.onnx")


def test_large_images_of_a_model_with_padding_merged_by_the_tracer(tmp_path):
    denoiser = tiny_denoiser(downsample_padding=0, **WITHOUT_ATTENTION)
    record = random_record(denoiser)
    path = tmp_path / "padded.onnx"
    export(record, path)
    with open_engine(path, threads=1) as runner:
        assert runner.run(example_inputs(call_of_record(record), 1, 0))["output"].shape == (1, 1, 8, 8)
