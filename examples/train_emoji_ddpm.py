"""Train a class-conditional UNet2DModel on the colour emojis of an npm package (see examples/emojis.py).

    npm pack emoji-datasource-google@16.0.0
    python examples/train_emoji_ddpm.py emoji-datasource-google-16.0.0.tgz --out my-emoji-ddpm --minutes 65

The result is a folder that `dq-quantize --model` takes. It is written anew with every checkpoint, and the same
command goes on from the last one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from emojis import CLASSES, PACKAGE, draw_batch, load_emojis
from one_line_errors import one_line_errors
from resumable_training import ResumableTraining, add_training_arguments

if TYPE_CHECKING:
    import torch

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


class Training(ResumableTraining):
    """The training of the emojis' UNet."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the images and the last checkpoint, if there is one.

        Raises:
            InputError: there are no emojis where the arguments say.
        """
        import torch

        torch.manual_seed(args.seed)
        self.emojis = load_emojis(args.source)
        network, scheduler = build_model()
        optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=1e-4)
        super().__init__(args, network=network, optimizers=[optimizer], scheduler=scheduler, warm_up=WARM_UP)

    def loss(self) -> torch.Tensor:
        """The loss [] of one batch of emojis, some without their label."""
        import torch

        batch = self.args.batch
        images, labels = draw_batch(self.emojis, self.rng, batch)
        asked = torch.from_numpy(np.where(self.rng.random(batch) < NO_LABEL_SHARE, NO_LABEL, labels)).to(self.device)
        return self.velocity_loss(
            torch.from_numpy(images), lambda noisy, timestep: self.network(noisy, timestep, asked).sample
        )

    def write_model(self) -> None:
        """Write the folder."""
        self.mean.save_pretrained(self.args.out / "unet")
        self.scheduler.save_pretrained(self.args.out / "scheduler")


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"what `npm pack {PACKAGE}` writes, or the folder it unpacks to")
    add_training_arguments(
        parser, iterations=10_000, minutes=65, batch=32, learning_rate=1.5e-3, decay=0.999, save_minutes=3
    )
    args = parser.parse_args(argv)
    training = Training(args)
    loss = training.run()
    print(f"last loss {loss:.4f} after {training.iteration} iterations; wrote {args.out}")


if __name__ == "__main__":
    main()
