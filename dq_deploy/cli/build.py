"""`dq-build`: an ONNX file or a record becomes a TensorRT plan with its manifest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame import check_outputs, in_flags_throughout, run, write_json
from dq_deploy.cli.frame.hash_check import HashCheck
from dq_deploy.errors import OptionError


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
    from dq_deploy.cli.text.build_summary import build_progress, say_exported, show_build, summary_of_build
    from dq_deploy.engines.tensorrt.build.builder import BuildOptions
    from dq_deploy.manifest.plan import plan_manifest_path
    from dq_deploy.verify.plan.attested_build import build_attested, exported_onnx

    _check_choice(onnx, ckpt, {"--float-type": float_type, "--conv": conv, "--keep-onnx": keep_onnx})
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
    with contextlib.ExitStack() as stack:
        if onnx is None:
            assert ckpt is not None
            export = exported_onnx(
                ckpt, out, options, float_type=float_type, conv=conv, keep_onnx=keep_onnx, on_export=say_exported
            )
            onnx = stack.enter_context(export)
        progress = stack.enter_context(build_progress())
        manifest, attestation = build_attested(onnx, out, options, progress=progress)
    summary = in_flags_throughout(summary_of_build(manifest, attestation, out, seconds=time.perf_counter() - started))
    if json is not None:
        write_json(json, summary)
    show_build(summary, manifest)


def _check_choice(onnx: Path | None, ckpt: Path | None, only_ckpt: Mapping[str, object]) -> None:
    if (onnx is None) == (ckpt is None):
        raise OptionError(f"got {'both' if onnx else 'neither of'} --onnx and --ckpt, expected one of them; give one")
    if onnx is not None and (given := [name for name, value in only_ckpt.items() if value is not None]):
        raise OptionError(f"{', '.join(given)} needs --ckpt; the ONNX file is already exported: drop it")


def main() -> None:
    """Entry of the console script."""
    run(build)


if __name__ == "__main__":
    main()
