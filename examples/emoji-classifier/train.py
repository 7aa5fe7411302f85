"""Train the emoji classifier on nine in ten emojis and measure it on those it never saw.

npm pack emoji-datasource-google@16.0.0
python examples/emoji-classifier/train.py emoji-datasource-google-16.0.0.tgz --out weights.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/, for the two modules below

from emoji_classifier import build_emoji_classifier, recognised_emoji_labels
from emojis import CLASSES, PACKAGE, SIZE, Emojis, draw_batch, load_emojis

from dq_deploy.artifacts import atomic_path
from dq_deploy.errors import DqError

if TYPE_CHECKING:
    from torch import nn


def split_emojis(emojis: Emojis, *, held_out: float = 0.1, seed: int = 0) -> tuple[Emojis, Emojis]:
    """Emojis to train on and emojis to test on, a share of every class; the tones of one stay together."""
    rng = np.random.default_rng(seed)
    test: list[int] = []
    for label in range(len(CLASSES)):
        of_class = np.unique(emojis.emoji[emojis.labels == label])
        test += list(rng.permutation(of_class)[: round(held_out * len(of_class))])
    inside = np.isin(emojis.emoji, test)
    return emojis.where(~inside), emojis.where(inside)


def share_by_class(network: nn.Module, emojis: Emojis) -> NDArray[np.float64]:
    """Share of the emojis without skin tones that is recognised, by class."""
    plain = emojis.where(emojis.plain)
    pixels = np.moveaxis(plain.images, -1, 1).astype(np.float32) / 127.5 - 1
    right = recognised_emoji_labels(network, pixels) == plain.labels
    return np.array([right[plain.labels == label].mean() for label in range(len(CLASSES))])


def write_onnx(network: nn.Module, path: Path) -> None:
    """Write the network as an ONNX file: `images` [B, 3, 32, 32] float32 in [-1, 1] to `logits` [B, 9]."""
    import onnx
    import torch

    batch = torch.export.Dim("batch", min=1)
    with atomic_path(path) as temporary:
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, SIZE, SIZE),),
            temporary,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        model = onnx.load(temporary)
        for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.value_info):
            part.ClearField("metadata_props")  # where in the sources each node came from
            part.ClearField("doc_string")
        onnx.save(model, temporary)


def train(emojis: Emojis, *, iterations: int, batch: int, seed: int, out: Path) -> NDArray[np.float64]:
    """Train, write the weights and beside them classifier.onnx.

    Returns:
        Share of the held-out emojis without skin tones that is recognised, by class.
    """
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    train_on, test_on = split_emojis(emojis, seed=seed)
    network = build_emoji_classifier().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=max(iterations, 2))
    total = 0.0
    for iteration in range(1, iterations + 1):
        images, labels = draw_batch(train_on, rng, batch, reach=2)
        x = torch.from_numpy(images)
        x = x + 0.1 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)  # samples of a diffusion model keep some
        loss = functional.cross_entropy(network(x), torch.from_numpy(labels), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if iteration % 200 == 0:
            print(f"iteration {iteration}/{iterations}  loss {total / 200:.4f}", flush=True)
            total = 0.0
    network.eval()
    with atomic_path(out) as temporary:
        save_file(network.state_dict(), temporary)
    write_onnx(network, out.with_name("classifier.onnx"))
    return share_by_class(network, test_on)


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"what `npm pack {PACKAGE}` writes, or the folder it unpacks to")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        emojis = load_emojis(args.source)
        shares = train(emojis, iterations=args.iterations, batch=args.batch, seed=args.seed, out=args.out)
    except DqError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(CLASSES, shares, strict=True)))
    print(f"held-out emojis recognised: {100 * shares.mean():.1f} %, the mean of the classes; wrote {args.out}")


if __name__ == "__main__":
    main()
