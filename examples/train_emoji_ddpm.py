"""Train a class-conditional UNet2DModel on the colour emojis of an npm package (see examples/emojis.py).

    npm pack emoji-datasource-google@16.0.0
    python examples/train_emoji_ddpm.py emoji-datasource-google-16.0.0.tgz --out my-emoji-ddpm --minutes 65

The result is a folder that `dq-quantize --model` takes. It is written anew with every checkpoint, and the same
command goes on from the last one.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from emojis import CLASSES, PACKAGE, draw_batch, load_emojis

from dq_deploy.artifacts import atomic_path
from dq_deploy.errors import DqError

NO_LABEL = len(CLASSES)
NO_LABEL_SHARE = 0.1
WARM_UP = 200  # iterations


def build_model() -> tuple[Any, Any]:
    """The untrained network and its noise schedule, as in examples/emoji-ddpm-32."""
    from diffusers import DDIMScheduler, UNet2DModel

    network = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 80),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=len(CLASSES) + 1,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
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
        """Load the images and the last checkpoint, if there is one.

        Raises:
            InputError: there are no emojis where the arguments say.
        """
        import torch

        torch.manual_seed(args.seed)
        self.args = args
        self.rng = np.random.default_rng(args.seed)
        self.emojis = load_emojis(args.source)
        self.network, self.scheduler = build_model()
        self.mean = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=args.learning_rate, weight_decay=1e-4)
        self.iteration, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.checkpoint = args.out / "checkpoint.pt"
        if self.checkpoint.is_file():
            self._resume(torch.load(self.checkpoint, weights_only=True))

    def _resume(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.seconds, self.losses = state["iteration"], state["seconds"], state["losses"]
        self.rng = np.random.default_rng([self.args.seed, self.iteration])  # other draws than in the iterations done

    @property
    def done(self) -> float:
        """Share of the training that is done, by iterations or by time, whichever is further."""
        return max(self.iteration / self.args.iterations, self.seconds / (60 * self.args.minutes))

    def learning_rate(self) -> float:
        """Rises for a few iterations, then falls by cosine to 0 at the end."""
        warm = min(1.0, (self.iteration + 1) / WARM_UP)
        return float(self.args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done))))

    def step(self) -> float:
        """One iteration; returns its loss."""
        import torch
        from torch.nn import functional
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch = self.args.batch
        images, labels = draw_batch(self.emojis, self.rng, batch)
        clean = torch.from_numpy(images)
        asked = np.where(self.rng.random(batch) < NO_LABEL_SHARE, NO_LABEL, labels)
        timestep = torch.from_numpy(self.rng.integers(0, 1000, batch))
        noise = torch.randn_like(clean)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        plain = sdpa_kernel(SDPBackend.MATH)  # torch's fused attention is slower backwards on a CPU
        with plain, torch.autocast("cpu", torch.bfloat16, enabled=self.args.bfloat16):
            predicted = self.network(noisy, timestep, torch.from_numpy(asked)).sample
        loss = functional.mse_loss(predicted.float(), self.scheduler.get_velocity(clean, noise, timestep))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        blend = min(self.args.decay, self.iteration / (self.iteration + 10))  # the first weights are forgotten quickly
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - blend)
        return float(loss.detach())

    def save(self) -> None:
        """Write the folder and the checkpoint."""
        import torch

        self.mean.save_pretrained(self.args.out / "unet")
        self.scheduler.save_pretrained(self.args.out / "scheduler")
        state = {
            "network": self.network.state_dict(),
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
                print(
                    f"iteration {self.iteration}  loss {self.losses[-1]:.4f}  {self.seconds / 60:.1f} min", flush=True
                )
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
    parser.add_argument("--iterations", type=int, default=10_000, help="at most")
    parser.add_argument("--minutes", type=float, default=65, help="at most")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.999, help="of the exponential mean of the weights")
    parser.add_argument("--save-minutes", type=float, default=3, help="between two checkpoints")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        training = Training(args)
        args.out.mkdir(parents=True, exist_ok=True)
        loss = training.run()
    except DqError as error:
        sys.exit(f"error: {error}")
    print(f"last loss {loss:.4f} after {training.iteration} iterations; wrote {args.out}")


if __name__ == "__main__":
    main()
