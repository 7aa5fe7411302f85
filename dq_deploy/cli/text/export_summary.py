"""What `dq-export` prints: the file it wrote, and what stays float in it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.cli.frame import console

if TYPE_CHECKING:
    from dq_deploy.manifest.values import EngineManifest, ManifestLayer
    from dq_deploy.pipelines.layouts import WrittenFolder

_MOST_LINES = 12


def summary_of_export(manifest: EngineManifest, out: Path, *, seconds: float) -> dict[str, Any]:
    """What was exported, as JSON values."""
    layers, macs = manifest.layers, manifest.macs
    assert macs is not None  # an export counts them
    patches = [layer.im2col_bytes or 0 for layer in layers]
    integer = sum(macs.layers.get(layer.name, 0) for layer in layers if layer.integer)
    data = Path(f"{out}.data")
    return {
        "engine": str(out),
        "target": manifest.target,
        "mode": manifest.mode,
        "record_sha256": manifest.record_sha256,
        "file_mib": (out.stat().st_size + (data.stat().st_size if data.is_file() else 0)) / 2**20,
        "seconds": seconds,
        "layers": len(layers),
        "integer_layers": sum(layer.integer for layer in layers),
        "declared_integer_mac_share": integer / macs.of_all,
        "forms": dict(sorted(Counter(str(layer.form) for layer in layers).items())),
        "float_layers": {layer.name: layer.reason for layer in layers if not layer.integer},
        "notes": list(manifest.notes or ()),
        "varying_sizes": {name: (manifest.multiples or {}).get(name, 1) for name in _varying(manifest)},
        "fixed_sizes": {name: size for name, size in (manifest.sizes or {}).items() if name not in _varying(manifest)},
        "float_pads": sum(_pads_floats(layer) for layer in layers) if manifest.target.startswith("tensorrt") else 0,
        "options": {} if manifest.options is None else manifest.options.to_json(),
        "im2col_bytes": sum(patches),
        "largest_im2col_bytes": max(patches, default=0),
        "float_precision": [row.to_json() for row in manifest.float_precision or ()],
    }


def _pads_floats(layer: ManifestLayer) -> bool:
    """Whether a layer's image is padded before it is quantized, since its codes have no one code of 0."""
    parts = layer.parts or ()
    return any(part.offset_table is not None and any(part.codes_padding or ()) for part in parts)


def show_export(summary: dict[str, Any], manifest: EngineManifest) -> None:
    """Print what `summary_of_export` found."""
    from rich.table import Table

    table = Table(title=f"{summary['engine']} for {summary['target']}, mode {summary['mode']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("file", f"{summary['file_mib']:.2f} MiB")
    table.add_row("integer layers", f"{summary['integer_layers']} of {summary['layers']}")
    share = 100 * summary["declared_integer_mac_share"]
    table.add_row("declared integer share of all MACs", f"{share:.2f} %")
    for form, count in summary["forms"].items():
        table.add_row(f"form {form}", str(count))
    if summary["im2col_bytes"]:
        largest = summary["largest_im2col_bytes"] / 2**20
        whole = summary["im2col_bytes"] / 2**20
        table.add_row("int8 patches of one sample", f"{whole:.2f} MiB written, {largest:.2f} MiB at once")
    if summary["float_pads"]:
        table.add_row("convolutions padded in float32", str(summary["float_pads"]))
    if "float_type" in summary["options"]:
        table.add_row("float type", summary["options"]["float_type"])
    table.add_row("sizes that vary", _sizes_text(summary["varying_sizes"]))
    table.add_row("step buckets", str(len(manifest.timesteps)))
    table.add_row("time", f"{summary['seconds']:.1f} s")
    console().print(table)
    _print_floats(summary)
    fixed = tuple(f"{name} is fixed at " for name in summary["fixed_sizes"])
    print(*(note for note in summary["notes"] if fixed and note.startswith(fixed)), sep="\n", end="\n" if fixed else "")
    if summary["target"].startswith("tensorrt"):
        print(f"build the engine with: dq-build --onnx {summary['engine']} --out {_plan_name(summary['engine'])}")
    exact = " --exact" if summary["integer_layers"] else ""
    print(f"wrote {summary['engine']}; prove it with: dq-verify --ckpt ... --engine {summary['engine']}{exact}")


def summary_of_program_export(out: Path, isa: str, record_sha256: str, *, seconds: float) -> dict[str, Any]:
    """What a program file was written of, as JSON values."""
    size = out.stat().st_size / 2**20
    return {
        **{"engine": str(out), "target": "native", "mode": "exact", "isa": isa},
        **{"record_sha256": record_sha256, "file_mib": size, "seconds": seconds},
    }


def show_program_export(summary: dict[str, Any]) -> None:
    """Print what `summary_of_program_export` found."""
    engine = summary["engine"]
    print(f"packed for {summary['isa']}: {summary['file_mib']:.2f} MiB in {summary['seconds']:.1f} s")
    print(f"wrote {engine}; prove it with: dq-verify --ckpt ... --engine {engine} --exact")


def show_folder(summary: dict[str, Any], written: WrittenFolder) -> None:
    """Print what was written for another tool: the denoiser as `show_export`, then the rest of the folder."""
    show_export(summary, written.manifest)
    print(*written.left_out, sep="\n", end="\n" if written.left_out else "")
    print(f"wrote {written.path}: beside the denoiser, in float: {', '.join(written.parts)}")
    print(f"load it with: {written.call}")


def _varying(manifest: EngineManifest) -> list[str]:
    """Names of the sizes that an engine leaves open, in the order of its inputs."""
    return list(dict.fromkeys(size for tensor in manifest.inputs for size in tensor.shape if isinstance(size, str)))


def _sizes_text(sizes: dict[str, int]) -> str:
    """As `B, height in steps of 8, tokens`."""
    return ", ".join(name if step == 1 else f"{name} in steps of {step}" for name, step in sizes.items())


def _print_floats(summary: dict[str, Any]) -> None:
    """What stays float, one line a layer; a reason that many layers share gets one line."""
    names_of: dict[str, list[str]] = {}
    for name, reason in summary["float_layers"].items():
        names_of.setdefault(reason, []).append(name)
    for reason, names in names_of.items():
        if len(names) > _MOST_LINES:
            print(f"float: {len(names)} layers, {names[0]} to {names[-1]}: {reason}")
        else:
            print(*(f"float: {name}: {reason}" for name in names), sep="\n")
    rows = summary["float_precision"]
    for row in rows[:_MOST_LINES]:
        print(f"{row['kept']}: {row['name']}: {row['why']} {row['largest']:.4g}")
    if len(rows) > _MOST_LINES:
        print(f"{len(rows) - _MOST_LINES} more operations are kept so; the manifest's float_precision lists them")


def _plan_name(engine: str) -> str:
    """Name of the plan that is built from an ONNX file: unet.onnx -> unet.plan."""
    return engine.removesuffix(".onnx") + ".plan"
