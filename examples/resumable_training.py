"""What the training scripts of diffusion models share: a run that stops at any checkpoint and goes on from it."""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dq_deploy.artifacts import atomic_path

if TYPE_CHECKING:
    import torch


class ResumableTraining(ABC):
    """One training run that can stop at any checkpoint and go on from it.

    Attributes:
        network: what is trained.
        mean: the exponential mean of its weights.
        rng: draws the batches and timesteps; after a checkpoint others than in the iterations done.
        iteration: iterations done.
        seconds: time they took, over all runs.
        device: where the network is.
        losses: mean loss of every 100 iterations.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        network: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        scheduler: Any,
        warm_up: int,
    ) -> None:
        """Begin, or go on from the last checkpoint if there is one.

        Args:
            args: what `add_training_arguments` adds.
            network: untrained, built after `torch.manual_seed(args.seed)`.
            optimizers: of all its parameters.
            scheduler: a noise schedule of diffusers whose prediction is the velocity.
            warm_up: iterations in which the learning rate rises.
        """
        import torch

        # parameters move in place, so the optimizers still hold them
        self.device = torch.device(args.device)
        self.args, self.network = args, network.to(self.device)
        self.optimizers, self.scheduler = optimizers, scheduler
        self.warm_up = warm_up
        self.mean = copy.deepcopy(network).requires_grad_(False).eval()
        self.iteration, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.checkpoint = args.out / "checkpoint.pt"
        args.out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is said now, not at the first save
        if self.checkpoint.is_file():
            self._resume(torch.load(self.checkpoint, weights_only=True, map_location="cpu"))
            torch.manual_seed(args.seed + self.iteration)  # other noise than in the iterations done
        self.rng = np.random.default_rng([args.seed, self.iteration])

    def _resume(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.iteration, self.seconds, self.losses = state["iteration"], state["seconds"], state["losses"]

    @abstractmethod
    def loss(self) -> torch.Tensor:
        """The loss [] of one batch that is drawn here."""

    @abstractmethod
    def write_model(self) -> None:
        """Write the folder with the mean weights."""

    def velocity_loss(
        self, clean: torch.Tensor, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The loss [] of a batch.

        Args:
            clean: images [B, C, H, W] float32, -1 to 1, anywhere.
            predict: function from noisy images and timesteps [B], on the device, to the predicted velocity.
        """
        import torch
        from torch.nn import functional
        from torch.nn.attention import SDPBackend, sdpa_kernel

        clean = clean.to(self.device)
        timestep = torch.from_numpy(self.rng.integers(0, 1000, len(clean))).to(self.device)
        noise = torch.randn_like(clean)
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        # torch's fused attention is slower backwards on a CPU
        plain = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else contextlib.nullcontext()
        with plain, torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bfloat16):
            predicted = predict(noisy, timestep)
        return functional.mse_loss(predicted.float(), self.scheduler.get_velocity(clean, noise, timestep))

    @property
    def done(self) -> float:
        """Share of the training that is done, by iterations or by time, whichever is further."""
        return max(self.iteration / self.args.iterations, self.seconds / (60 * self.args.minutes))

    def learning_rate(self) -> float:
        """Rises for a few iterations, then falls by cosine to 0 at the end."""
        warm = min(1.0, (self.iteration + 1) / self.warm_up)
        return float(self.args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done))))

    def step(self) -> float:
        """One iteration; returns its loss."""
        import torch

        loss = self.loss()
        self.network.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        rate = self.learning_rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.iteration += 1
        blend = min(self.args.decay, self.iteration / (self.iteration + 10))  # the first weights are forgotten quickly
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - blend)
        return float(loss.detach())

    def save(self) -> None:
        """Write the folder and the checkpoint."""
        import torch

        self.write_model()
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
                minutes = self.seconds / 60
                print(f"iteration {self.iteration}  loss {self.losses[-1]:.4f}  {minutes:.1f} min", flush=True)
                recent = []
            if self.seconds - saved >= 60 * self.args.save_minutes:
                saved = self.seconds
                self.save()
        self.save()
        return float(np.mean(self.losses[-max(1, len(self.losses) // 10) :]))


def add_training_arguments(
    parser: argparse.ArgumentParser,
    *,
    iterations: int,
    minutes: float,
    batch: int,
    learning_rate: float,
    decay: float,
    save_minutes: float,
) -> None:
    """Add the options that `ResumableTraining` reads, with these defaults."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write, and to go on from")
    parser.add_argument("--iterations", type=int, default=iterations, help="at most")
    parser.add_argument("--minutes", type=float, default=minutes, help="at most")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--decay", type=float, default=decay, help="of the exponential mean of the weights")
    parser.add_argument("--save-minutes", type=float, default=save_minutes, help="between two checkpoints")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16")
    parser.add_argument("--device", default="cpu", help="a device of torch, such as cuda (never run there)")
    parser.add_argument("--seed", type=int, default=0)
