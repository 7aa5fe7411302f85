"""`dq-info`: what a quantized model, an exported engine file or a plan is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dq_deploy.cli.frame import check_outputs, console, run, write_json
from dq_deploy.cli.frame.hash_check import HashCheck
from dq_deploy.errors import FileProblemError, OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from dq_deploy.manifest.values import EngineManifest, TensorEntry


def info(
    path: Annotated[Path, typer.Argument(help="Record (.pt, .safetensors), engine file (.onnx) or plan (.plan).")],
    native: Annotated[
        bool, typer.Option("--native", help="Of a record also how the native engine would run it on this machine.")
    ] = False,
    hash_check: HashCheck = True,
    json: Annotated[Path | None, typer.Option(help="Also write what is shown, and more, as JSON.")] = None,
) -> None:
    """Show what a quantized model, an exported engine file or a plan holds."""
    check_outputs(json, inputs=(path,))
    from dq_deploy.manifest.plan import is_plan
    from dq_deploy.open_engine import RECORD_SUFFIXES

    if native and path.suffix not in RECORD_SUFFIXES:
        raise OptionError(f"--native goes with a record ({' or '.join(RECORD_SUFFIXES)}), got {path}; leave it out")
    if path.suffix not in RECORD_SUFFIXES and is_plan(path):
        from dq_deploy.cli.text.plan import show_plan, summary_of_plan
        from dq_deploy.manifest.plan import read_plan_manifest

        plan = read_plan_manifest(path, check_hash=hash_check)
        summary = summary_of_plan(path, plan)
        show = partial(show_plan, manifest=plan)
    elif path.suffix == ".onnx":
        from dq_deploy.graph.onnx_file import read_manifest

        manifest = read_manifest(path, hash_check=hash_check)
        summary = summary_of_engine(path, manifest)
        show = partial(_show_engine, manifest=manifest)
    else:
        summary = summary_of_record(path, hash_check=hash_check)
        show = partial(_show_record)
    if native:
        from dq_deploy.cli.text.native import show_native, summary_of_native

        summary["native"] = summary_of_native(path, hash_check=hash_check)
    if json is not None:
        write_json(json, summary)
    show(summary)
    if native:
        show_native(summary["native"])


def summary_of_record(path: Path, *, hash_check: bool = True) -> dict[str, Any]:
    """Summary of a record file as JSON values; see `dq_deploy.record.summary`."""
    from dq_deploy.record import load_record
    from dq_deploy.record.summary import MIB, summarize_record

    summary = summarize_record(load_record(path, hash_check=hash_check))
    return {"path": str(path), "file_mib": path.stat().st_size / MIB, **summary}


def summary_of_engine(path: Path, manifest: EngineManifest) -> dict[str, Any]:
    """Manifest of an exported ONNX file with the shares its layers declare, as JSON values.

    Raises:
        FileProblemError: the manifest lacks what this release writes.
    """
    from dq_deploy.manifest.engine import stored_json

    macs = manifest.macs
    if macs is None or manifest.record_sha256 is None:
        raise _incomplete(path, "macs" if macs is None else "record_sha256")
    for index, layer in enumerate(manifest.layers):
        absent = [name for name in ("form", "kind", "reason") if getattr(layer, name) is None]
        if absent:
            raise _incomplete(path, f"layers[{index}].{absent[0]}")
        if layer.integer and layer.name not in macs.layers:
            raise _incomplete(path, f"macs.layers.{layer.name}")
    data = path.with_name(path.name + ".data")
    size = path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    work = sum(macs.layers[layer.name] for layer in manifest.layers if layer.integer)
    return {
        "kind": "engine",
        "path": str(path),
        "file_mib": size / 2**20,
        "integer_layers": sum(layer.integer for layer in manifest.layers),
        "layers_total": len(manifest.layers),
        "declared_integer_mac_share": work / macs.of_all,
        "declared_integer_mac_share_of_quantizable": work / macs.of_quantizable,
        "manifest": stored_json(manifest),
    }


def _incomplete(path: Path, entry: str) -> FileProblemError:
    return FileProblemError(f"manifest inside {path} is incomplete ({entry} is missing); export the file again")


def _facts(title: str, rows: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, "none" if value is None else str(value))
    return table


def _call(call: Mapping[str, list[int | str]] | None) -> str | None:
    return None if call is None else ", ".join(f"{name} [{', '.join(map(str, s))}]" for name, s in call.items())


def _zero_points(rows: Sequence[Mapping[str, Any]]) -> str | None:
    spans = [row["weight_zero_points"] for row in rows if row["weight_zero_points"] is not None]
    if not spans:
        return None
    return f"{len(spans)} layers, from {min(low for low, _ in spans)} to {max(high for _, high in spans)}"


def _attention(attention: Mapping[str, list[str]]) -> str | None:
    count = sum(map(len, attention.values()))
    return f"{count} in {len(attention)} attentions; kept, their products run in float" if count else None


def _stored(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Layers with what no engine of this version runs."""
    found = [row["name"] for row in rows if row["bias_by_step"] or row["branch_rank"] is not None]
    return f"{len(found)} layers, {found[0]} first: a bias row a step or a low-rank branch" if found else None


def _show_record(summary: dict[str, Any]) -> None:
    size, provenance = summary["size_mib"], summary["provenance"]
    facts = {
        "family": f"{summary['family']} ({summary['model_class']})",
        "scheduler": summary["scheduler_class"],
        "method": summary["method"],
        "schema": summary["schema_version"],
        "call": _call(summary["call"]),
        "bits": ", ".join(f"{bits}: {count} layers" for bits, count in summary["bits"].items()),
        "step buckets": summary["steps"],
        "timesteps": _short(summary["timesteps"]),
        "quantized layers": f"{size['quantized']:.3f} MiB, as float32 {size['quantized_as_float32']:.3f} MiB",
        "float parameters": f"{size['float']:.3f} MiB in {len(summary['float_parameters'])} tensors",
        "file": f"{summary['file_mib']:.3f} MiB, as float32 {size['total_as_float32']:.3f} MiB",
        "largest float output": _largest(summary["float_ranges"]),
        "weights with zero points": _zero_points(summary["layers"]),
        "attention quantizers": _attention(summary["attention"]),
        "stored, not run": _stored(summary["layers"]),
        "content": summary["content_sha256"],
        **{f"provenance: {key}": _value(value) for key, value in provenance.items() if key != "method"},
    }
    notes = list(dict.fromkeys(row["fold"] for row in summary["layers"] if row["fold"]))
    out = console()
    out.print(_facts(summary["path"], facts), markup=False)
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


def _show_engine(summary: dict[str, Any], manifest: EngineManifest) -> None:
    from rich.table import Table
    from rich.text import Text

    share = 100 * summary["declared_integer_mac_share"]
    versions = None if manifest.versions is None else dict(sorted(manifest.versions.items()))
    facts = {
        "target": f"{manifest.target}, mode {manifest.mode}",
        "family": manifest.family,
        "made from record": manifest.record_sha256,
        "file": f"{summary['file_mib']:.3f} MiB",
        "inputs": _tensors(manifest.inputs),
        "outputs": _tensors(manifest.outputs),
        "step buckets": len(manifest.timesteps),
        "timesteps": _short(manifest.timesteps),
        "batch": "one step bucket in a batch" if manifest.single_step_batch else "steps may be mixed",
        "integer layers": f"{summary['integer_layers']} of {summary['layers_total']}, as declared",
        "integer share of MACs": f"{share:.2f} %, as declared; dq-verify measures it",
        "versions": _value(versions),
    }
    out = console()
    out.print(_facts(summary["path"], facts), markup=False)
    table = Table(title=f"{summary['layers_total']} layers")
    for name in ("layer", "kind", "form", "reason"):
        table.add_column(name, overflow="fold")
    for layer in manifest.layers:
        table.add_row(*(Text(str(cell)) for cell in (layer.name, layer.kind, layer.form, layer.reason)))
    out.print(table)


def _tensors(tensors: Sequence[TensorEntry]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)


def _short(values: Any) -> str:
    texts = [f"{value:g}" for value in values]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:3], "...", *texts[-3:]])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return str(value)


def main() -> None:
    """Entry of the console script."""
    run(info)


if __name__ == "__main__":
    main()
