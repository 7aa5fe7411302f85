"""A record survives both file forms unchanged, byte for byte the same each time."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open

from dq_deploy.errors import FileProblemError, RecordError
from dq_deploy.record import Layer, Part, Record, check_record_path, content_sha256, load_record, save_record

FORMS = ("pt", "safetensors")


def assert_same_values(a, b):
    """Equal field by field, arrays with their types."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for entry in dataclasses.fields(a):
            assert_same_values(getattr(a, entry.name), getattr(b, entry.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple) and a and not isinstance(a[0], int):
        for left, right in zip(a, b, strict=True):
            assert_same_values(left, right)
    else:
        assert a == b


@pytest.mark.parametrize("form", FORMS)
def test_a_record_comes_back_as_it_was(record, tmp_path, form):
    save_record(record, tmp_path / f"m.{form}")
    loaded = load_record(str(tmp_path / f"m.{form}"))
    assert list(loaded.layers) == list(record.layers)
    for name, layer in record.layers.items():
        assert_same_values(loaded.layers[name], layer)
    assert set(loaded.float_parameters) == set(record.float_parameters)
    for key, value in record.float_parameters.items():
        assert_same_values(loaded.float_parameters[key], value)
    for key in ("timesteps", "step_edges", "family", "scheduler_config", "provenance"):
        assert_same_values(getattr(loaded, key), getattr(record, key))
    assert loaded.model_config == {**record.model_config, "block_out_channels": [32, 64]}
    assert content_sha256(loaded) == content_sha256(record)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_record_gives_the_same_bytes_under_any_name(record, tmp_path, form):
    (tmp_path / "deep").mkdir()
    first, second = tmp_path / f"m.{form}", tmp_path / "deep" / f"other name.{form}"
    save_record(record, first)
    save_record(load_record(first), second)
    assert first.read_bytes() == second.read_bytes()
    again = dataclasses.replace(record, float_parameters=dict(reversed(record.float_parameters.items())))
    save_record(again, second)
    assert first.read_bytes() == second.read_bytes()


def test_another_process_writes_the_same_bytes(record, tmp_path):
    for form in FORMS:
        save_record(record, tmp_path / f"m.{form}")
    code = (
        "from dq_deploy.record import load_record, save_record\n"
        "record = load_record('m.safetensors')\n"
        "save_record(record, 'again.pt'); save_record(record, 'again.safetensors')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    for form in FORMS:
        assert (tmp_path / f"again.{form}").read_bytes() == (tmp_path / f"m.{form}").read_bytes()


def test_both_forms_hold_the_same_header_and_tensors(record, tmp_path):
    for form in FORMS:
        save_record(record, tmp_path / f"m.{form}")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as stream:
        assert stream.metadata() == {"dq_deploy.record": content.pop("dq_deploy.record")}
        assert set(stream.keys()) == set(content)
        for key, value in content.items():
            assert torch.equal(stream.get_tensor(key), value)
            assert stream.get_tensor(key).dtype == value.dtype


def test_codes_of_four_bits_and_fewer_take_half_a_byte(record, tmp_path):
    save_record(record, tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert content["layer/a.conv/part0/w_code"].shape == ((2 * 3 * 3 * 3 * 3) // 2,)
    assert content["layer/b.split/part1/w_code"].shape == (4,)
    assert content["layer/b.grouped/part0/w_code"].shape == (1, 4, 2, 3, 3)


def test_reading_a_record_loads_neither_torch_nor_an_engine(record, tmp_path):
    for form in FORMS:
        save_record(record, tmp_path / f"m.{form}")
    code = (
        "import sys; from dq_deploy.record import load_record\n"
        "load_record('m.pt'); load_record('m.safetensors')\n"
        "assert not {'torch', 'onnxruntime', 'onnx', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_content_hash_sees_every_kind_of_change(record):
    layer = record.layers["a.conv"]
    code = layer.parts[0].w_code.copy()
    code[0, 0, 0, 0, 0] ^= 1
    part = dataclasses.replace(layer.parts[0], w_code=code)
    changed = dataclasses.replace(layer, parts=(part,))
    edges = record.step_edges.copy()
    edges[0] = np.nextafter(edges[0], np.float32(0))
    variants = [
        record,
        dataclasses.replace(record, layers={**record.layers, "a.conv": changed}),
        dataclasses.replace(record, step_edges=edges),
        dataclasses.replace(record, provenance={}),
        dataclasses.replace(record, layers=dict(reversed(record.layers.items()))),
        dataclasses.replace(record, float_parameters={**record.float_parameters, "half": np.ones((1, 1), np.float32)}),
    ]
    assert len({content_sha256(variant) for variant in variants}) == len(variants)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_valid_layer_survives(tmp_path, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    bits, activation_bits = data.draw(st.integers(2, 8)), data.draw(st.integers(2, 8))
    steps, sets = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 2))
    shape = (sets, *(data.draw(st.integers(1, 3)) for _ in range(data.draw(st.sampled_from([2, 4])))))
    low = -(2 ** (bits - 1))
    q_min = data.draw(st.sampled_from([0, -(2 ** (activation_bits - 1))]))
    part = Part(
        pre=np.exp2(rng.uniform(-60, 60, shape[2])).astype(np.float32),
        scale=np.exp2(rng.uniform(-60, 60, steps)).astype(np.float32),
        zero_point=rng.integers(-300, 300, steps).astype(np.int32),
        w_code=rng.integers(low, -low, shape).astype(np.int8),
        w_zero_point=(rng.integers(low, -low, shape[:2]) * (bits < 8)).astype(np.int32),
        weight_scale=rng.uniform(0.1, 1, shape[:2]).astype(np.float32),
        group_of_step=rng.integers(0, sets, steps).astype(np.int32),
    )
    layer = Layer(
        name="l",
        kind="linear" if len(shape) == 3 else "conv2d",
        weight_bits=bits,
        activation_bits=activation_bits,
        q_min=q_min,
        q_max=q_min + 2**activation_bits - 1,
        parts=(part,),
    )
    timesteps = np.sort(rng.choice(1000, steps, replace=False)).astype(np.float32)
    record = Record(
        family="unet2d",
        layers={"l": layer},
        timesteps=timesteps,
        step_edges=((timesteps[1:] + timesteps[:-1]) / 2).astype(np.float32),
        float_parameters={},
        model_config={},
    )
    for form in FORMS:
        save_record(record, tmp_path / f"m.{form}")
        assert_same_values(load_record(tmp_path / f"m.{form}").layers["l"], layer)


def test_other_extensions_are_refused_before_any_work(record, tmp_path):
    for name in ("m.bin", "m", "m.onnx"):
        with pytest.raises(FileProblemError, match=r"expected \.pt or \.safetensors"):
            check_record_path(tmp_path / name)
        with pytest.raises(FileProblemError, match="extension"):
            save_record(record, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_a_configuration_that_is_not_json_is_refused(record, tmp_path, value):
    with pytest.raises(RecordError, match="not JSON"):
        save_record(dataclasses.replace(record, provenance={"x": value}), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []
