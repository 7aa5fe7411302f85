"""Train a text-to-image StableDiffusionPipeline on the captioned emojis of an npm package (see emoji_captions.py).

    npm pack emoji-datasource-google@16.0.0
    python examples/train_emoji_autoencoder.py emoji-datasource-google-16.0.0.tgz --out my-emojis --minutes 15
    python examples/train_emoji_text.py emoji-datasource-google-16.0.0.tgz --out my-emojis --minutes 75

The result is a pipeline folder that diffusers and `dq-quantize --model` take. It is written anew with every checkpoint,
and the same command goes on from the last one. The extra `pipelines` must be installed.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from emoji_captions import TOKENS, build_tokenizer, draw_captioned, load_captioned, write_tokenizer_files
from emojis import PACKAGE, SIZE
from train_emoji_autoencoder import LATENT_CHANNELS, latents_of

from dq_deploy.artifacts import atomic_path
from dq_deploy.errors import DqError, InputError

if TYPE_CHECKING:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

NO_CAPTION_SHARE = 0.1
WARM_UP = 200  # iterations
TEXT_WIDTH = 128


def build_text_encoder(vocabulary: int) -> CLIPTextModel:
    """The untrained text encoder; its last two tokens mark the ends of a prompt."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config)


def build_denoiser() -> tuple[UNet2DConditionModel, DDIMScheduler]:
    """The untrained network and its noise schedule.

    It reads the text twice: by cross-attention, and pooled beside the timestep (`addition_embed_type`), which is
    learned sooner.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(48, 80, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    return network, scheduler


class Training:
    """One training run that can stop at any checkpoint and go on from it.

    Attributes:
        iteration: iterations done.
        seconds: time they took, over all runs.
        losses: mean loss of every 100 iterations.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Load images, captions, the autoencoder and the last checkpoint, if there is one.

        Raises:
            InputError: there are no emojis where the arguments say, or no autoencoder.
        """
        import torch
        from diffusers import AutoencoderKL

        torch.manual_seed(args.seed)
        self.args = args
        if not (args.out / "vae").is_dir():
            raise InputError(f"{args.out}/vae is missing; train_emoji_autoencoder.py writes it")
        self.vae = AutoencoderKL.from_pretrained(args.out / "vae").eval()
        self.captioned = load_captioned(args.source)
        self.tokenizer = build_tokenizer(self.captioned)
        self.latents = latents_of(self.vae, self.captioned.emojis.images)
        self.text_encoder = build_text_encoder(len(self.tokenizer)).train()
        self.denoiser, self.scheduler = build_denoiser()
        self.trained = torch.nn.ModuleList([self.denoiser, self.text_encoder])
        self.mean = copy.deepcopy(self.trained).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=args.learning_rate, weight_decay=1e-4)
        self.iteration, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.checkpoint = args.out / "checkpoint.pt"
        if self.checkpoint.is_file():
            self._resume(torch.load(self.checkpoint, weights_only=True))
        self.rng = np.random.default_rng([args.seed, self.iteration])  # other draws than in the iterations done

    def _resume(self, state: dict[str, Any]) -> None:
        self.trained.load_state_dict(state["trained"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.seconds, self.losses = state["iteration"], state["seconds"], state["losses"]

    @property
    def done(self) -> float:
        """Share of the training that is done, by iterations or by time, whichever is further."""
        return max(self.iteration / self.args.iterations, self.seconds / (60 * self.args.minutes))

    def learning_rate(self) -> float:
        """Rises for a few iterations, then falls by cosine to 0 at the end."""
        warm = min(1.0, (self.iteration + 1) / WARM_UP)
        return float(self.args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done))))

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """[B, TOKENS] int64; one caption in ten is left empty."""
        import torch

        kept = ["" if self.rng.random() < NO_CAPTION_SHARE else text for text in captions]
        ids = self.tokenizer(kept, padding="max_length", max_length=TOKENS, truncation=True).input_ids
        return torch.tensor(ids)

    def step(self) -> float:
        """One iteration; returns its loss."""
        import torch
        from torch.nn import functional
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch = self.args.batch
        chosen, captions = draw_captioned(self.captioned, self.rng, batch)
        clean = self.latents[torch.from_numpy(chosen)]
        timestep = torch.from_numpy(self.rng.integers(0, 1000, batch))
        noise = torch.randn_like(clean)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        plain = sdpa_kernel(SDPBackend.MATH)  # torch's fused attention is slower backwards on a CPU
        with plain, torch.autocast("cpu", torch.bfloat16, enabled=self.args.bfloat16):
            text = self.text_encoder(self.tokens(captions)).last_hidden_state
            predicted = self.denoiser(noisy, timestep, text).sample
        loss = functional.mse_loss(predicted.float(), self.scheduler.get_velocity(clean, noise, timestep))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        blend = min(self.args.decay, self.iteration / (self.iteration + 10))  # the first weights are forgotten quickly
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.trained.parameters(), strict=True):
                kept.lerp_(new, 1 - blend)
        return float(loss.detach())

    def pipeline(self) -> StableDiffusionPipeline:
        """The pipeline with the mean weights; 16 bits where a plain `from_pretrained` makes 32 of them again."""
        import torch
        from diffusers import StableDiffusionPipeline

        denoiser, text_encoder = copy.deepcopy(self.mean)
        return StableDiffusionPipeline(
            vae=copy.deepcopy(self.vae).to(torch.float16),
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            unet=denoiser.to(torch.float16),
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def save(self) -> None:
        """Write the folder `pipeline` and the checkpoint."""
        import torch

        folder = self.args.out / "pipeline"
        self.pipeline().save_pretrained(folder)
        write_tokenizer_files(self.tokenizer, folder / "tokenizer")
        state = {
            "trained": self.trained.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def run(self) -> float:
        """Train to the end and return the mean loss of the last tenth."""
        saved, recent = self.seconds, []
        while self.done < 1:
            started = time.perf_counter()
            recent.append(self.step())
            self.seconds += time.perf_counter() - started
            if len(recent) == 100 or self.done >= 1:
                self.losses.append(float(np.mean(recent)))
                minutes = self.seconds / 60
                print(f"iteration {self.iteration}  loss {self.losses[-1]:.4f}  {minutes:.1f} min", flush=True)
                recent = []
            if self.seconds - saved >= 60 * self.args.save_minutes:
                saved = self.seconds
                self.save()
        self.save()
        return float(np.mean(self.losses[-max(1, len(self.losses) // 10) :]))


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"what `npm pack {PACKAGE}` writes, or the folder it unpacks to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, and to go on from")
    parser.add_argument("--iterations", type=int, default=50_000, help="at most")
    parser.add_argument("--minutes", type=float, default=75, help="at most")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.999, help="of the exponential mean of the weights")
    parser.add_argument("--save-minutes", type=float, default=5, help="between two checkpoints")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        training = Training(args)
        loss = training.run()
    except DqError as error:
        sys.exit(f"error: {error}")
    print(f"last loss {loss:.4f} after {training.iteration} iterations; wrote {args.out}/pipeline")


if __name__ == "__main__":
    main()
