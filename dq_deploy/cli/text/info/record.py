"""What `dq-info` shows of a record: its facts and its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console
from dq_deploy.cli.text.info.facts import facts_table, short_list, value_text

if TYPE_CHECKING:
    from rich.table import Table


def summary_of_record(path: Path, *, hash_check: bool = True) -> dict[str, Any]:
    """Summary of a record file as JSON values; see `dq_deploy.record.summary`."""
    from dq_deploy.record import load_record
    from dq_deploy.record.summary import MIB, summarize_record

    summary = summarize_record(load_record(path, hash_check=hash_check))
    return {"path": str(path), "file_mib": path.stat().st_size / MIB, **summary}


def _call(call: Mapping[str, list[int | str]] | None) -> str | None:
    return None if call is None else ", ".join(f"{name} [{', '.join(map(str, s))}]" for name, s in call.items())


def _zero_points(rows: Sequence[Mapping[str, Any]]) -> str | None:
    spans = [row["weight_zero_points"] for row in rows if row["weight_zero_points"] is not None]
    if not spans:
        return None
    return f"{len(spans)} layers, from {min(low for low, _ in spans)} to {max(high for _, high in spans)}"


def _attention(attention: Mapping[str, list[str]]) -> str | None:
    count = sum(map(len, attention.values()))
    return f"{count} in {len(attention)} attentions; run natively with --attention int8, else float" if count else None


def _stored(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Layers with what no engine of this version runs."""
    found = [row["name"] for row in rows if row["branch_rank"] is not None]
    return f"{len(found)} layers, {found[0]} first: a low-rank branch" if found else None


def _corrected(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Layers whose bias differs by step."""
    count = sum(bool(row["bias_by_step"]) for row in rows)
    return f"{count} layers" if count else None


def show_record(summary: dict[str, Any]) -> None:
    """Print what `summary_of_record` found."""
    size, provenance = summary["size_mib"], summary["provenance"]
    facts = {
        "family": f"{summary['family']} ({summary['model_class']})",
        "scheduler": summary["scheduler_class"],
        "method": summary["method"],
        "schema": summary["schema_version"],
        "call": _call(summary["call"]),
        "bits": ", ".join(f"{bits}: {count} layers" for bits, count in summary["bits"].items()),
        "step buckets": summary["steps"],
        "timesteps": short_list(summary["timesteps"]),
        "quantized layers": f"{size['quantized']:.3f} MiB, as float32 {size['quantized_as_float32']:.3f} MiB",
        "float parameters": f"{size['float']:.3f} MiB in {len(summary['float_parameters'])} tensors",
        "file": f"{summary['file_mib']:.3f} MiB, as float32 {size['total_as_float32']:.3f} MiB",
        "largest float output": _largest(summary["float_ranges"]),
        "weights with zero points": _zero_points(summary["layers"]),
        "attention quantizers": _attention(summary["attention"]),
        "bias by step": _corrected(summary["layers"]),
        "stored, not run": _stored(summary["layers"]),
        "content": summary["content_sha256"],
        **{f"provenance: {key}": value_text(value) for key, value in provenance.items() if key != "method"},
    }
    notes = list(dict.fromkeys(row["fold"] for row in summary["layers"] if row["fold"]))
    out = console()
    out.print(facts_table(summary["path"], facts), markup=False)
    if summary["layers"]:
        out.print(_layer_table(summary["layers"], notes))
    if summary["weight_only"]:
        out.print(_weight_only_table(summary["weight_only"]))
    for number, note in enumerate(notes, 1):
        print(f"fold {number}: {note}")


def _weight_only_table(layers: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(layers)} weight-only layers")
    for name in ("layer", "bits", "block", "weights"):
        table.add_column(name, overflow="fold")
    for row in layers:
        shape = "x".join(str(n) for n in row["shape"])
        table.add_row(Text(row["name"]), f"W{row['weight_bits']}", str(row["block_size"]), shape)
    return table


def _largest(ranges: Mapping[str, float]) -> str | None:
    """The module with the largest output in calibration, or None."""
    if not ranges:
        return None
    name = max(ranges, key=lambda key: ranges[key])
    return f"{ranges[name]:.4g} at {name}"


def _layer_table(layers: list[dict[str, Any]], notes: list[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(layers)} quantized layers")
    for name in ("layer", "kind", "bits", "weights", "steps", "parts", "fold"):
        table.add_column(name, justify="right" if name in ("steps", "fold") else "left", overflow="fold")
    for row in layers:
        table.add_row(
            Text(row["name"]),
            row["kind"],
            f"W{row['weight_bits']}A{row['activation_bits']}",
            "x".join(str(n) for n in row["shape"]),
            str(row["steps"]) if row["steps"] > 1 else "static",
            " + ".join(str(n) for n in row["parts"]),
            str(notes.index(row["fold"]) + 1) if row["fold"] else "",
        )
    return table
