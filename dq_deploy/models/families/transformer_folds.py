"""Which producers inside a conditional UNet may take over `pre` of their consumers, and why the others may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dq_deploy.models.families.unets import refusals_beside
from dq_deploy.models.layers import FoldSite

if TYPE_CHECKING:
    import torch

_RESIDUAL = "input is the residual stream with several consumers"
_TEXT = "input is the text embedding, there is no producer in the model"


def transformer_fold_sites(module: torch.nn.Module) -> list[FoldSite]:
    """The legal folds of every spatial transformer.

    - the transformer's GroupNorm to `proj_in`, convolution or linear layer
    - LayerNorm 1 to q, k and v of the self attention, LayerNorm 2 to q of the cross attention, LayerNorm 3 to the
      feed-forward projection: one common `pre` for all readers
    - rows of `to_v` to the output layer: attention mixes tokens, never channels
    - rows of the value half of the GEGLU projection to the layer behind it: value * gelu(gate) is linear in the value
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    sites = []
    for name, child in module.named_modules():
        if isinstance(child, Transformer2DModel):
            sites.append(FoldSite(producer=f"{name}.norm", kind="group_norm", consumers=(f"{name}.proj_in",)))
        if isinstance(child, BasicTransformerBlock):
            sites += _block_sites(name)
    return sites


def _block_sites(name: str) -> list[FoldSite]:
    own, cross, feed = f"{name}.attn1", f"{name}.attn2", f"{name}.ff.net"
    norms = {
        "norm1": (f"{own}.to_q", f"{own}.to_k", f"{own}.to_v"),
        "norm2": (f"{cross}.to_q",),
        "norm3": (f"{feed}.0.proj",),
    }
    return [
        *(FoldSite(producer=f"{name}.{norm}", kind="layer_norm", consumers=read) for norm, read in norms.items()),
        FoldSite(producer=f"{own}.to_v", kind="linear_rows", consumers=(f"{own}.to_out.0",)),
        FoldSite(producer=f"{cross}.to_v", kind="linear_rows", consumers=(f"{cross}.to_out.0",)),
        FoldSite(producer=f"{feed}.0.proj", kind="value_rows", consumers=(f"{feed}.2",)),
    ]


def _refusal(name: str) -> str:
    last = name.rsplit(".", 1)[-1]
    if name == "conv_in":
        return "input is the sample itself, there is no producer"
    if name == "conv_out" or last in ("conv1", "conv2"):
        return "SiLU stands between the norm and the convolution"
    if name.startswith(("time_embedding.", "add_embedding.")):
        if last == "linear_2":
            return "SiLU stands between the two layers"
        if name.startswith("add_embedding."):
            return "input is the text embedding beside sinusoids of the sizes, there is no producer with weights"
        return "input is the sinusoidal embedding of the timestep, there is no producer with weights"
    if last == "time_emb_proj":
        return "SiLU stands between, and the time embedding has several consumers"
    if ".upsamplers." in name:
        return "input is the resized sum of a residual addition, not one producer"
    if ".attn2." in name and last in ("to_k", "to_v"):
        return _TEXT
    return _RESIDUAL


def transformer_fold_refusals(module: torch.nn.Module) -> dict[str, str]:
    """Reason for every quantizable layer outside `transformer_fold_sites`."""
    return refusals_beside(module, transformer_fold_sites(module), _refusal)
