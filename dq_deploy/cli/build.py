"""`dq-build`: an ONNX file or a record becomes a TensorRT plan with its manifest."""

from __future__ import annotations

import contextlib
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dq_deploy.cli.frame import check_outputs, console, run, stderr_console, write_json
from dq_deploy.cli.frame.hash_check import HashCheck

if TYPE_CHECKING:
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions
    from dq_deploy.engines.tensorrt.build.process import BuildProgress
    from dq_deploy.manifest.values import PlanManifest
    from dq_deploy.verify.plan.attestation import PlanAttestation

_LINE_EVERY_S = 2.0


def build(
    out: Annotated[Path, typer.Option(help="Plan to write; its manifest goes to FILE.json.")],
    onnx: Annotated[Path | None, typer.Option(help="ONNX file made by dq-export --target tensorrt[-rtx].")] = None,
    ckpt: Annotated[Path | None, typer.Option(help="Or the quantized model itself, .pt or .safetensors.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt-rtx; by default the ONNX file's target, else tensorrt-rtx.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="GPUs of a TensorRT-RTX plan, as 8.0,8.9,12.0; by default 8.0 and later.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="INPUT:MIN..OPT..MAX, as sample:1x4x64x64..2x4x64x64..8x4x96x96; may be repeated."),
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="TensorRT's measured kernels, read and updated.")] = None,
    workspace_mib: Annotated[int | None, typer.Option(help="Most workspace a kernel may use, in MiB.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Stop the build after so many seconds.")] = None,
    float_type: Annotated[str | None, typer.Option(help="With --ckpt, as for dq-export.")] = None,
    conv: Annotated[str | None, typer.Option(help="With --ckpt, as for dq-export.")] = None,
    keep_onnx: Annotated[Path | None, typer.Option(help="With --ckpt, keep the exported ONNX under this name.")] = None,
    log: Annotated[Path | None, typer.Option(help="Keep all the builder says in this file.")] = None,
    hash_check: HashCheck = True,
    json: Annotated[Path | None, typer.Option(help="Also write the summary as JSON.")] = None,
) -> None:
    """Build a TensorRT or TensorRT-RTX plan and say what each layer became."""
    from dq_deploy.artifacts import file_for_several
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions
    from dq_deploy.errors import OptionError
    from dq_deploy.manifest.plan import plan_manifest_path

    if (onnx is None) == (ckpt is None):
        raise OptionError(f"got {'both' if onnx else 'neither of'} --onnx and --ckpt, expected one of them; give one")
    only_ckpt = {"--float-type": float_type, "--conv": conv, "--keep-onnx": keep_onnx}
    if onnx is not None and (given := [name for name, value in only_ckpt.items() if value is not None]):
        raise OptionError(f"{', '.join(given)} needs --ckpt; the ONNX file is already exported: drop it")
    if out.suffix == ".onnx":
        raise OptionError(f"--out got {out}, expected a name such as unet.plan; .onnx is what dq-export writes")
    out = file_for_several(out, "the manifest")
    keep_onnx = None if keep_onnx is None else file_for_several(keep_onnx, "the manifest")
    check_outputs(out, plan_manifest_path(out), keep_onnx, timing_cache, log, json, inputs=(onnx, ckpt))
    options = BuildOptions(
        runtime=runtime,
        compute_capabilities=() if compute_capability is None else tuple(map(str.strip, compute_capability.split(","))),
        shapes=tuple(shapes or ()),
        timing_cache=timing_cache,
        workspace_mib=workspace_mib,
        time_limit_s=time_limit,
        log=log,
        hash_check=hash_check,
    )
    started = time.perf_counter()
    if onnx is not None:
        manifest, attestation = _build(onnx, out, options)
    else:
        assert ckpt is not None
        with _exported(ckpt, out, options, keep_onnx, float_type=float_type, conv=conv) as path:
            manifest, attestation = _build(path, out, options)
    summary = summary_of(manifest, attestation, out, seconds=time.perf_counter() - started)
    if json is not None:
        write_json(json, summary)
    _print(summary, manifest)


