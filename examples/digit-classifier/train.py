"""Train the digit classifier on 4,000 real digits and measure it on the 1,000 it never saw.

python examples/digit-classifier/train.py --out examples/digit-classifier/weights.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/, for digits.py

from digits import load_digits, shift_images, split_digits

from dq_deploy.quality.classifier import build_digit_classifier, recognised_labels


def train(*, epochs: int, batch: int, seed: int, out: Path) -> float:
    """Train, write the weights, and return the share of held-out digits that is recognised."""
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = load_digits()
    train_on, test_on = split_digits(labels)
    network = build_digit_classifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    iterations = epochs * (len(train_on) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=max(iterations, 2))
    for epoch in range(epochs):
        network.train()
        order = rng.permutation(train_on)[: (len(train_on) // batch) * batch]
        total = 0.0
        for chosen in order.reshape(-1, batch):
            shifts = rng.integers(-2, 3, (batch, 2))
            x = torch.from_numpy(shift_images(images[chosen], shifts))
            x = x + 0.1 * torch.randn_like(x)  # samples of a diffusion model keep a little noise
            loss = functional.cross_entropy(network(x), torch.from_numpy(labels[chosen]), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}/{epochs}  loss {total / (len(train_on) // batch):.4f}", flush=True)
    network.eval()
    accuracy = float((recognised_labels(network, images[test_on]) == labels[test_on]).mean())
    save_file(network.state_dict(), out)
    return accuracy


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    accuracy = train(epochs=args.epochs, batch=args.batch, seed=args.seed, out=args.out)
    print(f"held-out accuracy {100 * accuracy:.1f} % of 1,000 real digits; wrote {args.out}")


if __name__ == "__main__":
    main()
