"""Weight-only layers: which layers they are, what their codes are, and that everything behind takes such a record."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy import export, load_record, open_engine, quantize, save_record
from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import OptionError, RecordError
from dq_deploy.methods import options_for, options_from_preset
from dq_deploy.methods.layer_bits import bits_of_sites
from dq_deploy.methods.options import BLOCK_SIZES
from dq_deploy.methods.ranges.scales import search_weight_scale, weight_codes
from dq_deploy.methods.weight_only import search_block_scales
from dq_deploy.models import build_denoiser, call_of_record, denoiser_from_record, example_inputs, quantizable_layers
from dq_deploy.simulation.fake_quant import simulate
from tests.cli.running import command
from tests.tiny import tiny_denoiser

WIDE = {"block_out_channels": [64, 128], "norm_num_groups": 8, "attention_head_dim": 16}
"""A tiny model whose linear layers have input channels that blocks of 64 divide."""


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(classes=3, **WIDE)


@pytest.fixture(scope="module")
def alone(denoiser):
    """Every layer that can be is weight-only."""
    return quantize(denoiser, method="minmax", activation_bits=16, steps=3)


@pytest.fixture(scope="module")
def mixed(denoiser):
    """Attention is weight-only, all else integer."""
    return quantize(denoiser, method="minmax", layer_bits={"*attentions*": (4, 16)}, steps=3, samples=2)


def test_each_block_has_the_scale_the_search_gives_it_alone():
    weight = np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    weight[2, 64:128] = 0
    for block in BLOCK_SIZES:
        codes, scale = search_block_scales(weight, 4, block)
        assert (codes.dtype, codes.shape, scale.dtype, scale.shape) == (
            np.int8,
            (5, 256),
            np.float32,
            (5, 256 // block),
        )
        for n in range(5):
            for j in range(256 // block):
                piece = weight[n : n + 1, j * block : (j + 1) * block]
                one = search_weight_scale(piece, 4)
                assert scale[n, j] == one[0]
                np.testing.assert_array_equal(codes[n, j * block : (j + 1) * block], weight_codes(piece, one, 4)[0])
    assert codes.min() >= -8
    assert codes.max() <= 7


def test_smaller_blocks_are_closer_to_the_weight():
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((64, 256)) * rng.lognormal(0, 1, (64, 256))).astype(np.float32)
    errors = []
    for block in (64, 128, 256):
        codes, scale = search_block_scales(weight, 4, block)
        error = codes.reshape(64, -1, block) * scale[:, :, None] - weight.reshape(64, -1, block)
        errors.append(float(np.mean(np.abs(error) ** 2.4)))
    assert errors == sorted(errors)
    assert errors[0] < 0.9 * errors[-1]


def test_only_linear_layers_of_whole_blocks_are_weight_only_and_the_rest_says_why(denoiser, alone):
    sites = {site.name: site for site in quantizable_layers(denoiser.module, denoiser.call)}
    assert not alone.layers
    (note,) = alone.provenance["history"]
    kept = {name: reason for reason, names in note["kept_float"].items() for name in names}
    for name, site in sites.items():
        weight = f"{name}.weight"
        if name.startswith("time_embedding"):
            assert weight in alone.float_parameters
        elif site.kind == "linear" and site.in_channels % 64 == 0:
            assert weight not in alone.float_parameters
            layer = alone.weight_only[name]
            assert (layer.weight_bits, layer.block_size) == (4, 64)
            np.testing.assert_array_equal(layer.bias, denoiser.module.get_submodule(name).bias.numpy())
        else:
            assert weight in alone.float_parameters
            assert "convolution" in kept[name]
    assert note["layers"] == len(alone.weight_only)


def test_blocks_of_128_leave_narrower_layers_float(denoiser):
    sites = quantizable_layers(denoiser.module, denoiser.call)
    options = options_for(method="minmax", activation_bits=16, block_size=128, keep=())
    bits = bits_of_sites(sites, options)
    narrow = [s for s in sites if s.kind == "linear" and s.in_channels == 64]
    assert narrow
    for site in narrow:
        assert bits[site.name].is_float
        assert "64 input channels are no multiple of the block size 128" in bits[site.name].reason
    assert any(own.is_weight_only for own in bits.values())


def test_a_model_without_such_a_layer_is_refused():
    with pytest.raises(OptionError, match="no layer can be weight-only in blocks of 64"):
        quantize(tiny_denoiser(), method="minmax", activation_bits=16)


def test_no_calibration_input_is_drawn_where_all_layers_are_weight_only(denoiser, alone, monkeypatch):
    assert alone.provenance["calibration"]["inputs"] == 0
    assert alone.float_ranges == {}
    assert len(alone.timesteps) == 3

    def must_not_run(*_arguments, **_more):
        raise AssertionError("the model was run")

    monkeypatch.setattr("dq_deploy.methods.minmax.inputs_of", must_not_run)
    monkeypatch.setattr("dq_deploy.methods.ranges.measured_ranges.collect_ranges", must_not_run)
    quantize(denoiser, method="minmax", activation_bits=16, steps=3)
    with pytest.raises(AssertionError, match="the model was run"):
        quantize(denoiser, method="minmax", layer_bits={"*attentions*": (4, 16)}, steps=3)


def test_calibration_inputs_that_were_given_are_used_for_float_ranges(denoiser):
    record = quantize(
        denoiser, method="minmax", activation_bits=16, steps=2, samples=1, calibration=CalibrationSource(kind="random")
    )
    assert record.provenance["calibration"]["inputs"] == 2
    assert record.float_ranges["conv_in"] > 0


def test_integer_and_weight_only_layers_share_a_record(mixed):
    assert {name for name in mixed.weight_only} == {name for name in mixed.weight_only if "attentions" in name}
    assert len(mixed.weight_only) == 16
    assert mixed.layers["conv_in"].activation_bits == 8
    assert not any("attentions" in name for name in mixed.layers)
    assert set(mixed.weight_only) < set(mixed.float_ranges)


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_such_a_record_is_deterministic_and_survives_its_file(denoiser, alone, tmp_path, form):
    save_record(alone, tmp_path / f"a.{form}")
    save_record(quantize(denoiser, method="minmax", activation_bits=16, steps=3), tmp_path / f"b.{form}")
    save_record(load_record(tmp_path / f"a.{form}"), tmp_path / f"c.{form}")
    data = (tmp_path / f"a.{form}").read_bytes()
    assert data == (tmp_path / f"b.{form}").read_bytes() == (tmp_path / f"c.{form}").read_bytes()


def test_the_rebuilt_denoiser_and_the_simulation_have_the_dequantized_weight(denoiser, alone):
    expected = build_denoiser("unet2d", denoiser.config)
    state = dict(denoiser.module.state_dict())
    state.update({f"{name}.weight": torch.from_numpy(layer.weight()) for name, layer in alone.weight_only.items()})
    expected.load_state_dict(state)
    inputs = {name: torch.from_numpy(value) for name, value in example_inputs(denoiser.call, 2, 0).items()}
    with torch.inference_mode():
        want = expected.eval()(**inputs, return_dict=False)[0]
        rebuilt = denoiser_from_record(alone).eval()(**inputs, return_dict=False)[0]
        simulated = simulate(alone)(**inputs)
    assert torch.equal(rebuilt, want)
    assert torch.equal(simulated, want)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_an_engine_gives_what_the_simulation_gives(alone, target, tmp_path):
    manifest = export(alone, tmp_path / "m.onnx", target=target)
    assert {entry.form for entry in manifest.layers} == {"int4 weight-only, block 64"}
    inputs = example_inputs(call_of_record(alone), 3, 1)
    with torch.inference_mode():
        want = simulate(alone)(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()
    with open_engine(tmp_path / "m.onnx") as runner:
        got = runner.run(inputs)["output"]
    # float rounding alone; activations in int8 would be off by 1e-3
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * float(np.abs(want).max()) + 1e-6)


def test_a_layer_that_is_not_linear_in_the_denoiser_is_refused(alone, denoiser):
    import dataclasses

    light = dict(alone.weight_only)
    layer = next(iter(light.values()))
    floats = dict(alone.float_parameters)
    floats.pop("class_embedding.weight")
    table = denoiser.module.get_submodule("class_embedding").weight
    light["class_embedding"] = dataclasses.replace(
        layer,
        name="class_embedding",
        w_code=np.zeros(tuple(table.shape), np.int8),
        scale=np.ones((table.shape[0], table.shape[1] // 64), np.float32),
        bias=None,
    )
    wrong = dataclasses.replace(alone, weight_only=light, float_parameters=floats)
    with pytest.raises(RecordError, match="class_embedding is a Embedding in the denoiser, expected a Linear"):
        denoiser_from_record(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_bits": 16}, "weight-only layers need method minmax"),
        ({"layer_bits": {"a": (4, 16)}}, "weight-only layers need method minmax"),
        ({"method": "minmax", "activation_bits": 16, "weight_bits": 8}, "weight_bits is 8 with activation_bits 16"),
        ({"method": "minmax", "layer_bits": {"a": (8, 16)}}, r"layer_bits for 'a' is \(8, 16\)"),
        ({"method": "minmax", "layer_bits": {"a": 16}}, "layer_bits for 'a' is 16"),
        ({"method": "minmax", "layer_bits": {"a": (16, 4)}}, r"layer_bits for 'a' is \(16, 4\)"),
        ({"method": "minmax", "activation_bits": 12}, "from 2 to 8, or 16 for weight-only layers"),
        ({"method": "minmax", "activation_bits": 16.0}, r"activation_bits is 16\.0"),
        ({"method": "minmax", "activation_bits": 16, "block_size": 32}, "block_size is 32, expected one of 64, 128"),
        ({"block_size": "64"}, "block_size is '64'"),
        ({"block_size": 64.0}, r"block_size is 64\.0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        options_for(**options)


def test_a_preset_may_ask_for_them(tmp_path):
    path = tmp_path / "light.yaml"
    path.write_text("method: minmax\nactivation_bits: 16\nblock_size: 128\nlayer_bits:\n  conv_in: [4, 8]\n")
    options = options_from_preset(str(path))
    assert (options.activation_bits, options.block_size) == (16, 128)
    assert options.layer_bits == {"conv_in": (4, 8)}


def test_the_command_line_makes_and_shows_them(demo_model_dir, tmp_path):
    out, told = tmp_path / "m.pt", tmp_path / "info.json"
    done = command("quantize", "--model", demo_model_dir, "--method", "minmax", "--activations", 16, "--out", out)
    assert done.code == 0, done.err
    assert "weight-only layers" in done.out
    assert "W4A16" in done.out
    record = load_record(out)
    assert record.weight_only
    shown = command("info", out, "--json", told)
    assert shown.code == 0, shown.err
    assert f"{len(record.weight_only)} weight-only layers" in shown.out
    listed = command("quantize", "--model", demo_model_dir, "--method", "minmax", "--activations", 16, "--list-layers")
    assert "W4A16" in listed.out


def test_a_block_size_without_weight_only_layers_is_refused(demo_model_dir, tmp_path):
    out = tmp_path / "m.pt"
    done = command("quantize", "--model", demo_model_dir, "--block-size", 64, "--out", out)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: --block-size 64 was given, but no layer has 16-bit activations")
    assert not out.exists()