@contextlib.contextmanager
def _exported(
    ckpt: Path, out: Path, options: BuildOptions, keep: Path | None, *, float_type: str | None, conv: str | None
) -> Iterator[Path]:
    """The record's ONNX file, beside the plan while it is built, or where the user wants it."""
    from dq_deploy.engines.tensorrt.build.builder import check_options
    from dq_deploy.errors import OptionError
    from dq_deploy.record import load_record
    from dq_deploy.targets import check_target, export

    runtime = options.runtime or "tensorrt-rtx"
    check_target(runtime, "exact", float_type=float_type, conv=conv)
    check_options(options, runtime)
    if keep is not None and keep.suffix != ".onnx":
        raise OptionError(f"--keep-onnx got {keep}, expected a name that ends in .onnx")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        path = keep or Path(folder) / f"{out.stem}.onnx"
        started = time.perf_counter()
        export(load_record(ckpt, hash_check=options.hash_check), path, target=runtime, float_type=float_type, conv=conv)
        gc.collect()  # the model's memory is the builder's now
        print(f"exported in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        yield path


def _build(onnx: Path, out: Path, options: BuildOptions) -> tuple[PlanManifest, PlanAttestation]:
    from dq_deploy.engines.tensorrt.build.builder import build_plan
    from dq_deploy.engines.tensorrt.plan.inspector import store_layers
    from dq_deploy.manifest.plan import write_plan_manifest
    from dq_deploy.verify.plan.attestation import attest_plan

    found: list[PlanAttestation] = []

    def inspect(plan: Path, manifest: PlanManifest) -> PlanManifest:
        found.append(attest_plan(plan, manifest))
        return replace(manifest, layers_built=found[0].layers_built())

    with _progress() as progress:
        manifest = build_plan(onnx, out, options, progress=progress, inspect=inspect)
    write_plan_manifest(out, manifest)
    if manifest.runtime == "tensorrt":  # what dq-verify reads where the engine's GPU is not at hand
        store_layers(out)
    return manifest, found[0]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[BuildProgress], None]]:
    """What the builder is doing: one changing line on a terminal, a line now and then elsewhere, on stderr."""
    if not sys.stderr.isatty():
        told = [-_LINE_EVERY_S]

        def say(state: BuildProgress) -> None:
            if state.seconds - told[0] >= _LINE_EVERY_S:
                told[0] = state.seconds
                print(_state_text(state), file=sys.stderr, flush=True)

        yield say
        return
    with stderr_console().status("build") as status:
        yield lambda state: status.update(_state_text(state))


def _state_text(state: BuildProgress) -> str:
    steps = f" {state.done}/{state.total}" if state.total else ""
    memory = "" if state.peak_mib is None else f", {state.peak_mib:.0f} MiB"
    return f"build: {state.phase}{steps}, {state.seconds:.1f} s{memory}"


def summary_of(manifest: PlanManifest, attestation: PlanAttestation, out: Path, *, seconds: float) -> dict[str, Any]:
    """What was built, as JSON values."""
    stored, layers, built = manifest.to_json(), manifest.layers, manifest.layers_built or ()
    return {
        "plan": str(out),
        "runtime": manifest.runtime,
        "runtime_version": manifest.runtime_version,
        "compute_capabilities": list(manifest.compute_capabilities),
        "portable": manifest.portable,
        "record_sha256": manifest.record_sha256,
        "onnx_sha256": manifest.onnx_sha256,
        "plan_sha256": manifest.plan_sha256,
        "profiles": stored["profiles"],
        "options": dict(sorted(stored["options"].items())),
        "build": stored["build"],
        "plan_mib": stored["build"]["plan_bytes"] / 2**20,
        "seconds": seconds,
        "layers": len(built),
        "requested": dict(sorted(Counter("integer" if layer.integer else "float" for layer in layers).items())),
        "executed": dict(sorted(Counter(row.executed for row in built).items())),
        "integer_mac_share": attestation.integer_mac_share,
        "im2col_mib_per_sample": sum(layer.im2col_bytes or 0 for layer in layers) / 2**20,
        "not_integer": {row.name: f"{row.executed}: {row.why}" for row in built if row.executed != "integer"},
    }


def _print(summary: dict[str, Any], manifest: PlanManifest) -> None:
    from rich.table import Table

    build_facts = summary["build"]
    peak = build_facts["peak_mib"]
    table = Table(title=f"{summary['plan']} by {summary['runtime']} {summary['runtime_version']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("plan", f"{summary['plan_mib']:.2f} MiB")
    table.add_row("of it source of kernels", f"{build_facts['text_bytes'] / 2**20:.2f} MiB")
    table.add_row("built in", f"{build_facts['seconds']:.1f} s")
    table.add_row("builder's peak memory", "unknown" if peak is None else f"{peak:.0f} MiB")
    later = " and later" if summary["portable"] else ""
    table.add_row("compute capabilities", ", ".join(summary["compute_capabilities"]) + later)
    for profile in manifest.profiles:
        for name, sizes in profile.items():
            table.add_row(f"shapes of {name}", sizes.text())
    for word in ("requested", "executed"):
        counts = ", ".join(f"{count} {kind}" for kind, count in summary[word].items())
        table.add_row(f"layers {word}", counts)
    table.add_row("integer share of all MACs in the plan", f"{100 * summary['integer_mac_share']:.2f} %")
    table.add_row("int8 patches (im2col)", f"{summary['im2col_mib_per_sample']:.2f} MiB a sample")
    console().print(table)
    for name, reason in summary["not_integer"].items():
        print(f"not integer: {name}: {reason}")
    print(f"wrote {summary['plan']}; see each layer with: dq-verify --engine {summary['plan']}")


def main() -> None:
    """Entry of the console script."""
    run(build)


if __name__ == "__main__":
    main()
