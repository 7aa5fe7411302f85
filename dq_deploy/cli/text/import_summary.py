"""What `dq-import` prints: the record it made of a foreign checkpoint, and what was left out of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console

if TYPE_CHECKING:
    from dq_deploy.record import Record

_MOST_NAMES = 6


def summary_of_import(record: Record, out: Path, *, seconds: float) -> dict[str, Any]:
    """What was imported, as JSON values."""
    bits = Counter(f"W{layer.weight_bits}A{layer.activation_bits}" for layer in record.layers.values())
    history = record.provenance["history"]
    return {
        "record": str(out),
        "method": record.provenance["method"],
        "layers": len(record.layers),
        "bits": dict(sorted(bits.items())),
        "split_layers": sum(len(layer.parts) > 1 for layer in record.layers.values()),
        "kept_float": {why: names for h in history for why, names in h.get("kept_float", {}).items()},
        "attention_quantizers": [name for h in history for name in h.get("attention_quantizers", ())],
        "attention_quantizers_kept": sum(len(own.tables) for own in record.attention.values()),
        "attention_reasons": [why for h in history if h.get("stage") == "left out" for why in h["reasons"]],
        "changed_parameters": [name for h in history for name in h.get("changed", ())],
        "elected_channel_factors": {
            name: counts for h in history for name, counts in h.get("changed_of_entries", {}).items()
        },
        "steps": record.steps,
        "file_mib": out.stat().st_size / 2**20,
        "seconds": seconds,
    }


def show_import(summary: dict[str, Any]) -> None:
    """Print what `summary_of_import` found."""
    from rich.table import Table

    table = Table(title=f"{summary['record']}, {summary['method']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("integer layers", str(summary["layers"]))
    table.add_row("bits", ", ".join(f"{count} at {name}" for name, count in summary["bits"].items()))
    table.add_row("with a split input", str(summary["split_layers"]))
    table.add_row("step buckets", str(summary["steps"]))
    table.add_row("parameters that differ from --float", str(len(summary["changed_parameters"])))
    table.add_row("file", f"{summary['file_mib']:.2f} MiB")
    table.add_row("time", f"{summary['seconds']:.1f} s")
    console().print(table)
    for reason, names in summary["kept_float"].items():
        print(f"float, {len(names)} layers: {reason}: {_few(names)}")
    products = summary["attention_quantizers"]
    if kept := summary["attention_quantizers_kept"]:
        print(f"kept, {kept} quantizers of attention products: run natively with --attention int8, else float")
    if products:
        why = "; ".join(summary["attention_reasons"][:2])
        print(f"left out, {len(products)} quantizers of attention products ({why}): {_few(products)}")
    for name, (changed, entries) in summary["elected_channel_factors"].items():
        print(f"elected one power-of-two factor a channel for {name}: {changed} of {entries} entries changed")


def _few(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more (all of them in --json)" if more > 0 else "")
