"""What `dq-quantize` prints: the record it made, or the layers of a float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console, in_flags_throughout, warn, write_json

if TYPE_CHECKING:
    from dq_deploy.cli.text.quantize.arguments import QuantizeArguments
    from dq_deploy.methods import SharedOptions
    from dq_deploy.models import Denoiser
    from dq_deploy.record import Record


NAMES_SHOWN = 12
"""Layers named in one row; `--json` has all."""


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
        **_words_of_budgets(record),
        "layer_bits": {name: [own.weight_bits, own.activation_bits] for name, own in record.layers.items()},
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
        "step_correction": _last_of(record, "step-correction"),
        "pictures": _last_of(record, "picture-training"),
        "finetuned": [h for h in record.provenance["history"] if h.get("stage") == "finetune"],
    }


def _last_of(record: Record, stage: str) -> dict[str, Any] | None:
    """The note of a stage, of several that of the last; None where there was none."""
    return next((h for h in reversed(record.provenance["history"]) if h.get("stage") == stage), None)


def _words_of_budgets(record: Record) -> dict[str, str]:
    """Average bits and layers by bits, of weights and of activations; empty where no budget chose them."""
    from dq_deploy.methods.budget.bit_budget import activation_bits_of, words_of_bits

    found = {"bits_in_words": "", "activation_bits_in_words": ""}
    entry = next((h for h in record.provenance["history"] if h.get("stage") == "bits"), None)
    if entry is None:
        return found
    if entry["budget"] is not None:
        found["bits_in_words"] = words_of_bits(entry["average_bits"], [pair[0] for pair in entry["layers"].values()])
    if "activation_budget" in entry:
        widths = activation_bits_of(entry["layers"]).values()
        found["activation_bits_in_words"] = words_of_bits(entry["average_activation_bits"], list(widths))
    return found


def show_summary(summary: dict[str, Any]) -> None:
    """Print what `summary_of` found."""
    from rich.table import Table

    table = Table(title=f"{summary['record']} by {summary['method']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    bits = ", ".join(f"{count} at {name}" for name, count in summary["bits"].items())
    table.add_row("integer layers", str(summary["layers"]))
    if summary["weight_only_layers"]:
        table.add_row("weight-only layers", str(summary["weight_only_layers"]))
    table.add_row("bits", bits)
    if summary["bits_in_words"]:
        table.add_row("weights under the budget", summary["bits_in_words"])
    if summary["activation_bits_in_words"]:
        table.add_row("activations under the budget", summary["activation_bits_in_words"])
        for width in sorted({pair[1] for pair in summary["layer_bits"].values()}, reverse=True)[:-1]:
            table.add_row(f"{width}-bit activations", _names_at(summary["layer_bits"], width))
    for reason, names in summary["kept_float"].items():
        table.add_row("left in float", f"{len(names)}: {reason}")
    table.add_row("step buckets", str(summary["steps"]))
    told = summary["calibration"]
    chosen = f", steps by {told['choice']}" if "choice" in told else ""
    table.add_row("calibrated by", f"{told['inputs']} inputs, {told['sampler']}{chosen}")
    if "conditions" in told:
        table.add_row("conditions", told["conditions"])
    if summary["blocks"]:
        if summary["method"] == "gptq":
            table.add_row("rounded", f"{len(summary['blocks'])} blocks, by second-order statistics")
        else:
            iterations = summary["options"]["iterations"]
            table.add_row("trained", f"{len(summary['blocks'])} blocks, {iterations} iterations each")
        worst = max(summary["blocks"], key=lambda block: block["relative_error"])
        table.add_row("largest block error", f"{100 * worst['relative_error']:.2f} % of {worst['name']}")
    for stage in summary["finetuned"]:
        share, left = 100 * stage["share_of_weights"], 100 * stage["share_of_error_left"]
        words = "as it was" if stage["kept"] == "start" else f"{left:.1f} % of the held-out error left"
        table.add_row(f"finetuned: {stage['part']}", f"{stage['layers']} layers, {share:.1f} % of the weights, {words}")
    if summary["step_correction"]:
        found = summary["step_correction"]
        kept = ["rows"] * (found["kept"] == "rows") + ["factor and offset of the output"] * found.get(
            "output_kept", False
        )
        left = 100 * found.get("share_of_error_left_at_all", min(found["share_of_error_left"], 1.0))  # or an older note
        words = f"{', '.join(kept) or 'nothing'} kept, {left:.1f} % of the held-out error left"
        table.add_row("correction by step", words)
    if summary["pictures"]:
        found = summary["pictures"]
        words = "as it was" if found["kept"] == "start" else f"{found['held_out_db_gained']:.2f} dB nearer to float"
        table.add_row("trained on pictures", f"{found['iterations']} iterations, held-out pictures {words}")
    table.add_row("file", f"{summary['file_mib']:.2f} MiB")
    table.add_row("time", f"{summary['seconds']:.1f} s")
    console().print(table)


def _names_at(layer_bits: dict[str, list[int]], width: int) -> str:
    """The layers with activations of these bits; of many only the first."""
    names = [name for name, (_, activations) in layer_bits.items() if activations == width]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def say_engine_limits(options: SharedOptions, engine: str | None) -> None:
    """Warn of what the engine would not run in integers.

    Raises:
        OptionError: an unknown engine, or one that would run nothing of it.
    """
    if engine is None:
        return
    from dq_deploy.comparison import check_engine

    for remark in check_engine(options, engine):
        warn(remark)


def list_layers(given: QuantizeArguments, options: SharedOptions) -> None:
    """Print the layers of a float model and what the options make of them, and write them as JSON.

    The configuration says it all: no weights are read, and none need be there.
    """
    from rich.table import Table

    from dq_deploy.cli.text.quantize.float_model import described_model
    from dq_deploy.models import macs_of, other_layers, words_of_untried

    model, json = given.model, given.json
    denoiser = described_model(given)
    rows = in_flags_throughout(layer_rows(denoiser, options))
    parameters = sum(value.numel() for value in denoiser.module.parameters())
    others = other_layers(denoiser.module, denoiser.call)
    if json is not None:
        write_json(json, {"model": str(model), "parameters": parameters, "layers": rows, "other_layers": others})
    table = Table(title=f"{len(rows)} layers of {model}")
    for name in ("layer", "kind", "input", "output", "MACs", "bits", "fold"):
        table.add_column(name, justify="right" if name == "MACs" else "left", overflow="fold")
    for row in rows:
        shapes = ["x".join(str(size) for size in row[key]) for key in ("input_shape", "output_shape")]
        bits = "float" if row["weight_bits"] is None else f"W{row['weight_bits']}A{row['activation_bits']}"
        table.add_row(row["name"], row["kind"], *shapes, f"{row['macs']:,}", bits, row["fold"])
    console().print(table)
    console().print(_words_of_reasons(rows, parameters, others), highlight=False, soft_wrap=True)
    for line in words_of_asked_budgets(options):
        console().print(line, highlight=False, soft_wrap=True)
    macs = macs_of(denoiser.module, denoiser.call)
    if macs.other:
        console().print(f"layers without an integer form do {macs.other / macs.of_all:.2%} of the multiply-accumulates")
    if untried := words_of_untried(denoiser.family):
        warn(untried)


def words_of_asked_budgets(options: SharedOptions) -> list[str]:
    """What a budget will change of the bits listed, which only a measurement with the weights says."""
    found = []
    for what, budget, widths in (
        ("weight", options.budget, options.budget_widths),
        ("activation", options.activation_budget, options.activation_budget_widths),
    ):
        if budget is not None:
            listed = ", ".join(map(str, widths))
            found.append(
                f"a budget of {budget:g} {what} bits gives each general layer one of {listed} by its "
                "measured sensitivity; the record and --json of the quantization say which"
            )
    return found


def _words_of_reasons(rows: list[dict[str, Any]], parameters: int, others: dict[str, str]) -> str:
    """The parameter count, and which layers have other bits than most, by reason."""
    from dq_deploy.methods.layer_bits import GENERAL_REASON

    lines = [f"{parameters:,} parameters; the configuration was read and no weights"]
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        bits = "float" if row["weight_bits"] is None else f"W{row['weight_bits']}A{row['activation_bits']}"
        if row["bits_reason"] != GENERAL_REASON:
            reasons.setdefault((bits, row["bits_reason"]), []).append(row["name"])
    for name, why in others.items():
        reasons.setdefault(("float", why), []).append(name)
    for (bits, why), names in reasons.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        lines.append(f"{bits}, {why}: {', '.join(names[:2])}{more}")
    return "\n".join(lines)


def layer_rows(denoiser: Denoiser, options: SharedOptions) -> list[dict[str, Any]]:
    """One JSON table a layer, in execution order: shapes at batch 1, MACs, bits and why, fold."""
    from dq_deploy.methods.layer_bits import bits_of_sites
    from dq_deploy.methods.prepare.preparation import fold_decisions
    from dq_deploy.models import quantizable_layers

    sites = quantizable_layers(denoiser.module, denoiser.call)
    bits = bits_of_sites(sites, options)
    folds = fold_decisions(denoiser)
    return [
        {
            "name": site.name,
            "kind": site.kind,
            "input_shape": list(site.input_shape),
            "output_shape": list(site.output_shape),
            "kernel": list(site.kernel),
            "macs": site.macs,
            "role": site.role,
            "weight_bits": bits[site.name].weight_bits,
            "activation_bits": bits[site.name].activation_bits,
            "bits_reason": bits[site.name].reason,
            "fold": folds[site.name],
        }
        for site in sites
    ]
