"""The Runner refuses what the engine would take wrongly, in one line, and reports what comes out wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dq_deploy.errors import FileProblemError, InputError, NonFiniteError, OptionError
from dq_deploy.models import example_inputs
from dq_deploy.open_engine import open_engine
from dq_deploy.targets import export
from tests.tiny import random_record, tiny_denoiser


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    record = random_record(tiny_denoiser(classes=3))
    path = tmp_path_factory.mktemp("engine") / "unet.onnx"
    export(record, path)
    return path


@pytest.fixture(scope="module")
def feeds():
    return example_inputs(tiny_denoiser(classes=3).call, 2, 0)


@pytest.fixture(scope="module")
def runner(engine):
    with open_engine(engine, threads=1) as opened:
        yield opened


def with_value(feeds, name, value):
    return {**feeds, name: value}


def test_named_inputs_give_named_outputs(runner, feeds):
    assert [spec.name for spec in runner.inputs] == ["sample", "timestep", "class_labels"]
    assert runner.run(feeds)["output"].shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {k: v for k, v in f.items() if k != "timestep"}, "expected sample, timestep, class_labels"),
        (lambda f: with_value(f, "sample", f["sample"].astype(np.float64)), "expected a numpy array of float32"),
        (lambda f: with_value(f, "sample", f["sample"].tolist()), "is a list"),
        (lambda f: with_value(f, "sample", f["sample"][:, :0]), r"expected \[B, 1, height, width\]"),
        (lambda f: with_value(f, "timestep", f["timestep"][:1]), "batch of 1, expected 2"),
        (lambda f: with_value(f, "class_labels", np.array([0, 7])), r"span 0..7, expected 0..2"),
        (lambda f: with_value(f, "sample", np.where(f["sample"] > 1, np.nan, f["sample"])), "expected finite"),
        (lambda f: with_value(f, "timestep", np.array([1, np.inf], np.float32)), "holds inf"),
        (lambda f: {k: v[:0] for k, v in f.items()}, "has shape"),
    ],
)
def test_a_wrong_input_gets_one_line(runner, feeds, change, message):
    with pytest.raises(InputError, match=message) as caught:
        runner.run(change(feeds))
    assert "\n" not in str(caught.value)


def test_non_finite_output_is_an_error_unless_the_check_is_off(engine, feeds, tmp_path):
    model = onnx.load(engine)
    for initializer in model.graph.initializer:
        if initializer.name == "conv_norm_out.bias" or initializer.name.startswith("dq/steps/factors"):
            values = np.full_like(onnx.numpy_helper.to_array(initializer), np.inf)
            initializer.CopyFrom(onnx.numpy_helper.from_array(values, initializer.name))
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    given = {"threads": 1, "hash_check": False}
    with open_engine(broken, **given) as runner, pytest.raises(NonFiniteError, match="output output holds"):
        runner.run(feeds)
    with open_engine(broken, **given, finite_check=False) as runner:
        assert not np.isfinite(runner.run(feeds)["output"]).all()
        assert runner.finite_check_ms == 0


def test_the_cost_of_the_finite_check_is_measured(engine, feeds):
    with open_engine(engine, threads=1) as runner:
        runner.run(feeds)
        assert runner.finite_check_ms > 0


def test_missing_foreign_and_truncated_files_are_refused(engine, tmp_path):
    with pytest.raises(FileProblemError, match="does not exist"):
        open_engine(tmp_path / "none.onnx")
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"not a model")
    with pytest.raises(FileProblemError):
        open_engine(foreign)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(engine.read_bytes()[:5000])
    with pytest.raises(FileProblemError):
        open_engine(cut)


def test_unknown_engine_is_named(engine):
    with pytest.raises(OptionError, match="expected one of onnxruntime"):
        open_engine(engine, engine="tflite")
