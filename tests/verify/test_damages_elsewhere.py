"""The graphs for OpenVINO and TensorRT: single edits are named by the comparison with the record and by a run."""

from __future__ import annotations

import pytest

from dq_deploy import verify
from dq_deploy.graph.onnx_file import read_manifest, write_onnx
from dq_deploy.verify.file.same_file import TracedOnce, compare_file
from dq_deploy.verify.onnx.prover import OnnxProver
from dq_deploy.verify.output.outputs import Outputs
from tests.manifests import engine_manifest
from tests.tiny import random_record, tiny_denoiser
from tests.verify import damages
from tests.verify.sabotage import Engine
from tests.verify.test_damages import SMALL

TARGETS = {
    "openvino": {"target": "openvino", "mode": "exact"},
    "float32": {"target": "tensorrt-rtx", "mode": "exact", "options": {"float_type": "float32", "conv": "gemm"}},
    "float16": {"target": "tensorrt", "mode": "exact", "options": {"float_type": "float16", "conv": "native"}},
}


def norm_constant(engine: Engine) -> None:
    """One value of a norm's parameters, under whatever name the target gives it."""
    norms = [n for n in engine.graph.node if n.op_type in ("InstanceNormalization", "GroupNormalization")]
    node = norms[1]
    name = node.input[2]
    own = engine.add_constant("own", engine.array(name) + engine.array(name).dtype.type(0.01))
    node.input[2] = own


def last_weight(engine: Engine) -> None:
    """The last integer weight of the last layer."""
    weights = [t for t in engine.graph.initializer if t.name.startswith("dq/conv_out") and len(t.dims) >= 2]
    array = engine.array(weights[0].name)
    flat = array.reshape(-1)
    flat[-1] = -1 if flat[-1] != -1 else 1
    engine.store(weights[0].name, array)


def first_edge(engine: Engine) -> None:
    from tests.verify.sabotage import move_edge

    move_edge(engine, 0)


EDITS = {
    "classes exchanged": damages.DAMAGES["classes exchanged"],
    "sine and cosine": damages.DAMAGES["sine and cosine"],
    "time frequencies": damages.DAMAGES["time frequencies"],
    "mode of upsampling": damages.DAMAGES["mode of upsampling"],
    "softmax over another axis": damages.DAMAGES["softmax over another axis"],
    "order of a concatenation": damages.DAMAGES["order of a concatenation"],
    "a norm": damages.Damage(edit=norm_constant, named="Normalization"),
    "a weight": damages.Damage(edit=last_weight, named="dq/conv_out"),
    "step edge": damages.Damage(edit=first_edge, named="dq/steps/edges"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A record, its trace, and an engine for each target."""
    record = random_record(tiny_denoiser(classes=3, **SMALL), steps=3)
    traced, folder = TracedOnce(record), tmp_path_factory.mktemp("elsewhere")
    for name, manifest in TARGETS.items():
        engine = traced.engine(engine_manifest(**manifest))
        write_onnx(engine.model, folder / f"{name}.onnx", engine.manifest)
    return record, traced, folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without extreme inputs and without simulations of the output, which tests of their own are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxProver, "probe_layers", lambda *_args: None)
        patch.setattr(OnnxProver, "compare_outputs", lambda *_args: Outputs())
        yield


def proven(made, path):
    return verify(made[0], path, steps=1, inputs=1, threads=1, traced=made[1])


@pytest.mark.parametrize("target", TARGETS)
def test_an_undamaged_graph_is_what_its_record_makes(made, target):
    if target == "openvino":
        pytest.importorskip("openvino")
    report = proven(made, made[2] / f"{target}.onnx")
    assert report.failures == ()
    assert report.file_compared


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_damage_is_named(made, tmp_path, target, name):
    damage = EDITS[name]
    engine = Engine(made[2] / f"{target}.onnx")
    damage.edit(engine)
    path = engine.save(tmp_path / "unet.onnx")
    found = compare_file(path, read_manifest(path), made[1])
    assert any(damage.named in difference.text() for difference in found.differences), found.differences[:5]


@pytest.mark.parametrize("name", ["classes exchanged", "time frequencies", "a weight"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_run_shows_it_too(made, tmp_path, target, name):
    if target == "openvino":
        pytest.importorskip("openvino")
    engine = Engine(made[2] / f"{target}.onnx")
    EDITS[name].edit(engine)
    assert proven(made, engine.save(tmp_path / "unet.onnx")).run_failures
