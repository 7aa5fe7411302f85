"""A small network with the names, the layers and the ONNX form of the one that examples/terrain.py converts."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 32
HEAD = 32


class Residual(nn.Module):
    """Norms around two convolutions, scaled and shifted by the embedding; `change` halves or doubles the size."""

    def __init__(self, inner: int, outer: int, change: str = "") -> None:
        super().__init__()
        self.change = change
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(128, 2 * outer))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outer), nn.SiLU(), nn.Identity(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def _resized(self, x: torch.Tensor) -> torch.Tensor:
        if self.change == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.change == "up" else x

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.in_layers[2](self._resized(self.in_layers[1](self.in_layers[0](x))))
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[1](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(self._resized(x)) + self.out_layers[3](h)


class Attention(nn.Module):
    """Heads of 32 channels; queries, keys and values are thirds of one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        b, c, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3 * c, -1).chunk(3, dim=1)
        heads = b * (c // HEAD)
        scale = HEAD**-0.25
        q, k = ((part * scale).reshape(heads, HEAD, -1) for part in (q, k))
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k), dim=-1)
        mixed = torch.einsum("bts,bcs->bct", weights, v.reshape(heads, HEAD, -1))
        return x + self.proj_out(mixed.reshape(b, c, height, width))


class Network(nn.Module):
    """Two resolutions with one layer each, the second with attention."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128))
        self.label_emb = nn.Sequential(nn.Linear(1, 128), nn.SiLU(), nn.Linear(128, 128))
        blocks = nn.ModuleList
        self.input_blocks = blocks(
            [
                blocks([nn.Conv2d(1, 32, 3, padding=1)]),
                blocks([Residual(32, 32)]),
                blocks([Residual(32, 32, "down")]),
                blocks([Residual(32, 64), Attention(64)]),
            ]
        )
        self.middle_block = blocks([Residual(64, 64), Attention(64), Residual(64, 64)])
        self.output_blocks = blocks(
            [
                blocks([Residual(128, 64), Attention(64)]),
                blocks([Residual(96, 64), Attention(64), Residual(64, 64, "up")]),
                blocks([Residual(96, 32)]),
                blocks([Residual(64, 32)]),
            ]
        )
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, 32), nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, difficulty: torch.Tensor) -> torch.Tensor:
        angles = timestep[:, None] * 10000 ** (-torch.arange(16) / 16)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label_emb(
            difficulty[:, None]
        )
        skips = []
        h = self.input_blocks[0][0](x)
        skips.append(h)
        for block in list(self.input_blocks)[1:]:
            for layer in block:
                h = layer(h, embedding)
            skips.append(h)
        for layer in self.middle_block:
            h = layer(h, embedding)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in block:
                h = layer(h, embedding)
        return self.out(h)


class Denoiser(nn.Module):
    """What the ONNX file holds: the network between the scheduler's factors, clipped to -1 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, difficulty: torch.Tensor) -> torch.Tensor:
        above = sigma - 0.002
        root = (sigma**2 + 0.25) ** 0.5
        output = self.network(noisy / root[:, None, None, None], 250 * torch.log(sigma), difficulty)
        keep, factor = 0.25 / (above**2 + 0.25), above * 0.5 / root
        return (factor[:, None, None, None] * output + keep[:, None, None, None] * noisy).clamp(-1, 1)


def network_file() -> bytes:
    """The ONNX file of a network with seeded random weights, for maps of 16 x 16."""
    torch.manual_seed(0)
    model = Denoiser().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, whose own factors are ones
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = (torch.randn(2, 1, 16, 16), torch.tensor([1.0, 2.0]), torch.tensor([0.2, 0.7]))
    names = ["noisy", "sigma", "difficulty"]
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model,
        inputs,
        dynamo=True,
        opset_version=18,
        input_names=names,
        output_names=["denoised"],
        dynamic_shapes={name: {0: batch} for name in names},
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    """A wheel with files by name."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    path.write_bytes(held.getvalue())
    return path
