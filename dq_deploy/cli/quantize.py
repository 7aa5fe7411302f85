"""`dq-quantize`: a float model becomes a record."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dq_deploy.cli.frame import check_outputs, console, numbers_from_text, run, write_json
from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.methods import QuantizeOptions
    from dq_deploy.models import Denoiser
    from dq_deploy.record import Record


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
    json: Annotated[Path | None, typer.Option(help="Also write the table as JSON.")] = None,
) -> None:
    """Quantize a diffusion model."""
    from dq_deploy.methods import options_from_preset

    bits = _layer_bits(layer_bits)
    options = options_from_preset(
        preset or "balanced",
        method=method,
        weight_bits=weights,
        activation_bits=activations,
        block_size=block_size,
        steps=steps,
        step_groups=step_groups,
        static=static,
        symmetric_activations=symmetric_activations or None,
        asymmetric_weights=asymmetric_weights,
        split_skips=split_skips,
        keep=None if keep is None else tuple(_words(keep)),
        layer_bits=bits or None,
        budget=budget,
        without=None if without is None else tuple(_words(without)),
        calibration_choice=calibration_choice,
        seed=seed,
        samples=samples,
        labels=None if labels is None else numbers_from_text(labels, "--labels", low=0),
        iterations=iterations,
        memory_gib=memory_gib,
    )
    _refuse(
        block_size is not None and not options.has_weight_only,
        f"--block-size {block_size} was given, but no layer has 16-bit activations; leave it out",
    )
    if list_layers:
        _refuse(out is not None, "--list-layers and --out were given, expected one of them")
        check_outputs(json, inputs=(model,))
        _list_layers(model, variant, options, json)
        return
    _refuse(out is None, "--out is missing, expected a file name such as model.pt")
    assert out is not None
    _check_contradictions(options, iterations=iterations, resume=resume, resume_dir=resume_dir)
    files = {"kind": calibration, "conditions": conditions, "latents": latents}
    state = _state_dir(options, out, resume, resume_dir)
    _refuse(
        init is not None and options.method != "quest",
        f"--init was given with --method {options.method}, expected --method quest",
    )
    _quantize(model, variant, options, out, json, state, resume=resume, calibration=files, init=init)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise OptionError(message)


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
        _refuse(not good, f"--layer-bits got {entry!r}, expected PATTERN=BITS or PATTERN=WEIGHTS/ACTIVATIONS")
        numbers = tuple(int(p) for p in pieces)
        table.pop(pattern, None)
        table[pattern] = numbers if len(numbers) == 2 else numbers[0]
    return table


def _check_contradictions(
    options: QuantizeOptions, *, iterations: int | None, resume: bool, resume_dir: Path | None
) -> None:
    trains = options.method != "minmax"
    _refuse(
        not trains and iterations is not None,
        f"--iterations {iterations} was given with --method minmax, which does not train; leave one out",
    )
    _refuse(
        not trains and resume_dir is not None,
        "--resume-dir was given with --method minmax, which keeps no state; leave one out",
    )
    _refuse(not resume and resume_dir is not None, "--no-resume and --resume-dir were given, expected one of them")


def _state_dir(options: QuantizeOptions, out: Path, resume: bool, resume_dir: Path | None) -> Path | None:
    trained = {"dilatequant": "distillation", "dmq": "reconstruction", "eda-dm": "reconstruction"}
    if options.method == "minmax" or not options.uses(trained.get(options.method, "reconstruction")):
        return None
    return resume_dir or out.with_name(f"{out.name}.resume")


def _quantize(
    model: Path,
    variant: str | None,
    options: QuantizeOptions,
    out: Path,
    json: Path | None,
    state: Path | None,
    *,
    resume: bool,
    calibration: dict[str, Any],
    init: Path | None,
) -> None:
    from dq_deploy.record.files import check_record_path

    check_record_path(out)
    check_outputs(out, json, inputs=(model, calibration["conditions"], calibration["latents"], init))

    from dq_deploy.calibration import read_source
    from dq_deploy.cli.quantize_progress import ProgressView
    from dq_deploy.methods import quantize as quantize_model
    from dq_deploy.methods.resume import discard_state
    from dq_deploy.models import input_specs, load_model
    from dq_deploy.record import load_record, save_record

    denoiser = load_model(model, variant=variant)
    start = None if init is None else load_record(init)
    source = read_source(input_specs(denoiser.config), **calibration)
    started = time.perf_counter()
    if state is not None and state.exists():
        if not resume:
            discard_state(state)
        else:
            print(f"going on with the state in {state}", flush=True)
    try:
        with ProgressView() as view:
            record = quantize_model(denoiser, options, calibration=source, progress=view, resume_dir=state, init=start)
    except BaseException as stop:
        if state is not None and not any(state.glob("block-*")):
            discard_state(state)
        elif state is not None and not isinstance(stop, Exception):
            print(f"finished blocks are kept in {state}; run the same command to go on", file=sys.stderr)
        raise
    save_record(record, out)
    if state is not None:
        discard_state(state)
    summary = summary_of(record, out, seconds=time.perf_counter() - started)
    if json is not None:
        write_json(json, summary)
    _print_summary(summary)


def summary_of(record: Record, out: Path, *, seconds: float) -> dict[str, Any]:
    """What was quantized, as JSON values."""
    from collections import Counter

    blocks = [h for h in record.provenance["history"] if "block" in h]
    bits = Counter(f"W{layer.weight_bits}A{layer.activation_bits}" for layer in record.layers.values())
    bits.update(f"W{layer.weight_bits}A16" for layer in record.weight_only.values())
    return {
        "record": str(out),
        "method": record.provenance["method"],
        "layers": len(record.layers),
        "weight_only_layers": len(record.weight_only),
        "bits": dict(sorted(bits.items())),
        "kept_float": {
            why: names for h in record.provenance["history"] for why, names in h.get("kept_float", {}).items()
        },
        "folded_layers": sum(layer.fold.startswith("folded") for layer in record.layers.values()),
        "steps": record.steps,
        "file_mib": out.stat().st_size / 2**20,
        "seconds": seconds,
        "calibration": record.provenance["calibration"],
        "options": record.provenance["options"],
        "blocks": [{"name": h["block"], "relative_error": h["relative_error"]} for h in blocks],
    }


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{summary['record']} by {summary['method']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    bits = ", ".join(f"{count} at {name}" for name, count in summary["bits"].items())
    table.add_row("integer layers", str(summary["layers"]))
    if summary["weight_only_layers"]:
        table.add_row("weight-only layers", str(summary["weight_only_layers"]))
    table.add_row("bits", bits)
    for reason, names in summary["kept_float"].items():
        table.add_row("left in float", f"{len(names)}: {reason}")
    table.add_row("step buckets", str(summary["steps"]))
    told = summary["calibration"]
    table.add_row("calibrated by", f"{told['inputs']} inputs, {told['sampler']}")
    if "conditions" in told:
        table.add_row("conditions", told["conditions"])
    if summary["blocks"]:
        iterations = summary["options"]["iterations"]
        table.add_row("trained", f"{len(summary['blocks'])} blocks, {iterations} iterations each")
        worst = max(summary["blocks"], key=lambda block: block["relative_error"])
        table.add_row("largest block error", f"{100 * worst['relative_error']:.2f} % of {worst['name']}")
    table.add_row("file", f"{summary['file_mib']:.2f} MiB")
    table.add_row("time", f"{summary['seconds']:.1f} s")
    console().print(table)


def _list_layers(model: Path, variant: str | None, options: QuantizeOptions, json: Path | None) -> None:
    from rich.table import Table

    from dq_deploy.models import load_model

    denoiser = load_model(model, variant=variant)
    rows = layer_rows(denoiser, options)
    if json is not None:
        write_json(json, {"model": str(model), "layers": rows})
    table = Table(title=f"{len(rows)} layers of {model}")
    for name in ("layer", "kind", "input", "output", "MACs", "bits", "fold"):
        table.add_column(name, justify="right" if name == "MACs" else "left", overflow="fold")
    for row in rows:
        shapes = ["x".join(str(size) for size in row[key]) for key in ("input_shape", "output_shape")]
        bits = "float" if row["weight_bits"] is None else f"W{row['weight_bits']}A{row['activation_bits']}"
        table.add_row(row["name"], row["kind"], *shapes, f"{row['macs']:,}", bits, row["fold"])
    console().print(table)


def layer_rows(denoiser: Denoiser, options: QuantizeOptions) -> list[dict[str, Any]]:
    """One JSON table a layer, in execution order: shapes at batch 1, MACs, bits and why, fold."""
    from dq_deploy.methods.plan import plan_sites
    from dq_deploy.methods.preparation import fold_decisions
    from dq_deploy.models import quantizable_layers

    sites = quantizable_layers(denoiser.module, denoiser.config)
    plans = plan_sites(sites, options)
    folds = fold_decisions(denoiser)
    return [
        {
            "name": site.name,
            "kind": site.kind,
            "input_shape": list(site.input_shape),
            "output_shape": list(site.output_shape),
            "kernel": list(site.kernel),
            "macs": site.macs,
            "weight_bits": plans[site.name].weight_bits,
            "activation_bits": plans[site.name].activation_bits,
            "bits_reason": plans[site.name].reason,
            "fold": folds[site.name],
        }
        for site in sites
    ]


def main() -> None:
    """Console script `dq-quantize`."""
    # before torch is loaded: spinning threads cost several times the work on a shared machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(quantize)
