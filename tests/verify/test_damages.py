"""Every single edit of an engine is caught and named, by the comparison with its record and by running it alone."""

from __future__ import annotations

import pytest

from dq_deploy import verify
from dq_deploy.graph.onnx_file import read_manifest, write_onnx
from dq_deploy.verify.file.same_file import TracedOnce, compare_file
from dq_deploy.verify.onnx.prover import OnnxProver
from dq_deploy.verify.output.outputs import Outputs
from tests.manifests import engine_manifest
from tests.tiny import random_record, tiny_denoiser
from tests.verify.damages import DAMAGES
from tests.verify.sabotage import Engine

SMALL = {
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A record, its trace and its engine."""
    import torch

    denoiser = tiny_denoiser(classes=3, **SMALL)
    for name, parameter in denoiser.module.named_parameters():
        if "norm" in name:  # ones and zeros would hide what is exchanged
            parameter.data += 0.3 * torch.randn(parameter.shape)
    record = random_record(denoiser, steps=3)
    path, traced = tmp_path_factory.mktemp("damages") / "unet.onnx", TracedOnce(record)
    engine = traced.engine(engine_manifest())  # as `export` does, but traced once for all
    write_onnx(engine.model, path, engine.manifest)
    return record, traced, path


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without extreme inputs and without simulations of the output, which tests of their own are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxProver, "probe_layers", lambda *_args: None)
        patch.setattr(OnnxProver, "compare_outputs", lambda *_args: Outputs())
        yield


def proven(made, path, **options):
    record, traced, _ = made
    return verify(record, path, steps=1, inputs=1, threads=1, traced=traced, **options)


def test_the_engine_that_is_damaged_below_is_exact(made):
    report = proven(made, made[2])
    assert report.failures == ()
    assert report.file_compared
    assert report.float_path_share < 1
    assert report.float_path_inputs >= 14


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_caught_and_named(made, tmp_path, name):
    damage = DAMAGES[name]
    engine = Engine(made[2])
    damage.edit(engine)
    path = engine.save(tmp_path / "unet.onnx")
    if damage.runs:
        report = proven(made, path)
        assert any(damage.named in text for text in report.file_differences), report.file_differences
        assert report.run_failures, "running the engine does not show it"
    else:
        found = compare_file(path, read_manifest(path), made[1])
        assert any(damage.named in difference.text() for difference in found.differences)


def test_a_file_so_damaged_that_nothing_reads_it_is_named_and_no_fault_of_this_program(made, tmp_path):
    for edit in ("a constant of no known type", "a node without name and outputs", "an attribute twice"):
        engine = Engine(made[2])
        DAMAGES[edit].edit(engine)
        report = proven(made, engine.save(tmp_path / "unet.onnx"))
        assert any(DAMAGES[edit].named in text for text in report.file_differences)
        assert not report.exact
