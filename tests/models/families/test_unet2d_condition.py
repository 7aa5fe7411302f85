"""What is said about a UNet2DConditionModel holds when it runs."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.utils.flop_counter import FlopCounterMode

from dq_deploy import models
from dq_deploy.errors import ModelError
from dq_deploy.models import default_call
from dq_deploy.models.sizes import sized
from tests.models.families.test_unet2d import Concatenations
from tests.tiny import LATENT_SCHEDULER, tiny_conditional_config, tiny_conditional_denoiser


def call_of_module(module):
    """The default call by a module's own configuration."""
    return default_call({**module.config, "_class_name": type(module).__name__})


CONFIGS = {
    "stable diffusion 1": tiny_conditional_config(),
    "stable diffusion 2": tiny_conditional_config(
        use_linear_projection=True, attention_head_dim=[1, 2], upcast_attention=True
    ),
    "sdxl": tiny_conditional_config(sdxl=True),
    "no middle block": tiny_conditional_config(mid_block_type=None),
    "wide latents": tiny_conditional_config(sample_size=[8, 16], cross_attention_dim=[12, 12]),
}
SD15 = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def module(config):
    torch.manual_seed(0)
    return models.build_denoiser("unet2d_condition", config)


def run(module, config, batch=2):
    inputs = {
        key: torch.from_numpy(v) for key, v in models.example_inputs(models.default_call(config), batch, 0).items()
    }
    with torch.no_grad():
        return models.call_denoiser(module, inputs)


def test_inputs_and_outputs_fit_the_specs(config, module):
    inputs = models.example_inputs(models.default_call(config), 3, 5)
    specs = models.input_specs(models.default_call(config))
    assert [spec.name for spec in specs] == list(inputs)
    for spec in specs:
        assert inputs[spec.name].dtype == np.dtype(spec.dtype)
        assert inputs[spec.name].shape == sized(spec.shape, 3, models.default_call(config).sizes)
    (output,) = models.output_specs(models.default_call(config))
    assert run(module, config, 3).shape == sized(output.shape, 3, models.default_call(config).sizes)
    again = models.example_inputs(models.default_call(config), 3, 5)
    assert all((again[key] == inputs[key]).all() for key in inputs)


def test_every_input_changes_the_output():
    denoiser = tiny_conditional_denoiser(sdxl=True)
    inputs = {k: torch.from_numpy(v) for k, v in models.example_inputs(denoiser.call, 1, 0).items()}
    with torch.no_grad():
        before = models.call_denoiser(denoiser.module, inputs)
        for name, value in inputs.items():
            changed = models.call_denoiser(denoiser.module, {**inputs, name: value + 1})
            assert (changed - before).abs().max() > 1e-5, name


def test_sites_match_what_each_layer_receives_and_returns(config, module):
    seen = {}
    for name, child in module.named_modules():
        if isinstance(child, (torch.nn.Conv2d, torch.nn.Linear)):
            child.register_forward_hook(
                lambda _, args, out, name=name: seen.update({name: (tuple(args[0].shape), tuple(out.shape))})
            )
    run(module, config)
    sites = models.quantizable_layers(module, models.default_call(config), batch=2)
    assert {site.name: (site.input_shape, site.output_shape) for site in sites} == seen
    assert [site.name for site in sites] == list(seen)


def test_macs_equal_half_of_torchs_flop_count(config, module):
    for child in module.modules():
        if isinstance(child, Attention):
            child.set_processor(AttnProcessor())  # products that torch counts one by one
    with FlopCounterMode(display=False) as counter:
        run(module, config, 1)
    macs = models.macs_of(module, models.default_call(config))
    assert macs.of_all == counter.get_total_flops() // 2
    assert macs.of_quantizable == sum(macs.layers.values())
    assert macs.attention > 0


def test_the_published_shapes_have_their_known_sizes():
    for config, parameters in ((SD15, 859_520_964), (SDXL, 2_567_463_684)):
        module = models.build_denoiser("unet2d_condition", config, device="meta")
        assert sum(p.numel() for p in module.parameters()) == parameters
    assert [spec.shape for spec in models.input_specs(models.default_call(SDXL))[2:]] == [
        ("B", "tokens", 2048),
        ("B", 1280),
        ("B", 6),
    ]
    macs = models.macs_of(models.build_denoiser("unet2d_condition", SD15, device="meta"), models.default_call(SD15))
    assert macs.of_all == pytest.approx(401e9, rel=0.02)
    assert macs.of_quantizable / macs.of_all == pytest.approx(0.845, abs=0.01)


def test_folds_and_refusals_cover_every_layer_once(module):
    folded = [name for site in models.fold_sites(module, call_of_module(module)) for name in site.consumers]
    refused = models.fold_refusals(module, call_of_module(module))
    layers = [n for n, c in module.named_modules() if isinstance(c, (torch.nn.Conv2d, torch.nn.Linear))]
    assert Counter([*folded, *refused]) == Counter(layers)
    for name, reason in refused.items():
        assert reason
        if ".attn2.to_k" in name or ".attn2.to_v" in name:
            assert "text embedding" in reason


def test_skip_splits_name_where_the_skip_begins(config, module):
    with Concatenations() as seen:
        run(module, config)
    skips = [sizes for sizes in seen.channels if len(sizes) == 2][-len(module.up_blocks) * 2 :]
    splits = models.skip_splits(module, call_of_module(module))
    conv1 = [name for name in splits if name.endswith("conv1")]
    widths = [module.get_submodule(name).in_channels for name in conv1]
    assert [[splits[name], width - splits[name]] for name, width in zip(conv1, widths, strict=True)] == skips


def test_blocks_hold_every_layer_once_in_execution_order(config, module):
    blocks = models.blocks_of(module, call_of_module(module))
    sites = [site.name for site in models.quantizable_layers(module, models.default_call(config))]
    assert [name for block in blocks for name in block.layers] == sites
    kinds = {type(module.get_submodule(block.name)).__name__ for block in blocks}
    assert {"TimestepEmbedding", "ResnetBlock2D", "BasicTransformerBlock", "Conv2d"} <= kinds
    assert "Attention" not in kinds


def test_a_pipeline_folder_gives_its_denoiser_and_scheduler(tmp_path):
    denoiser = tiny_conditional_denoiser()
    denoiser.module.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(LATENT_SCHEDULER))
    found = models.load_model(tmp_path)
    assert found.family == "unet2d_condition"
    assert found.scheduler_config == LATENT_SCHEDULER
    assert torch.equal(run(found.module, found.config), run(denoiser.module, denoiser.config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_embed_type": "text_time"}, "that can be built"),
        ({"dual_cross_attention": True}, "cannot run as it is called"),
        ({"cross_attention_dim": [8, 12]}, r"cross_attention_dim \[8, 12\], expected one whole number"),
        ({"norm_num_groups": 5}, "that can be built"),
        ({"surprise": 1}, "that can be built"),
    ],
)
def test_what_is_not_supported_is_named(changes, message):
    with pytest.raises(ModelError, match=message) as caught:
        models.build_denoiser("unet2d_condition", tiny_conditional_config(**changes))
    assert "\n" not in str(caught.value)
