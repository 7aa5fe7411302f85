"""An AutoencoderKL that gives back what it gets, for a StableDiffusionPipeline that works on pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

COLOURS = 3
CHANNELS = 8
LARGE = 256.0  # the constant beside which pixels, at most 1, do not count in the norm
OFFSET = 20.0  # where silu is the identity in float32
LEAST_LOG_VARIANCE = -30.0  # diffusers clips there


def build_identity_autoencoder(size: int) -> AutoencoderKL:
    """The network: latents are the pixels [B, 3, size, size] in [-1, 1], within 1e-4 both ways, and hardly any noise.

    Encoder and decoder of an AutoencoderKL end in group norm, silu and convolution, which have to cancel out:

    1. The first convolution makes eight channels: x, -x of the three colours, and +256, -256. Their mean is 0 and their
       deviation 128, whatever the picture.
    2. Residual blocks have a last convolution of zeros, so that they add nothing.
    3. The norm's factor of 128 undoes the division, and its offset of 20 moves all values where silu(z) = z.
    4. The last convolution takes the three colours and subtracts 20.
    """
    import torch
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        block_out_channels=(CHANNELS,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        latent_channels=COLOURS,
        mid_block_add_attention=False,
        norm_num_groups=1,
        sample_size=size,
        scaling_factor=1.0,
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for half in (network.encoder, network.decoder):
            _pass_through(half)
        for colour in range(COLOURS):
            network.quant_conv.weight[colour, colour] = 1
            network.post_quant_conv.weight[colour, colour] = 1
        network.quant_conv.bias[COLOURS:] = LEAST_LOG_VARIANCE
    return network


def _pass_through(half: Any) -> None:
    """Set the first convolution, the last norm and the last convolution of an encoder or a decoder of zeros."""
    for colour in range(COLOURS):
        half.conv_in.weight[colour, colour, 1, 1] = 1
        half.conv_in.weight[COLOURS + colour, colour, 1, 1] = -1
        half.conv_out.weight[colour, colour, 1, 1] = 1
        half.conv_out.bias[colour] = -OFFSET
    half.conv_in.bias[2 * COLOURS] = LARGE
    half.conv_in.bias[2 * COLOURS + 1] = -LARGE
    half.conv_norm_out.weight.fill_(LARGE / 2)
    half.conv_norm_out.bias.fill_(OFFSET)
