"""Whole pipelines at full size with random weights: seconds and peak memory of each command a user would type.

    python -m benchmarks.unets.pipelines_at_size sd15 --work DIR       # Stable Diffusion 1.5, one prompt, 20 steps
    python -m benchmarks.unets.pipelines_at_size sdxl --work DIR       # SDXL's UNet, 2.6 billion parameters
    python -m benchmarks.unets.pipelines_at_size flux-cut --work DIR   # two blocks of FLUX.1-schnell at full width

The folder is written once: float16 weights, a tokenizer of single letters, text encoders and VAE of the real shapes or
small ones. Neither time nor memory depends on the weights' values. Each command is a process of its own; its memory is
the highest resident size of it or of a process that it started. One JSON line a run goes to
benchmarks/results/pipelines_at_size.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import string
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import SD15, SD15_SCHEDULER, SDXL
from dq_deploy.bench.environment import describe_environment

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[1]
LETTERS = string.ascii_lowercase + string.digits + ".,"
PROMPT = "a lighthouse on a cliff in the fog"

FLUX_CUT: Mapping[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What one command took.

    Attributes:
        name: of the command.
        options: it was given.
        seconds: from start to end.
        peak_gib: highest resident memory of it or of one process that it started.
    """

    name: str
    options: tuple[str, ...]
    seconds: float
    peak_gib: float


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with one token a letter."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def text_encoder(width: int, layers: int, heads: int, *, projected: bool = False) -> CLIPTextModel:
    """CLIP's text encoder with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ends = 2 * len(LETTERS)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        bos_token_id=ends,
        eos_token_id=ends + 1,
        pad_token_id=ends + 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def vae(channels: int, widths: tuple[int, ...]) -> torch.nn.Module:
    """An autoencoder of eight pixels a latent."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=channels,
        layers_per_block=2,
        norm_num_groups=min(32, widths[0]),
        sample_size=8 * 64,
    ).eval()


def sd15(folder: Path) -> None:
    """Stable Diffusion 1.5 whole: UNet, text encoder and VAE of the published shapes."""
    import diffusers
    import torch

    diffusers.StableDiffusionPipeline(
        vae=vae(4, (128, 256, 512, 512)),
        text_encoder=text_encoder(768, 12, 12),
        tokenizer=tokenizer(),
        unet=diffusers.UNet2DConditionModel.from_config(SD15),
        scheduler=diffusers.PNDMScheduler.from_config(SD15_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder, variant="fp16")


def sdxl(folder: Path) -> None:
    """SDXL's UNet whole; its second text encoder has two layers of its width, and its VAE is small."""
    import diffusers
    import torch

    torch.set_default_dtype(torch.float16)
    unet = diffusers.UNet2DConditionModel.from_config(SDXL)
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(4, (32, 32, 32, 32)),
        text_encoder=text_encoder(768, 12, 12),
        text_encoder_2=text_encoder(1280, 2, 20, projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(SD15_SCHEDULER),
        add_watermarker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")


def flux_cut(folder: Path) -> None:
    """One double and one single block of FLUX.1-schnell at full width; its text encoders are small."""
    import diffusers
    import torch
    from transformers import T5Config, T5EncoderModel

    torch.set_default_dtype(torch.bfloat16)
    transformer = diffusers.FluxTransformer2DModel.from_config(FLUX_CUT)
    small = T5Config(vocab_size=2 * len(LETTERS) + 2, d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=1)
    diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae(16, (32, 32, 32, 32)),
        text_encoder=text_encoder(768, 2, 12),
        tokenizer=tokenizer(),
        text_encoder_2=T5EncoderModel(small).eval(),
        tokenizer_2=tokenizer(),
        transformer=transformer,
    ).to(torch.bfloat16).save_pretrained(folder)


FOLDERS: Mapping[str, Callable[[Path], None]] = {"sd15": sd15, "sdxl": sdxl, "flux-cut": flux_cut}
CALIBRATION: Mapping[str, tuple[str, ...]] = {
    "sd15": ("--variant", "fp16", "--steps", "20", "--guidance", "7.5"),
    "sdxl": ("--variant", "fp16", "--steps", "2", "--guidance", "5", "--height", "256", "--width", "256"),
    "flux-cut": ("--steps", "4", "--height", "256", "--width", "256"),
}


def run(name: str, *options: object) -> Command:
    """Run a command and measure it.

    Raises:
        SystemExit: the command failed; its words went to the terminal.
    """
    words = tuple(str(option) for option in options)
    module = f"dq_deploy.cli.{name.removeprefix('dq-')}"
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", module, *words])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    took = Command(
        name=name,
        options=words,
        seconds=round(time.perf_counter() - start, 1),
        peak_gib=round(usage.ru_maxrss / 2**20, 2),
    )
    print(f"{name}: {took.seconds} s, {took.peak_gib} GiB, exit code {process.returncode}", flush=True)
    if process.returncode:
        raise SystemExit(f"{name} failed with {process.returncode}")
    return took


def main() -> None:
    """Write the folder if it is not there, run the commands, append a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=tuple(FOLDERS))
    parser.add_argument("--work", type=Path, required=True, help="folder for the pipeline, the record and the graph")
    parser.add_argument("--weights", type=int, default=8)
    arguments = parser.parse_args()
    work: Path = arguments.work / arguments.model
    pipeline, record, graph, prompts = (work / n for n in ("pipeline", "model.pt", "unet.onnx", "prompts.txt"))
    work.mkdir(parents=True, exist_ok=True)
    if not (pipeline / "model_index.json").exists():
        # in a process of its own: what it held is not counted later
        code = f"from benchmarks.unets.pipelines_at_size import FOLDERS; from pathlib import Path; \
FOLDERS[{arguments.model!r}](Path({str(pipeline)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
    prompts.write_text(PROMPT + "\n")
    common = ("--model", pipeline, "--method", "minmax", "--weights", arguments.weights, "--prompts", prompts)
    one = ("--batch", "1", "--runs", "1", "--rounds", "1", "--warmup", "1")
    commands = [
        run("dq-quantize", *common, "--samples", "1", *CALIBRATION[arguments.model], "--out", record),
        run("dq-export", "--ckpt", record, "--out", graph),
        run("dq-bench", "--engine", record, *one),
    ]
    row = {
        "model": arguments.model,
        "commit": commit(),
        "bits": f"W{arguments.weights}A8",
        "environment": describe_environment(threads=None),
        "record_mib": round(record.stat().st_size / 2**20, 1),
        "commands": [asdict(command) for command in commands],
    }
    line = json.dumps(row, sort_keys=True).replace(f"{arguments.work}/", "WORK/")
    with (ROOT / "results" / "pipelines_at_size.jsonl").open("a") as out:
        out.write(line + "\n")


if __name__ == "__main__":
    main()
