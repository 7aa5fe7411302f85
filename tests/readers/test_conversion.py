"""Checkpoints of each source become records with its own weights; what contradicts them is refused in one line."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch

from dq_deploy.errors import DqError, FileProblemError, ModelError, OptionError
from dq_deploy.models import denoiser_from_record
from dq_deploy.readers import import_checkpoint, settings_from
from dq_deploy.readers.architectures.described_network import architecture_of
from tests.readers.foreign_files import (
    DDIM,
    DDIM_SMALL,
    LDM,
    LDM_TEXT,
    dmq,
    fake_weight,
    foreign,
    save_checkpoint,
    save_float,
    wrapped,
)

STEPS = [900, 500, 100]


@lru_cache
def ddim(**settings):
    return foreign(DDIM, **{key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()})


@lru_cache
def small():
    """A network of few layers, its file and the weights in it."""
    model = foreign(DDIM_SMALL)
    return model, *wrapped(model)


@lru_cache
def ldm(**settings):
    return foreign(LDM, **{key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()})


def imported(tmp_path, reader, model, content, *, settings=None, masks="float"):
    checkpoint = save_checkpoint(tmp_path / "quant.pth", content)
    floats = save_float(tmp_path / "float.safetensors", model.state)
    return import_checkpoint(reader, checkpoint, floats, settings_from(settings or model.settings), masks=masks)


def source_weight(record, model, path, shape):
    """A layer's codes times scales in the source's shape, whether integer or float."""
    weight = np.zeros(shape, np.float32)
    for target in architecture_of(settings_from(model.settings)).targets[path]:
        rows = slice(None) if target.rows is None else target.rows
        layer = record.layers.get(target.name)
        if layer is None:
            value = record.float_parameters[f"{target.name}.weight"]
        else:
            value = np.concatenate(
                [
                    p.q_weight(0).astype(np.float32) * p.weight_scale[0].reshape(-1, *(1,) * (p.w_code.ndim - 2))
                    for p in layer.parts
                ],
                axis=1,
            )
        weight[rows] = value.reshape(-1, *shape[1:])
    return weight


def check_weights(record, model, expected):
    for path, weight in expected.items():
        assert np.array_equal(source_weight(record, model, path, weight.shape), weight), path


def reasons(record):
    return {why: names for h in record.provenance["history"] for why, names in h.get("kept_float", {}).items()}


def test_q_diffusion_s_file_is_imported_to_the_bit(tmp_path):
    model = ddim(timesteps=tuple(STEPS))
    content, expected = wrapped(model)
    record = imported(tmp_path, "q-diffusion", model, content)
    check_weights(record, model, expected)
    assert not reasons(record)
    assert record.timesteps.tolist() == [100, 500, 900]
    shortcut = record.layers["up_blocks.1.resnets.0.conv_shortcut"]
    assert [len(part.pre) for part in shortcut.parts] == [32, 32]
    zero = content["model.up.0.block.0.nin_shortcut.act_quantizer_0.zero_point"]
    assert shortcut.parts[1].zero_point.tolist() == [round(float(zero))]
    left_out = [h["attention_quantizers"] for h in record.provenance["history"] if "attention_quantizers" in h]
    assert left_out == [["mid.attn_1.act_quantizer_q"]]
    assert denoiser_from_record(record).training is False


def test_rounding_to_nearest_where_no_layer_learned_it(tmp_path):
    model = small()[0]
    content, expected = wrapped(model, alpha=False)
    check_weights(imported(tmp_path, "q-diffusion", model, content), model, expected)


def test_signed_activations_that_the_settings_deny_are_refused(tmp_path):
    model, held, _ = small()
    content = {k: np.zeros_like(v) if ".act_quantizer" in k and "zero" in k else v for k, v in held.items()}
    with pytest.raises(OptionError, match=r"every activation zero point of .* is 0, .* symmetric_activations: true"):
        imported(tmp_path, "q-diffusion", model, content)


def test_a_layer_may_be_left_float_and_the_scheduler_given(tmp_path):
    model, content, _ = small()
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
    settings = {**model.settings, "float_layers": ["conv_in"], "scheduler": scheduler}
    record = imported(tmp_path, "q-diffusion", model, content, settings=settings)
    assert np.array_equal(record.float_parameters["conv_in.weight"], model.state["conv_in.weight"])
    assert record.scheduler_config == scheduler


def test_q_diffusion_s_file_of_a_network_with_text(tmp_path):
    model = foreign(LDM_TEXT)
    content, expected = wrapped(model)
    record = imported(tmp_path, "q-diffusion", model, content)
    check_weights(record, model, expected)
    assert record.family == "unet2d_condition"
    assert len(record.layers) == len(model.layers)


def test_cachequant_s_tables_come_in_rising_timesteps_with_rounded_zero_points(tmp_path):
    model = ddim(timesteps=tuple(STEPS))
    content, expected = wrapped(model, steps=3)
    record = imported(tmp_path, "cachequant", model, content)
    check_weights(record, model, expected)
    part = record.layers["conv_in"].parts[0]
    assert np.array_equal(part.scale, content["model.conv_in.act_quantizer.delta"][::-1])
    assert np.array_equal(part.zero_point, np.rint(content["model.conv_in.act_quantizer.zero_point"])[::-1])


def test_quest_s_first_and_last_layer_stay_float_with_their_rounded_weights(tmp_path):
    model = ldm(timesteps=tuple(STEPS), symmetric_activations=True)
    content, expected = wrapped(model, steps=3, lists=True, splits=False)
    record = imported(tmp_path, "quest", model, content)
    check_weights(record, model, expected)
    assert [names for why, names in reasons(record).items() if "-257 to 256" in why] == [["conv_in", "conv_out"]]
    layer = record.layers["mid_block.attentions.0.to_k"]
    assert (layer.q_min, layer.q_max, layer.kind) == (-128, 127, "linear")


def test_quest_s_finetuned_weights_replace_the_float_model_s(tmp_path):
    model = ldm(timesteps=tuple(STEPS), symmetric_activations=True)
    tuned = dataclasses.replace(
        model, state={**model.state, "middle_block.1.qkv.weight": 1.01 * model.state["middle_block.1.qkv.weight"]}
    )
    content, expected = wrapped(tuned, steps=3, lists=True, splits=False)
    record = imported(tmp_path, "quest", model, content)
    check_weights(record, model, expected)
    assert ["middle_block.1.qkv.weight"] in [h.get("changed") for h in record.provenance["history"]]


def test_eda_dm_s_codes_are_unsigned_though_symmetric(tmp_path):
    model = ddim(symmetric_activations=True)
    content, expected = wrapped(model)
    del content["model.conv_out.act_quantizer.delta"], content["model.conv_out.act_quantizer.zero_point"]
    record = imported(tmp_path, "eda-dm", model, content)
    check_weights(record, model, expected)
    assert record.layers["conv_in"].q_min == 0
    assert reasons(record) == {"the file has no quantizer for its input; its weight is dequantized": ["conv_out"]}


def test_dmq_s_equal_factors_are_exact(tmp_path):
    content, expected = dmq(ldm(), same_masks=True)
    record = imported(tmp_path, "dmq", ldm(), content)
    path, layer = "output_blocks.0.0.skip_connection", record.layers["up_blocks.0.resnets.0.conv_shortcut"]
    part, gamma = layer.parts[0], content["weight"][f"model.{path}.gamma"].reshape(-1)[:32]
    factor = content["act_7"][f"model.{path}.aqtizer.scale_mask"]
    assert layer.weight_bits == 8
    assert np.array_equal(part.pre, (np.float32(1) / gamma) / factor)
    weight = part.q_weight(0)[:, :, 0, 0] * part.weight_scale[0][:, None] / factor
    assert np.array_equal(weight.astype(np.float32), expected[path][:, :32, 0, 0])
    own = [p for p in expected if "skip" not in p and "emb" not in p and p not in ("input_blocks.0.0", "out.2")]
    check_weights(record, ldm(), {p: expected[p] for p in own})
    assert part.scale[0] == content["act_19"][f"model.{path}.aqtizer.delta"].item()  # the lowest timesteps
    assert record.step_edges[:2].tolist() == [51, 101]


def test_dmq_s_factors_that_differ_by_step_stay_float_or_are_elected(tmp_path):
    content, expected = dmq(ldm(), same_masks=False)
    record = imported(tmp_path, "dmq", ldm(), content)
    why = next(why for why in reasons(record) if "differ by step" in why)
    assert len(reasons(record)[why]) == 4
    path = "output_blocks.0.0.skip_connection"
    weight = record.float_parameters["up_blocks.0.resnets.0.conv_shortcut.weight"]
    assert np.array_equal(weight, expected[path] / content["weight"][f"model.{path}.gamma"])
    voted = imported(tmp_path, "dmq", ldm(), content, masks="vote")
    votes = next(h["changed_of_entries"] for h in voted.provenance["history"] if "changed_of_entries" in h)
    assert votes[path][1] == 20 * 64
    assert 0 < votes[path][0] < 20 * 64
    assert "up_blocks.0.resnets.0.conv_shortcut" in voted.layers


def test_the_float_model_may_be_a_diffusers_folder(tmp_path):
    content, _ = dmq(ldm(), same_masks=True)
    record = imported(tmp_path, "dmq", ldm(), content)
    described = architecture_of(settings_from(ldm().settings))
    from dq_deploy.models import build_denoiser

    module = build_denoiser(described.family, described.config)
    state = {}
    for path, targets in described.targets.items():
        for end in ("weight", "bias"):
            for target in targets if f"{path}.{end}" in ldm().state else ():
                value = ldm().state[f"{path}.{end}"]
                rows = value if target.rows is None else value[target.rows]
                key = f"{target.name}.{end}"
                state[key] = torch.from_numpy(rows.reshape(module.state_dict()[key].shape).copy())
    module.load_state_dict(state)
    module.save_pretrained(tmp_path / "folder")
    settings = settings_from(ldm().settings)
    again = import_checkpoint("dmq", tmp_path / "quant.pth", tmp_path / "folder", settings)
    for name, layer in record.layers.items():
        for one, other in zip(layer.parts, again.layers[name].parts, strict=True):
            assert np.array_equal(one.w_code, other.w_code)
    (tmp_path / "folder" / "scheduler_config.json").write_text('{"_class_name": "NoSuchScheduler"}')
    with pytest.raises(ModelError, match=r"is a NoSuchScheduler.*or write `scheduler:` into the settings"):
        import_checkpoint("dmq", tmp_path / "quant.pth", tmp_path / "folder", settings)
    given = settings_from({**ldm().settings, "scheduler": {"_class_name": "DDPMScheduler"}})
    record = import_checkpoint("dmq", tmp_path / "quant.pth", tmp_path / "folder", given)
    assert record.scheduler_config == {"_class_name": "DDPMScheduler"}
    changed = {**LDM["config"], "num_heads": 1}
    with pytest.raises(FileProblemError, match="has attention heads"):
        import_checkpoint(
            "dmq",
            tmp_path / "quant.pth",
            tmp_path / "folder",
            settings_from({**ldm().settings, "architecture": {"family": "ldm", "config": changed}}),
        )


def test_weights_beyond_int8_are_integer_layers_with_their_zero_points(tmp_path):
    model, held, _ = small()
    content = {key: value.copy() for key, value in held.items()}
    zero = content["model.conv_in.weight_quantizer.zero_point"]
    zero += 200
    zero[0] = 35  # a one-sided channel: legal
    record = imported(tmp_path, "q-diffusion", model, content)
    assert reasons(record) == {}
    part = record.layers["conv_in"].parts[0]
    assert not part.fits_int8
    np.testing.assert_array_equal(part.w_zero_point[0], zero.reshape(-1) - 8)
    weight = fake_weight(model.state["conv_in.weight"], quantizer_of(content, "conv_in"), 4)
    mine = part.q_weight(0).astype(np.float32) * part.weight_scale[0].reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(mine, weight)


def test_weights_whose_sums_leave_int32_stay_float_and_are_named(tmp_path):
    model, held, _ = small()
    content = {key: value.copy() for key, value in held.items()}
    content["model.mid.block_1.conv1.weight_quantizer.zero_point"] += 2**20 - 1000
    record = imported(tmp_path, "q-diffusion", model, content)
    assert list(reasons(record).values()) == [["mid_block.resnets.0.conv1"]]
    assert "reaches 2^31" in next(iter(reasons(record)))


def quantizer_of(content, path):
    prefix = f"model.{path}.weight_quantizer."
    return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}


def attention_tables(content, prefix, scale="delta", zero="zero_point", *, steps=None, largest=255):
    """Quantizers of the products of one attention; with steps, tables along an axis, as QuEST stores them."""
    rng = np.random.default_rng(0)
    for name in ("q", "k", "v", "w"):
        values = rng.uniform(0.01, 0.1, steps or 1).astype(np.float32), rng.integers(0, largest + 1, steps or 1)
        for what, value in ((scale, values[0]), (zero, values[1].astype(np.float32))):
            full = value.reshape(()) if steps is None else np.broadcast_to(value[:, None, None], (steps, 1, 4)).copy()
            content[f"{prefix.format('qkv' if name in 'qk' else 'smv')}.act_quantizer_{name}.{what}"] = full
    return content


def test_attention_quantizers_are_kept_by_their_diffusers_name_and_role(tmp_path):
    model = ddim(softmax_bits=16)
    content = attention_tables(dict(wrapped(model)[0]), "model.mid.attn_1")
    record = imported(tmp_path, "q-diffusion", model, content)
    own = record.attention["mid_block.attentions.0"]
    assert set(own.tables) == {"q", "k", "v", "p"}
    assert (own.tables["p"].bits, own.tables["p"].q_max, own.tables["q"].bits) == (16, 2**16 - 1, 8)
    for role, name in (("q", "q"), ("p", "w")):
        key = f"model.mid.attn_1.act_quantizer_{name}"
        assert own.tables[role].scale == content[f"{key}.delta"]
        assert own.tables[role].zero_point == content[f"{key}.zero_point"]


def test_attention_tables_come_in_rising_timesteps_and_without_softmax_bits_p_is_left_out(tmp_path):
    model = ldm(timesteps=tuple(STEPS), symmetric_activations=True)
    content, _ = wrapped(model, steps=3, lists=True, splits=False)
    prefix = "model.middle_block.1.attention.{}_matmul"
    attention_tables(content, prefix, "delta_list", "zero_point_list", steps=3, largest=0)
    record = imported(tmp_path, "quest", model, content)
    table = record.attention["mid_block.attentions.0"].tables["q"]
    key = "model.middle_block.1.attention.qkv_matmul.act_quantizer_q.delta_list"
    np.testing.assert_array_equal(table.scale, content[key][::-1, 0, 0])
    assert (table.q_min, table.q_max) == (-128, 127)
    assert set(record.attention["mid_block.attentions.0"].tables) == {"q", "k", "v"}
    note = next(h for h in record.provenance["history"] if h.get("stage") == "left out")
    assert note["attention_quantizers"] == ["middle_block.1.attention.smv_matmul.act_quantizer_w"]
    assert list(note["reasons"]) == ["the settings do not give softmax_bits"]


BAD = [
    ("conv_in.weight_quantizer.alpha", None, "lacks alpha, the learned rounding, of conv_in"),
    ("conv_in.weight_quantizer.alpha", np.zeros((), np.float32), r"alpha has shape \(\), expected"),
    (
        "conv_in.weight_quantizer.alpha",
        np.zeros((32, 1, 1, 3), np.float32),
        r"alpha has shape \(32, 1, 1, 3\), expected",
    ),
    ("conv_in.weight_quantizer.alpha", np.zeros((32, 2, 3, 3), np.float32), "has 2 input channels, expected 1"),
    ("conv_in.weight_quantizer.delta", np.full((32, 1, 1, 1), np.nan, np.float32), "delta holds NaN or infinity"),
    (
        "conv_in.weight_quantizer.delta",
        np.zeros((32, 1, 1, 1), np.float32),
        "delta holds 0.0, expected positive scales",
    ),
    ("conv_in.weight_quantizer.delta", np.ones((31, 1, 1, 1), np.float32), r"has shape \(31, 1, 1, 1\), expected one"),
    ("conv_in.weight_quantizer.zero_point", None, "lacks conv_in.weight_quantizer.zero_point"),
    ("conv_in.weight_quantizer.delta", np.full((32, 1, 1, 1), 1e-3, np.float32), "weights span .* at 4 bits; correct"),
    ("conv_in.act_quantizer.delta", np.ones(3, np.float32), r"has shape \(3,\), expected one number"),
    ("conv_in.act_quantizer.zero_point", np.asarray(1e9, np.float32), "zero_point holds 1e.09, expected a zero point"),
    ("conv_in.weight", None, "lacks conv_in.weight"),
    ("conv_in.weight", np.zeros((32, 2, 3, 3), np.float32), r"conv_in.weight has shape \(32, 2, 3, 3\), expected"),
    ("conv_in.bias", np.ones(32, np.float32), "conv_in.bias differ from `float_model`"),
    ("conv_in.weight_quantizer.beta", np.ones(1, np.float32), "has conv_in.weight_quantizer.beta, which"),
    ("up.0.block.0.nin_shortcut.weight_quantizer_0.delta", None, "is not split"),
]


@pytest.mark.parametrize(("name", "value", "match"), BAD, ids=[match[:40] for _, _, match in BAD])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, value, match):
    model, held, _ = small()
    content = dict(held)
    if value is None:
        del content[f"model.{name}"]
    else:
        content[f"model.{name}"] = value
    with pytest.raises(DqError, match=match) as caught:
        imported(tmp_path, "q-diffusion", model, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reader", "settings", "match"),
    [
        ("q-diffusion", {"weight_bits": 8}, "weights span .* expected about 255 at 8 bits"),
        ("q-diffusion", {"symmetric_activations": True}, "zero points of .* are not 0, but the settings say symmetric"),
        ("q-diffusion", {"layer_bits": {"conv_inn": {"weight": 8}}}, "layer_bits names conv_inn, which the network"),
        ("q-diffusion", {"splits": {"up.0.block.0.nin_shortcut": 16}}, "at 32, the settings at 16"),
        ("cachequant", {"timesteps": [5]}, "timesteps has 1 entries, but quant.pth has tables of 3 steps"),
        ("q-diffusion", {"activation_bits": 4}, "activation zero points reach 1.., expected up to about 15 at 4 bits"),
        ("q-diffusion", {"float_layers": ["nothing"]}, "float_layers names nothing"),
        ("quest", {}, "has conv_in.act_quantizer.delta, .* check `reader`"),
        ("dmq", {}, "lacks the section weight, act_0"),
        ("eda", {}, "`reader` got 'eda', expected one of q-diffusion, dmq"),
    ],
)
def test_settings_that_contradict_the_file_are_refused(tmp_path, reader, settings, match):
    model, content, _ = small()
    if reader == "cachequant":
        content = wrapped(model, steps=3)[0]
    with pytest.raises(DqError, match=match) as caught:
        imported(tmp_path, reader, model, content, settings={**model.settings, **settings})
    assert "\n" not in str(caught.value)


def test_quest_s_scales_along_the_channels_are_refused_by_layer(tmp_path):
    model = ldm(timesteps=tuple(STEPS), symmetric_activations=True)
    content, _ = wrapped(model, steps=3, lists=True, splits=False)
    content["model.middle_block.1.qkv.act_quantizer.delta_list"][:, 3] *= 2
    with pytest.raises(FileProblemError, match=r"scales of 1 layers \(middle_block.1.qkv\) vary along the channels"):
        imported(tmp_path, "quest", model, content)


def test_a_bare_state_dict_and_a_weight_only_file_are_refused_with_what_is_missing(tmp_path):
    model, content, _ = small()
    bare = {k: v for k, v in content.items() if not k.endswith("zero_point") and "weight_quantizer.delta" not in k}
    with pytest.raises(FileProblemError, match=r"lacks the scales of \d+ weights .* the zero points of \d+ weights"):
        imported(tmp_path, "eda-dm", model, bare)
    light = {k: v for k, v in content.items() if "act_quantizer" not in k}
    with pytest.raises(FileProblemError, match="has no activation quantizer: this is a weight-only file"):
        imported(tmp_path, "q-diffusion", model, light)
    with pytest.raises(OptionError, match="`masks` got 'no'"):
        imported(tmp_path, "q-diffusion", model, content, masks="no")
