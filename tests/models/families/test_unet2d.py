"""What is said about a UNet2DModel holds when it runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from dq_deploy import models
from dq_deploy.errors import ModelError
from dq_deploy.models import default_call
from dq_deploy.models.sizes import sized
from tests.tiny import tiny_config


def call_of_module(module):
    """The default call by a module's own configuration."""
    return default_call({**module.config, "_class_name": type(module).__name__})


DEMO = Path(__file__).parents[3] / "examples" / "mnist-ddpm-32"
DEMO_CONFIG = json.loads((DEMO / "unet" / "config.json").read_text())
CIFAR = {
    "_class_name": "UNet2DModel",
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
RESNET_BLOCKS = tiny_config(
    down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
)
CONFIGS = {
    "tiny": tiny_config(),
    "classes": tiny_config(classes=3),
    "learned variance": tiny_config(out_channels=2),
    "wide samples": tiny_config(sample_size=[8, 16]),
    "residual samplers": RESNET_BLOCKS,
    "fourier": tiny_config(time_embedding_type="fourier"),
    "no attention in the middle": tiny_config(add_attention=False),
    "padding before the stride": tiny_config(downsample_padding=0),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def module(config):
    torch.manual_seed(0)
    return models.build_denoiser("unet2d", config)


def inputs_of(config, batch=2):
    return {key: torch.from_numpy(v) for key, v in models.example_inputs(models.default_call(config), batch, 0).items()}


def run(module, inputs):
    with torch.no_grad():
        return module(**inputs).sample


def test_inputs_and_outputs_fit_the_specs(config, module):
    inputs = models.example_inputs(models.default_call(config), 3, 5)
    specs = models.input_specs(models.default_call(config))
    assert [spec.name for spec in specs] == list(inputs)
    for spec in specs:
        assert inputs[spec.name].dtype == np.dtype(spec.dtype)
        assert inputs[spec.name].shape == sized(spec.shape, 3, models.default_call(config).sizes)
        assert spec.shape[0] == "B"
    (output,) = models.output_specs(models.default_call(config))
    assert run(module, inputs_of(config, 3)).shape == sized(output.shape, 3, models.default_call(config).sizes)
    again = models.example_inputs(models.default_call(config), 3, 5)
    assert all((again[key] == inputs[key]).all() for key in inputs)
    assert (models.example_inputs(models.default_call(config), 3, 6)["sample"] != inputs["sample"]).any()


def test_sites_match_what_each_layer_receives_and_returns(config, module):
    seen = {}
    for name, child in module.named_modules():
        if isinstance(child, (torch.nn.Conv2d, torch.nn.Linear)):
            child.register_forward_hook(
                lambda _, args, out, name=name: seen.update({name: (tuple(args[0].shape), tuple(out.shape))})
            )
    run(module, inputs_of(config, 2))
    sites = models.quantizable_layers(module, models.default_call(config), batch=2)
    assert [site.name for site in sites] == list(seen)  # in execution order
    for site in sites:
        assert (site.input_shape, site.output_shape) == seen[site.name]
        child = module.get_submodule(site.name)
        assert site.kind == ("linear" if isinstance(child, torch.nn.Linear) else "conv2d")
        expected = (site.out_channels, site.in_channels // site.groups, *site.kernel)
        assert tuple(child.weight.shape) == expected
        if site.kind == "conv2d":
            for axis in (0, 1):
                padded = site.input_shape[2 + axis] + site.padding[axis] + site.padding[axis + 2]
                span = site.dilation[axis] * (site.kernel[axis] - 1) + 1
                assert (padded - span) // site.stride[axis] + 1 == site.output_shape[2 + axis]


def test_macs_equal_half_of_torchs_flop_count(config, module):
    for child in module.modules():
        if isinstance(child, Attention):
            child.set_processor(AttnProcessor())  # products that torch counts one by one
    with FlopCounterMode(display=False) as counter:
        run(module, inputs_of(config, 1))
    macs = models.macs_of(module, models.default_call(config))
    assert macs.of_all == counter.get_total_flops() // 2
    assert macs.of_all == macs.of_quantizable + macs.attention
    assert macs.of_quantizable == sum(macs.layers.values())
    assert models.macs_of(models.build_denoiser("unet2d", config, device="meta"), models.default_call(config)) == macs


def test_macs_of_one_sample_do_not_depend_on_the_batch(config, module):
    one = models.quantizable_layers(module, models.default_call(config), batch=1)
    four = models.quantizable_layers(module, models.default_call(config), batch=4)
    assert [site.macs for site in one] == [site.macs for site in four]


def test_listing_layers_leaves_the_model_as_it_was(config, module):
    before = run(module, inputs_of(config))
    models.quantizable_layers(module, models.default_call(config))
    models.blocks_of(module, call_of_module(module))
    assert torch.equal(run(module, inputs_of(config)), before)
    assert not any(child._forward_hooks for child in module.modules())


def test_the_cifar_shape_has_its_known_size_and_work():
    macs = models.macs_of(models.build_denoiser("unet2d", CIFAR, device="meta"), models.default_call(CIFAR))
    module = models.build_denoiser("unet2d", CIFAR)
    assert sum(p.numel() for p in module.parameters()) == 35_746_307
    assert macs.of_all == pytest.approx(6.1e9, rel=0.03)
    assert macs.of_quantizable / macs.of_all > 0.97


def test_folds_and_refusals_cover_every_layer_once(module):
    folded = [name for site in models.fold_sites(module, call_of_module(module)) for name in site.consumers]
    refused = models.fold_refusals(module, call_of_module(module))
    layers = [n for n, c in module.named_modules() if isinstance(c, (torch.nn.Conv2d, torch.nn.Linear))]
    assert Counter([*folded, *refused]) == Counter(layers)
    assert all(refused.values())


def test_every_fold_leaves_the_function_unchanged(config, module):
    module = module.double()
    inputs = inputs_of(config)
    inputs["sample"] = inputs["sample"].double()
    before = run(module, inputs)
    generator = torch.Generator().manual_seed(1)
    sites = models.fold_sites(module, call_of_module(module))
    for site in sites:
        producer = module.get_submodule(site.producer)
        pre = torch.rand(len(producer.weight), generator=generator, dtype=torch.float64) + 0.5
        producer.weight *= pre.reshape(-1, *[1] * (producer.weight.ndim - 1))
        producer.bias *= pre
        for name in site.consumers:
            module.get_submodule(name).weight /= pre
    torch.testing.assert_close(run(module, inputs), before, rtol=1e-9, atol=1e-9)
    assert {site.kind for site in sites} == {"group_norm", "linear_rows"}


class Concatenations(TorchFunctionMode):
    """Channels of what is concatenated along axis 1, in order."""

    def __init__(self):
        super().__init__()
        self.channels = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.cat and kwargs.get("dim", args[1] if len(args) > 1 else 0) == 1:
            self.channels.append([tensor.shape[1] for tensor in args[0]])
        return func(*args, **kwargs)


def test_skip_splits_name_where_the_skip_begins(config, module):
    with Concatenations() as seen:
        run(module, inputs_of(config))
    splits = models.skip_splits(module, call_of_module(module))
    first = [splits[name] for name in splits if name.endswith("conv1")]
    widths = [module.get_submodule(name).in_channels for name in splits if name.endswith("conv1")]
    assert [[a, w - a] for a, w in zip(first, widths, strict=True)] == seen.channels
    for name, channels in splits.items():
        assert splits[name.rsplit(".", 1)[0] + ".conv1"] == channels


def test_blocks_hold_every_layer_once_in_execution_order(config, module):
    blocks = models.blocks_of(module, call_of_module(module))
    sites = [site.name for site in models.quantizable_layers(module, models.default_call(config))]
    assert [name for block in blocks for name in block.layers] == sites
    assert blocks[0].name == "time_embedding"
    assert blocks[-1].name == "conv_out"
    for block in blocks:
        assert all(name == block.name or name.startswith(f"{block.name}.") for name in block.layers)
    names = [block.name for block in blocks]
    assert len(set(names)) == len(names)
    assert {type(module.get_submodule(name)).__name__ for name in names} == {
        "TimestepEmbedding",
        "Conv2d",
        "ResnetBlock2D",
        "Attention",
    }


def test_the_demo_model_lists_64_layers():
    module = models.load_model(DEMO).module
    assert len(models.quantizable_layers(module, models.default_call(DEMO_CONFIG))) == 64
    assert models.macs_of(module, models.default_call(DEMO_CONFIG)).of_all == 248676352


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_size": "32"}, "sample_size '32'"),
        ({"sample_size": 9}, "the UNet2DModel cannot run as it is called: Sizes of tensors must match"),
        ({"block_out_channels": [8]}, "that can be built"),
        ({"norm_num_groups": 5}, "that can be built"),
        ({"block_out_channels": "wide"}, "that can be built"),
        ({"surprise": 1}, "that can be built"),
    ],
)
def test_what_is_not_supported_is_named(changes, message):
    with pytest.raises(ModelError, match=message) as caught:
        models.build_denoiser("unet2d", tiny_config(**changes))
    assert "\n" not in str(caught.value)


def test_unknown_families_and_classes_are_named():
    with pytest.raises(ModelError, match="family 'vae' is unknown: diffusers has no class of this name"):
        models.build_denoiser("vae", {})
    with pytest.raises(ModelError, match="AutoencoderKL is no model that is told a timestep"):
        models.build_denoiser("AutoencoderKL", {})
    with pytest.raises(ModelError, match="'UNet3D'"):
        models.input_specs(models.default_call({"_class_name": "UNet3D"}))
