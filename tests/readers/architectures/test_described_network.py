"""A source's network computes the same as the diffusers network that its settings become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.models import build_denoiser
from dq_deploy.readers import settings_from
from dq_deploy.readers.architectures.described_network import architecture_of, float_state, moved, without_prefix
from dq_deploy.readers.tensors import Tensors
from tests.readers.foreign_files import DDIM, LDM, LDM_TEXT, foreign


def converted(model):
    """The diffusers module with the source's weights."""
    described = architecture_of(settings_from(model.settings))
    module = build_denoiser(described.family, described.config)
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    state = float_state(Tensors(model.state, "file"), described, shapes)
    ready = {}
    for path, targets in described.targets.items():
        for end in ("weight", "bias"):
            for target in targets if f"{path}.{end}" in state else ():
                key = f"{target.name}.{end}"
                ready[key] = torch.from_numpy(
                    moved(state[f"{path}.{end}"], target, shapes[key], key, whole=len(targets))
                )
    module.load_state_dict(ready)
    return module


class Source:
    """The sources' networks, written from their papers in functional form."""

    def __init__(self, model):
        self.state = {key: torch.from_numpy(value) for key, value in model.state.items()}
        self.eps = 1e-6

    def conv(self, name, x, **kwargs):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(
            x, weight.reshape(*weight.shape, *(1,) * (4 - weight.ndim)), self.state[f"{name}.bias"], **kwargs
        )

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x, eps=None):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps or self.eps)

    def resnet(self, name, x, time, words):
        norm1, conv1, embedding, norm2, conv2, shortcut = (f"{name}.{word}" for word in words)
        h = self.conv(conv1, F.silu(self.norm(norm1, x)), padding=1)
        h = h + self.linear(embedding, F.silu(time))[:, :, None, None]
        h = self.conv(conv2, F.silu(self.norm(norm2, h)), padding=1)
        return h + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.state else x)

    def product(self, q, k, v, heads):
        """Attention of [B, C, N] tensors."""
        b, c, n = q.shape
        q, k, v = (t.reshape(b * heads, c // heads, -1) for t in (q, k, v))
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / (c // heads) ** 0.5, -1)
        return torch.einsum("bts,bcs->bct", weights, v).reshape(b, c, n)


def ddim_forward(model, x, t):
    s = Source(model)
    words = ("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut")
    frequencies = torch.exp(torch.arange(16) * -(np.log(10000) / 15)).float()
    time = torch.cat([torch.sin(t[:, None] * frequencies), torch.cos(t[:, None] * frequencies)], 1)
    time = s.linear("temb.dense.1", F.silu(s.linear("temb.dense.0", time)))

    def attention(name, h):
        n = s.norm(f"{name}.norm", h)
        q, k, v = (s.conv(f"{name}.{w}", n).flatten(2) for w in "qkv")
        return h + s.conv(f"{name}.proj_out", s.product(q, k, v, 1).reshape(h.shape))

    h = s.conv("conv_in", x, padding=1)
    skips = [h]
    h = s.resnet("down.0.block.0", h, time, words)
    skips.append(h)
    h = s.conv("down.0.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    skips.append(h)
    h = attention("down.1.attn.0", s.resnet("down.1.block.0", h, time, words))
    skips.append(h)
    h = attention("mid.attn_1", s.resnet("mid.block_1", h, time, words))
    h = s.resnet("mid.block_2", h, time, words)
    for block in (0, 1):
        h = s.resnet(f"up.1.block.{block}", torch.cat([h, skips.pop()], 1), time, words)
        h = attention(f"up.1.attn.{block}", h)
    h = s.conv("up.1.upsample.conv", F.interpolate(h, scale_factor=2.0), padding=1)
    for block in (0, 1):
        h = s.resnet(f"up.0.block.{block}", torch.cat([h, skips.pop()], 1), time, words)
    return s.conv("conv_out", F.silu(s.norm("norm_out", h)), padding=1)


def ldm_forward(model, x, t, context=None):
    s = Source(model)
    s.eps = 1e-5
    words = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
    frequencies = torch.exp(-np.log(10000) * torch.arange(16) / 16).float()
    time = torch.cat([torch.cos(t[:, None] * frequencies), torch.sin(t[:, None] * frequencies)], 1)
    time = s.linear("time_embed.2", F.silu(s.linear("time_embed.0", time)))

    def plain(name, h):
        qkv = s.conv(f"{name}.qkv", s.norm(f"{name}.norm", h).flatten(2)[..., None])[..., 0]
        b, c, n = qkv.shape
        q, k, v = qkv.reshape(b * 2, c // 2, n).split(c // 6, dim=1)  # the heads come before the three
        out = s.product(*(p.reshape(b, c // 3, n) for p in (q, k, v)), 2)
        return h + s.conv(f"{name}.proj_out", out[..., None])[..., 0].reshape(h.shape)

    def transformer(name, h):
        block = f"{name}.transformer_blocks.0"
        tokens = s.conv(f"{name}.proj_in", s.norm(f"{name}.norm", h, 1e-6)).flatten(2).transpose(1, 2)

        def layer_norm(word, y):
            return F.layer_norm(y, y.shape[-1:], s.state[f"{block}.{word}.weight"], s.state[f"{block}.{word}.bias"])

        def attend(word, y, z):
            parts = (s.linear(f"{block}.{word}.to_q", y), *(s.linear(f"{block}.{word}.to_{c}", z) for c in "kv"))
            out = s.product(*(p.transpose(1, 2) for p in parts), 2).transpose(1, 2)
            return s.linear(f"{block}.{word}.to_out.0", out)

        y = layer_norm("norm1", tokens)
        tokens = tokens + attend("attn1", y, y)
        tokens = tokens + attend("attn2", layer_norm("norm2", tokens), context)
        value, gate = s.linear(f"{block}.ff.net.0.proj", layer_norm("norm3", tokens)).chunk(2, -1)
        tokens = tokens + s.linear(f"{block}.ff.net.2", value * F.gelu(gate))
        return h + s.conv(f"{name}.proj_out", tokens.transpose(1, 2).reshape(h.shape))

    attention = plain if context is None else transformer
    h = s.conv("input_blocks.0.0", x, padding=1)
    skips = [h]
    h = s.resnet("input_blocks.1.0", h, time, words)
    skips.append(h)
    h = s.conv("input_blocks.2.0.op", h, stride=2, padding=1)
    skips.append(h)
    h = attention("input_blocks.3.1", s.resnet("input_blocks.3.0", h, time, words))
    skips.append(h)
    h = attention("middle_block.1", s.resnet("middle_block.0", h, time, words))
    h = s.resnet("middle_block.2", h, time, words)
    for i in range(4):
        h = s.resnet(f"output_blocks.{i}.0", torch.cat([h, skips.pop()], 1), time, words)
        h = attention(f"output_blocks.{i}.1", h) if i < 2 else h
        if i == 1:
            h = s.conv("output_blocks.1.2.conv", F.interpolate(h, scale_factor=2.0), padding=1)
    return s.conv("out.2", F.silu(s.norm("out.0", h)), padding=1)


def wide_stem():
    changed = {**DDIM["config"]["model"], "ch_mult": [2, 1]}
    return {"family": "ddim", "config": {**DDIM["config"], "model": changed}}


@pytest.mark.parametrize("architecture", [DDIM, wide_stem()], ids=["equal widths", "narrower first convolution"])
def test_ddim_s_network_is_the_converted_one(architecture):
    model = foreign(architecture)
    x, t = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 811.0])
    expected, got = ddim_forward(model, x, t), converted(model)(x, t).sample
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_latent_diffusion_s_network_is_the_converted_one_heads_before_queries():
    model = foreign(LDM)
    x, t = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 811.0])
    torch.testing.assert_close(converted(model)(x, t).sample, ldm_forward(model, x, t), atol=2e-5, rtol=1e-4)


def test_the_network_with_text_is_the_converted_one():
    model = foreign(LDM_TEXT)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 3, 4, 4, generator=generator), torch.tensor([3.0, 811.0])
    context = torch.randn(2, 5, 12, generator=generator)
    got = converted(model)(x, t, context).sample
    torch.testing.assert_close(got, ldm_forward(model, x, t, context), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes", "match"),
    [
        (LDM, {"use_scale_shift_norm": True}, "use_scale_shift_norm True, expected False"),
        (LDM, {"resblock_updown": True}, "resblock_updown True"),
        (LDM, {"channel_mult": [1, 2], "attention_resolutions": [1, 2]}, "heads of 16, 32 channels, expected one size"),
        (LDM, {"num_res_blocks": 10**9}, "expected a whole number from 1 to 64"),
        (LDM, {"channel_mult": [1] * 99}, "expected a list of at most 16 whole numbers"),
        (LDM, {"num_heads": -1}, "needs num_heads or num_head_channels"),
        (LDM, {"num_heads": 5}, "do not part into the heads"),
        (LDM, {"model_channel": 32}, "has model_channel, which is not understood"),
        (LDM, {"channel_mult": [2, 1]}, "channel_mult begins with 2"),
        (LDM, {"in_channels": None}, "in_channels None, expected a whole number"),
        (LDM, {"num_res_blocks": [1, 1]}, "num_res_blocks .1, 1., expected a whole number"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_name(architecture, changes, match):
    changed = {"family": architecture["family"], "config": {**architecture["config"], **changes}}
    with pytest.raises(OptionError, match=match):
        foreign(changed)


def test_averaged_weights_go_before_the_others():
    model = foreign(LDM)
    described = architecture_of(settings_from(model.settings))
    plain = {f"model.diffusion_model.{key}": np.zeros_like(value) for key, value in model.state.items()}
    average = {f"model_ema.diffusion_model{key.replace('.', '')}": value for key, value in model.state.items()}
    key = "middle_block.1.qkv.weight"
    assert not without_prefix(plain, "file", described).take(key).any()
    assert np.array_equal(without_prefix({**plain, **average}, "file", described).take(key), model.state[key])
    with pytest.raises(FileProblemError, match=r"has no input_blocks\.0\.0\.weight; it holds first_stage"):
        without_prefix({"first_stage.weight": np.zeros(1)}, "file", described)
