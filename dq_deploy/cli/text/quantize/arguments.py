"""The options of `dq-quantize`, with what its help says of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, kw_only=True)
class QuantizeArguments:
    """What stands on the command line, in the order of the help; None is an option that was not given."""

    model: Annotated[Path, typer.Option(help="Denoiser or pipeline folder of diffusers.")]
    out: Annotated[Path | None, typer.Option(help="Record to write, .pt or .safetensors.")] = None
    method: Annotated[
        str | None,
        typer.Option(
            help="dilatequant (the default), quest, dmq, eda-dm, gptq (trains nothing) or minmax (ranges only)."
        ),
    ] = None
    init: Annotated[Path | None, typer.Option(help="Record that method quest finetunes instead of its own.")] = None
    weights: Annotated[int | None, typer.Option(help="Weight bits, 2 to 8; 4 by default.")] = None
    activations: Annotated[
        int | None,
        typer.Option(help="Activation bits, 2 to 8, or 16: only weights are quantized; 8 by default."),
    ] = None
    block_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a weight scale at 16-bit activations, 64 or 128; 64 by default."),
    ] = None
    channel_scales: Annotated[
        bool,
        typer.Option("--channel-scales", help="A factor for each input channel, from ranges; minmax and dilatequant."),
    ] = False
    steps: Annotated[
        int | None,
        typer.Option(help="Sampling steps with own activation quantizers; 20 by default."),
    ] = None
    step_groups: Annotated[
        int | None, typer.Option(help="Groups of steps that share activation quantizers; a group a step by default.")
    ] = None
    static: Annotated[
        bool | None,
        typer.Option("--static/--per-step", help="One activation quantizer for all steps; eda-dm's default."),
    ] = None
    symmetric_activations: Annotated[
        bool, typer.Option("--symmetric-activations", help="Zero points 0 and signed codes.")
    ] = False
    asymmetric_weights: Annotated[
        bool | None,
        typer.Option("--asymmetric-weights/--symmetric-weights", help="Weight zero points; dmq's default."),
    ] = None
    split_skips: Annotated[
        bool | None,
        typer.Option(
            "--split-skips/--whole-skips", help="Two quantizers where a skip is concatenated; default of dmq, eda-dm."
        ),
    ] = None
    keep: Annotated[
        str | None,
        typer.Option(
            help='Comma list of layer patterns that stay float; default time and pooled embeddings; "" for none.'
        ),
    ] = None
    layer_bits: Annotated[
        list[str] | None,
        typer.Option(
            help="PATTERN=BITS or PATTERN=WEIGHTS/ACTIVATIONS; may be repeated, the last match counts. First and last "
            "layer, modulations and what reads the text alone (attn2.to_k, to_v) have 8 bits by default."
        ),
    ] = None
    budget: Annotated[
        float | None, typer.Option(help="Average weight bits, as 4.5: bits are chosen a layer by its sensitivity.")
    ] = None
    activation_budget: Annotated[
        float | None,
        typer.Option(
            help="Average activation bits, each layer counted with its work, as 5: 4, 6 or 8 are chosen a layer."
        ),
    ] = None
    step_correction: Annotated[
        bool,
        typer.Option(
            "--step-correction",
            help="A bias row a step, and a factor of the output, from trajectories held out, where they help.",
        ),
    ] = False
    picture_iterations: Annotated[
        int | None,
        typer.Option(
            help="Iterations of training on the pictures' own error, with gradients through the whole sampling run; "
            "20 are a start, 0 is the default."
        ),
    ] = None
    without: Annotated[
        str | None, typer.Option(help="Comma list of the method's parts to leave out, for ablations.")
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="fast, balanced, best, or a YAML file of options; with a comma also bits, as fast,w4a4-mixed "
            "(w4a4, w4a6-mixed, w5a5-mixed), and what follows, as fast,pictures."
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Of noise, labels and training batches.")] = None
    samples: Annotated[
        int | None, typer.Option(help="Pictures that are drawn to calibrate; one a prompt of --prompts by default.")
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, a prompt a line, that the model's pipeline draws; 64 plain ones without it."),
    ] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What the pictures are not to show.")] = None
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, as 7.5; the pipeline's own by default.")] = (
        None
    )
    scheduler: Annotated[
        str | None,
        typer.Option(help="Class of diffusers, or euler, dpm++2m, unipc ..., in place of the model's own."),
    ] = None
    height: Annotated[
        int | None, typer.Option(help="Of the pictures in pixels, of a denoiser alone of its sample; default: its own.")
    ] = None
    width: Annotated[int | None, typer.Option(help="Likewise.")] = None
    call: Annotated[
        Path | None, typer.Option(help="YAML file of anything the pipeline's __call__ takes; pictures by path.")
    ] = None
    labels: Annotated[str | None, typer.Option(help="Classes to calibrate with, as 0-9; all by default.")] = None
    calibration: Annotated[
        str | None,
        typer.Option(help="trajectory (sample with the float model, the default), random (unit noise) or latents."),
    ] = None
    conditions: Annotated[
        Path | None,
        typer.Option(help="Safetensors file of embeddings for a denoiser alone, one row a prompt; random without it."),
    ] = None
    latents: Annotated[
        Path | None, typer.Option(help="Safetensors file of recorded inputs: sample, timestep and embeddings.")
    ] = None
    calibration_choice: Annotated[
        str | None,
        typer.Option(
            help="Steps calibration inputs come from: uniform, influence, tdac (eda-dm's default) or normal-biased."
        ),
    ] = None
    iterations: Annotated[int | None, typer.Option(help="Training iterations a block.")] = None
    memory_gib: Annotated[
        float | None,
        typer.Option(help="Most memory for calibration data and training, beside the model."),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu (the default) or cuda: where the model runs and is trained.")
    ] = None
    attention: Annotated[
        str | None,
        typer.Option(help="int8 adds quantizers of attention's products, which --attention int8 then runs natively."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the state a stopped run left beside --out.")
    ] = True
    resume_dir: Annotated[Path | None, typer.Option(help="Where that state is kept; OUT.resume by default.")] = None
    variant: Annotated[str | None, typer.Option(help="File variant of the model, as fp16.")] = None
    component: Annotated[
        str | None, typer.Option(help="Denoiser of a pipeline that has several, as prior or transformer_2.")
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(help="With --model FILE, one file of weights: a folder with the configuration of its denoiser."),
    ] = None
    list_layers: Annotated[
        bool,
        typer.Option(
            "--list-layers",
            help="Only list the layers: shapes, work, bits and why, folds. Reads config.json and no weights.",
        ),
    ] = False
    compare: Annotated[
        str | None, typer.Option(help="Comma list of methods: run each, measure its images, write all to folder --out.")
    ] = None
    compare_images: Annotated[
        int | None, typer.Option(help="Images a method is measured with, from the same noise; 64 by default.")
    ] = None
    reference_images: Annotated[
        Path | None, typer.Option(help="With --compare: real images, an NPZ file or a folder of pictures.")
    ] = None
    classifier: Annotated[
        str | None, typer.Option(help="With --compare: digits:PATH or onnx:PATH, sees which class an image shows.")
    ] = None
    extractor: Annotated[
        str | None,
        typer.Option(help="With --compare: efficientnet-lite0 (the default), inception:PATH, onnx:PATH or none."),
    ] = None
    engine: Annotated[
        str | None, typer.Option(help="With --compare: native (the default), onnxruntime or openvino draws the images.")
    ] = None
    for_engine: Annotated[
        str | None, typer.Option(help="Say before training what this engine would not run in integers.")
    ] = None
    json: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None
