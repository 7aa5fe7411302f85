"""A module that was changed behind its configuration is refused before it is quantized; changed weights are said."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, PAGIdentitySelfAttnProcessor2_0

from dq_deploy import load_model, quantize
from dq_deploy.errors import ModelError
from dq_deploy.models.described import check_as_described, with_hash_of_weights
from tests.tiny import ONE_LEVEL, tiny_conditional_denoiser, tiny_denoiser


class _Adapter(torch.nn.Module):
    """A layer as peft puts it in the place of another."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer


_Adapter.__module__ = "peft.tuners.lora.layer"


def _with_adapter(module):
    module.conv_in = _Adapter(module.conv_in)


def _with_lora_merged(module):
    module.conv_in.weight.data += 0.1
    module.lora_scale = 1.0  # which diffusers leaves behind


CHANGES = {
    "adapter": (_with_adapter, r"holds adapters \(conv_in\).*`unload_lora\(\)`"),
    "another layer": (lambda m: setattr(m, "extra", torch.nn.Linear(2, 2)), r"has extra\.bias, extra\.weight"),
    "another class of layer": (
        lambda m: setattr(m, "conv_act", torch.nn.GELU()),
        "has a GELU in conv_act",
    ),
    "an attention of one's own": (
        lambda m: m.set_attn_processor(type("Mine", (AttnProcessor,), {})()),
        "has the attention processor Mine in ",
    ),
    "another attention of diffusers": (
        lambda m: m.set_attn_processor(PAGIdentitySelfAttnProcessor2_0()),
        "has the attention processor PAGIdentitySelfAttnProcessor2_0 in ",
    ),
    "a hook": (lambda m: m.conv_in.register_forward_hook(lambda *_: None), "has a forward hook in conv_in"),
    "its own forward": (lambda m: setattr(m, "forward", m.forward), "has a forward of its own at its top"),
    "FreeU": (lambda m: m.enable_freeu(0.9, 0.2, 1.5, 1.6), r"has b1=1\.5 in up_blocks\.0"),
    "training": (lambda m: m.train(), r"in training mode.*`eval\(\)`"),
    "half": (lambda m: m.half(), r"conv_in\.weight of the denoiser is torch\.float16\(.*expected torch\.float32"),
    "no values": (lambda m: m.to("meta"), r"has no values for conv_in\.weight"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_module_is_refused_and_the_message_says_where(name):
    change, words = CHANGES[name]
    denoiser = tiny_conditional_denoiser()
    check_as_described(denoiser)
    change(denoiser.module)
    with pytest.raises(ModelError, match=words):
        check_as_described(denoiser)


def test_a_module_in_a_wrapper_is_refused_before_anything_runs():
    denoiser = tiny_denoiser(**ONE_LEVEL)
    wrapped = dataclasses.replace(denoiser, module=torch.nn.DataParallel(denoiser.module))
    with pytest.raises(ModelError, match="is a DataParallel, expected a UNet2DModel"):
        quantize(wrapped, method="minmax", steps=1, samples=1)


def test_what_changes_no_result_is_taken():
    denoiser = tiny_conditional_denoiser()
    denoiser.module.enable_freeu(0.9, 0.2, 1.5, 1.6)
    denoiser.module.disable_freeu()
    denoiser.module.set_attention_slice("max")
    denoiser.module.requires_grad_(True)
    _with_lora_merged(denoiser.module)
    check_as_described(denoiser)


def test_weights_changed_since_loading_are_no_longer_those_of_the_file(tmp_path):
    small = tiny_denoiser(**ONE_LEVEL)
    small.module.save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert with_hash_of_weights(loaded) is loaded
    _with_lora_merged(loaded.module)
    merged = with_hash_of_weights(loaded)
    assert merged.source_sha256 != loaded.source_sha256
    assert merged.source_sha256 == with_hash_of_weights(loaded).source_sha256


def test_one_changed_number_shows(tmp_path):
    small = tiny_denoiser(**{**ONE_LEVEL, "block_out_channels": (32,), "norm_num_groups": 8})
    small.module.save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    name, weight = max(loaded.module.named_parameters(), key=lambda pair: pair[1].numel())
    assert weight.numel() > 4096, name
    weight.data.flatten()[1] += 1
    assert with_hash_of_weights(loaded).source_sha256 != loaded.source_sha256
