"""A record alone rebuilds its denoiser, and says what is missing where it cannot."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dq_deploy import models
from dq_deploy.errors import RecordError
from dq_deploy.models import call_of_record
from dq_deploy.record import Layer, Part, load_record, save_record
from tests.tiny import random_record, tiny_denoiser


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(classes=3)


@pytest.fixture(scope="module")
def record(denoiser):
    return random_record(denoiser, weight_bits=8)


def test_the_rebuilt_module_is_the_float_model_up_to_weight_rounding(denoiser, record, tmp_path):
    save_record(record, tmp_path / "m.pt")
    module = models.denoiser_from_record(load_record(tmp_path / "m.pt"))
    state = denoiser.module.state_dict()
    for key, value in module.state_dict().items():
        name = key.rsplit(".", 1)[0]
        if name in record.layers and key.endswith("weight"):
            part = record.layers[name].parts[0]
            tail = (1,) * (value.ndim - 2)
            step = part.weight_scale[0].reshape(-1, 1, *tail) * part.pre.reshape(1, -1, *tail)
            assert (np.abs(value.numpy() - state[key].numpy()) <= 0.5001 * step).all()
            assert not torch.equal(value, state[key])
        else:
            assert torch.equal(value, state[key])
        assert value.dtype == state[key].dtype
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    inputs = {k: torch.from_numpy(v) for k, v in models.example_inputs(call_of_record(record), 2, 0).items()}
    with torch.no_grad():
        close = module(**inputs).sample - denoiser.module(**inputs).sample
    assert close.abs().max() < 0.1


def test_changing_the_rebuilt_module_leaves_the_record_alone(record):
    before = {key: value.copy() for key, value in record.float_parameters.items()}
    module = models.denoiser_from_record(record)
    for parameter in module.parameters():
        parameter += 1
    for key, value in before.items():
        np.testing.assert_array_equal(record.float_parameters[key], value)


def split(layer, first):
    """The same layer in two parts."""
    part = layer.parts[0]
    cut = [slice(None, first), slice(first, None)]
    parts = tuple(dataclasses.replace(part, pre=part.pre[s], w_code=part.w_code[:, :, s]) for s in cut)
    return dataclasses.replace(layer, parts=parts)


def test_a_split_layer_has_the_weights_of_the_whole_one(denoiser, record):
    name, first = next(iter(models.skip_splits(denoiser.module, denoiser.call).items()))
    halves = dataclasses.replace(record, layers={**record.layers, name: split(record.layers[name], first)})
    whole, split_module = models.denoiser_from_record(record), models.denoiser_from_record(halves)
    weight = whole.get_submodule(name).weight
    assert torch.equal(split_module.get_submodule(name).weight, weight)


def test_a_grouped_convolution_takes_pre_of_its_own_channels():
    from dq_deploy.models.rebuild import dequantized_weight

    part = Part(
        pre=np.array([1, 2, 4, 8], np.float32),
        scale=np.ones(1, np.float32),
        zero_point=np.zeros(1, np.int32),
        w_code=np.ones((1, 4, 2, 1, 1), np.int8),
        w_zero_point=np.zeros((1, 4), np.int32),
        weight_scale=np.array([[1, 10, 100, 1000]], np.float32),
    )
    layer = Layer(
        name="l", kind="conv2d", groups=2, weight_bits=4, activation_bits=8, q_min=0, q_max=255, parts=(part,)
    )
    expected = [[1, 2], [10, 20], [400, 800], [4000, 8000]]
    np.testing.assert_array_equal(dequantized_weight(layer)[:, :, 0, 0], expected)


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


def changed(record, name, **fields):
    layer = dataclasses.replace(record.layers[name], **fields)
    return dataclasses.replace(record, layers={**record.layers, name: layer})


BROKEN = {
    "missing parameter": (
        lambda r: dataclasses.replace(r, float_parameters=without(r.float_parameters, "conv_norm_out.weight")),
        r"record lacks conv_norm_out\.weight",
    ),
    "unknown parameter": (
        lambda r: dataclasses.replace(r, float_parameters={**r.float_parameters, "x.y": np.ones(1, np.float32)}),
        r"record has x\.y, which the configuration does not have",
    ),
    "parameter shape": (
        lambda r: dataclasses.replace(
            r, float_parameters={**r.float_parameters, "conv_norm_out.weight": np.ones(3, np.float32)}
        ),
        r"conv_norm_out\.weight has shape \(3,\), expected \(8,\)",
    ),
    "missing layer": (
        lambda r: dataclasses.replace(r, layers=without(r.layers, "conv_out")),
        r"record lacks conv_out\.bias, conv_out\.weight",
    ),
    "missing bias": (lambda r: changed(r, "conv_in", bias=None), r"record lacks conv_in\.bias"),
    "stride": (
        lambda r: changed(r, "conv_in", stride=(2, 2)),
        r"layer conv_in: stride is \(2, 2\), expected \(1, 1\)",
    ),
    "padding": (lambda r: changed(r, "conv_in", padding=(0, 0, 0, 0)), "layer conv_in: padding is"),
    "another module": (
        lambda r: dataclasses.replace(
            r,
            layers={
                **without(r.layers, "conv_in"),
                "conv_norm_out": dataclasses.replace(r.layers["conv_in"], name="conv_norm_out"),
            },
            float_parameters=without(without(r.float_parameters, "conv_norm_out.weight"), "conv_norm_out.bias"),
        ),
        "layer conv_norm_out is a GroupNorm in the denoiser",
    ),
    "no such module": (
        lambda r: dataclasses.replace(
            r, layers={**r.layers, "nowhere": dataclasses.replace(r.layers["conv_in"], name="nowhere")}
        ),
        "layer nowhere is missing in the denoiser",
    ),
    "family": (lambda r: dataclasses.replace(r, family="vae"), "family 'vae' is unknown"),
    "configuration": (
        lambda r: dataclasses.replace(r, model_config={"act_fn": "none"}),
        "model_config of the record: .*can be built",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_record_that_does_not_complete_the_denoiser_is_named(record, what):
    change, message = BROKEN[what]
    with pytest.raises(RecordError, match=message):
        models.denoiser_from_record(change(record))
