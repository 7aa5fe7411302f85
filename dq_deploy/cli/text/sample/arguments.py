"""The options of `dq-sample`, with what its help says of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame.attention import Attention
from dq_deploy.cli.frame.hash_check import HashCheck


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """What stands on the command line, in the order of the help; None is an option that was not given."""

    out: Annotated[Path, typer.Option(help="PNG to write, or .safetensors for the numbers.")]
    ckpt: Annotated[Path | None, typer.Option(help="Quantized model, .pt or .safetensors.")] = None
    engine: Annotated[
        Path | None,
        typer.Option(help="Exported ONNX file, plan or record to run; without it --ckpt is simulated in torch."),
    ] = None
    model: Annotated[
        Path | None,
        typer.Option(help="Pipeline folder of diffusers that draws; with --compare, where the float model is."),
    ] = None
    component: Annotated[
        str | None, typer.Option(help="Denoiser of a pipeline that has several, as prior or transformer_2.")
    ] = None
    prompt: Annotated[
        list[str] | None, typer.Option(help="What a picture shows; again for more, which are drawn in turn.")
    ] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What no picture shows.")] = None
    guidance: Annotated[float | None, typer.Option(help="Scale of guidance; default: the pipeline's.")] = None
    image: Annotated[Path | None, typer.Option(help="Picture to begin from.")] = None
    mask: Annotated[Path | None, typer.Option(help="Mask, white where the picture is painted anew.")] = None
    strength: Annotated[float | None, typer.Option(help="How far the picture is changed, 0 to 1.")] = None
    control_image: Annotated[Path | None, typer.Option(help="Picture that a ControlNet follows.")] = None
    height: Annotated[
        int | None, typer.Option(help="Of a picture; default: the pipeline's, of a denoiser alone as calibrated.")
    ] = None
    width: Annotated[int | None, typer.Option(help="Likewise.")] = None
    call: Annotated[
        Path | None, typer.Option(help="YAML file with anything the pipeline's call takes; pictures by path.")
    ] = None
    labels: Annotated[str | None, typer.Option(help="Class labels, as 0,1,2 or 0-9; one image each.")] = None
    count: Annotated[int | None, typer.Option(help="Images; default: one a prompt, or 8 without prompts.")] = None
    conditions: Annotated[
        Path | None, typer.Option(help="Safetensors file of embeddings, one row an image; random without it.")
    ] = None
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: as many as were calibrated.")] = None
    scheduler: Annotated[
        str | None,
        typer.Option(help="Class of diffusers, or a short name as ddim, euler, dpm++2m; default: as calibrated."),
    ] = None
    eta: Annotated[float | None, typer.Option(help="DDIM's share of fresh noise, 0 to 1; 0 by default.")] = None
    seed: Annotated[int | None, typer.Option(help="Of the first noise and of every step's; 0 by default.")] = None
    batch: Annotated[
        int | None, typer.Option(help="Images at a time; default: 1 of a pipeline, 10 of a denoiser alone.")
    ] = None
    compare: Annotated[
        bool, typer.Option("--compare", help="Also draw the float model's images; print PSNR and SSIM.")
    ] = False
    device: Annotated[
        str | None, typer.Option(help="Of the native engine: cpu or cuda; by default a GPU that can run it.")
    ] = None
    attention: Attention = None
    threads: Annotated[int | None, typer.Option(help="Threads; default: the engine's choice.")] = None
    hash_check: HashCheck = True
    json: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None
