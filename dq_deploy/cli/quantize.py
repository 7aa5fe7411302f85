"""`dq-quantize`: a float model becomes a record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dq_deploy.cli.frame import check_outputs, numbers_from_text, run
from dq_deploy.cli.quantize_one import (
    check_contradictions,
    check_options,
    quantize_one,
    refuse,
    say_engine_limits,
    state_dir,
)


def quantize(
    model: Annotated[Path, typer.Option(help="Denoiser or pipeline folder of diffusers.")],
    out: Annotated[Path | None, typer.Option(help="Record to write, .pt or .safetensors.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="dilatequant (the default), quest, dmq, eda-dm, or minmax (ranges only)."),
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Record that method quest finetunes instead of its own.")] = None,
    weights: Annotated[int | None, typer.Option(help="Weight bits, 2 to 8; 4 by default.")] = None,
    activations: Annotated[
        int | None,
        typer.Option(help="Activation bits, 2 to 8, or 16: only weights are quantized; 8 by default."),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(help="Input channels that share a weight scale at 16-bit activations, 64 or 128; 64 by default."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps with own activation quantizers; 20 by default.")
    ] = None,
    step_groups: Annotated[
        int | None, typer.Option(help="Groups of steps that share activation quantizers; a group a step by default.")
    ] = None,
    static: Annotated[
        bool | None,
        typer.Option("--static/--per-step", help="One activation quantizer for all steps; eda-dm's default."),
    ] = None,
    symmetric_activations: Annotated[
        bool, typer.Option("--symmetric-activations", help="Zero points 0 and signed codes.")
    ] = False,
    asymmetric_weights: Annotated[
        bool | None,
        typer.Option("--asymmetric-weights/--symmetric-weights", help="Weight zero points; dmq's default."),
    ] = None,
    split_skips: Annotated[
        bool | None,
        typer.Option(
            "--split-skips/--whole-skips", help="Two quantizers where a skip is concatenated; default of dmq, eda-dm."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Comma list of layer patterns that stay float; default time_embedding.*,add_embedding.*"),
    ] = None,
    layer_bits: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=BITS or PATTERN=WEIGHTS/ACTIVATIONS; may be repeated, the last match counts."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Average weight bits, as 4.5: bits are chosen a layer by its sensitivity.")
    ] = None,
    without: Annotated[
        str | None, typer.Option(help="Comma list of the method's parts to leave out, for ablations.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="fast, balanced, best, or a YAML file of options.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of noise, labels and training batches.")] = None,
    samples: Annotated[int | None, typer.Option(help="Calibration trajectories.")] = None,
    labels: Annotated[str | None, typer.Option(help="Classes to calibrate with, as 0-9; all by default.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="trajectory (sample with the float model, the default), random (unit noise) or latents."),
    ] = None,
    conditions: Annotated[
        Path | None, typer.Option(help="Safetensors file of embeddings, one row a prompt; random without it.")
    ] = None,
    latents: Annotated[
        Path | None, typer.Option(help="Safetensors file of recorded inputs: sample, timestep and embeddings.")
    ] = None,
    calibration_choice: Annotated[
        str | None,
        typer.Option(help="Steps calibration inputs come from: uniform, tdac (eda-dm's default) or normal-biased."),
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Training iterations a block.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Most memory for calibration data.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the state a stopped run left beside --out.")
    ] = True,
    resume_dir: Annotated[Path | None, typer.Option(help="Where that state is kept; OUT.resume by default.")] = None,
    variant: Annotated[str | None, typer.Option(help="File variant of the model, as fp16.")] = None,
    list_layers: Annotated[
        bool, typer.Option("--list-layers", help="Only list the layers: shapes, work, bits, folds.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(help="Comma list of methods: run each, measure its images, write all to folder --out.")
    ] = None,
    compare_images: Annotated[
        int | None, typer.Option(help="Images a method is measured with, from the same noise; 64 by default.")
    ] = None,
    reference_images: Annotated[
        Path | None, typer.Option(help="With --compare: real images, an NPZ file or a folder of pictures.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="With --compare: digits:PATH or onnx:PATH, sees which class an image shows.")
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="With --compare: efficientnet-lite0 (the default), inception:PATH, onnx:PATH or none."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="With --compare: native (the default), onnxruntime or openvino draws the images.")
    ] = None,
    for_engine: Annotated[
        str | None, typer.Option(help="Say before training what this engine would not run in integers.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
) -> None:
    """Quantize a diffusion model."""
    chosen: dict[str, Any] = {
        "weight_bits": weights,
        "activation_bits": activations,
        "block_size": block_size,
        "steps": steps,
        "step_groups": step_groups,
        "static": static,
        "symmetric_activations": symmetric_activations or None,
        "asymmetric_weights": asymmetric_weights,
        "split_skips": split_skips,
        "keep": None if keep is None else tuple(_words(keep)),
        "layer_bits": _layer_bits(layer_bits) or None,
        "budget": budget,
        "without": None if without is None else tuple(_words(without)),
        "calibration_choice": calibration_choice,
        "seed": seed,
        "samples": samples,
        "labels": None if labels is None else numbers_from_text(labels, "--labels", low=0),
        "iterations": iterations,
        "memory_gib": memory_gib,
    }
    files: dict[str, Any] = {"kind": calibration, "conditions": conditions, "latents": latents}
    measures: dict[str, Any] = {
        "images": compare_images,
        "reference_images": reference_images,
        "classifier": classifier,
        "extractor": extractor,
        "engine": engine,
    }
    if compare is not None:
        others = {"method": method, "init": init, "resume_dir": resume_dir, "list_layers": list_layers or None}
        _refuse_any(others, "was given with --compare, which has no use for it; leave one out")
        from dq_deploy.cli.quantize_compare import compare_command

        overrides = {**chosen, "preset": preset or "balanced"}
        wanted = {**measures, "for_engine": for_engine, "json": json, "resume": resume, "variant": variant}
        compare_command(model, _words(compare), out, overrides, files, wanted)
        return
    _refuse_any(measures, "was given without --compare, which alone has it; leave it out")
    from dq_deploy.methods import options_from_preset

    options = options_from_preset(preset or "balanced", method=method, **chosen)
    check_options(options, block_size=block_size, init=init)
    say_engine_limits(options, for_engine)
    if list_layers:
        refuse(out is not None, "--list-layers and --out were given, expected one of them")
        check_outputs(json, inputs=(model,))
        from dq_deploy.cli.text.quantize_summary import list_layers as show_layers

        show_layers(model, variant, options, json)
        return
    refuse(out is None, "--out is missing, expected a file name such as model.pt")
    assert out is not None
    check_contradictions(options, iterations=iterations, resume=resume, resume_dir=resume_dir)
    state = state_dir(options, out, resume, resume_dir)
    quantize_one(model, variant, options, out, json, state, resume=resume, calibration=files, init=init)


def _refuse_any(given: dict[str, Any], why: str) -> None:
    named = {"images": "compare_images"}
    for name, value in given.items():
        refuse(value is not None, f"--{named.get(name, name).replace('_', '-')} {why}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _layer_bits(entries: list[str] | None) -> dict[str, Any]:
    """`pattern=4` and `pattern=4/8` as a table.

    Raises:
        OptionError: not of that form.
    """
    table: dict[str, Any] = {}
    for entry in entries or ():
        pattern, equals, value = entry.rpartition("=")
        pieces = value.split("/")
        good = equals and pattern and len(pieces) in (1, 2) and all(p.strip().isdecimal() for p in pieces)
        refuse(not good, f"--layer-bits got {entry!r}, expected PATTERN=BITS or PATTERN=WEIGHTS/ACTIVATIONS")
        numbers = tuple(int(p) for p in pieces)
        table.pop(pattern, None)
        table[pattern] = numbers if len(numbers) == 2 else numbers[0]
    return table


def main() -> None:
    """Console script `dq-quantize`."""
    # before torch is loaded: spinning threads cost several times the work on a shared machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(quantize)
