"""`dq-export`: a record becomes an engine file with its manifest."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame import check_outputs, in_flags_throughout, refuse, run, write_json
from dq_deploy.cli.frame.hash_check import HashCheck

NATIVE = "native"
"""The target that is no graph."""


_Ckpt = Annotated[Path, typer.Option(help="Quantized model, .pt or .safetensors.")]
_Out = Annotated[
    Path,
    typer.Option(
        help="ONNX file to write; its manifest goes to FILE.json. With --layout a new folder. For native FILE.dqn."
    ),
]
_Target = Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt, tensorrt-rtx or native.")]
_Mode = Annotated[str, typer.Option(help="exact, or fast for onnxruntime.")]
_FloatType = Annotated[
    str | None,
    typer.Option(
        help="Type of the operations between the integer layers, for tensorrt and tensorrt-rtx: float16 (default), "
        "bfloat16 or float32."
    ),
]
_Conv = Annotated[
    str | None,
    typer.Option(help="For tensorrt-rtx: gemm (default), products of int8 patches, or native, convolutions."),
]
_Layout = Annotated[
    str | None,
    typer.Option(
        help="optimum: write the whole pipeline of --model as a folder that Optimum loads, its other parts in "
        "float, for onnxruntime or openvino."
    ),
]
_Model = Annotated[Path | None, typer.Option(help="With --layout: folder of the pipeline.")]
_Component = Annotated[
    str | None, typer.Option(help="With --layout: the denoiser's name, where a pipeline has several.")
]
_Isa = Annotated[
    str | None,
    typer.Option(help="For native: instruction set to pack the weights for; by default the best of this CPU."),
]
_Json = Annotated[Path | None, typer.Option(help="Also write the summary as JSON.")]


def export(
    ckpt: _Ckpt,
    out: _Out,
    target: _Target = "onnxruntime",
    mode: _Mode = "exact",
    float_type: _FloatType = None,
    conv: _Conv = None,
    layout: _Layout = None,
    model: _Model = None,
    component: _Component = None,
    isa: _Isa = None,
    json: _Json = None,
    hash_check: HashCheck = True,
) -> None:
    """Write the integer graph of a quantized model for one engine, or its program for this project's own kernels."""
    from dq_deploy.artifacts import file_for_several
    from dq_deploy.targets import check_target

    if target == NATIVE:
        others = (None if mode == "exact" else mode, float_type, conv, layout, model, component)
        refuse(
            any(other is not None for other in others),
            "--target native takes --isa; leave the others out",
        )
        _export_program(ckpt, out, isa, json, hash_check)
        return
    refuse(isa is not None, f"--isa goes with --target {NATIVE}; other engines choose for themselves")
    check_target(target, mode, float_type=float_type, conv=conv, layout=layout)
    if layout is not None:
        _export_folder(ckpt, model, out, target, mode, component, json, hash_check)
        return
    refuse(
        model is not None or component is not None,
        "--model and --component go with --layout; add it",
    )
    refuse(out.suffix != ".onnx", f"--out got {out}, expected a name that ends in .onnx")
    out = file_for_several(out, "the manifest")
    check_outputs(out, Path(f"{out}.json"), Path(f"{out}.data"), json, inputs=(ckpt,))

    from dq_deploy.cli.text.export_summary import show_export, summary_of_export
    from dq_deploy.record import load_record
    from dq_deploy.targets import export as export_record

    started = time.perf_counter()
    record = load_record(ckpt, hash_check=hash_check)
    manifest = export_record(record, out, target=target, mode=mode, float_type=float_type, conv=conv)
    summary = in_flags_throughout(summary_of_export(manifest, out, seconds=time.perf_counter() - started))
    if json is not None:
        write_json(json, summary)
    show_export(summary, manifest)


def _export_program(ckpt: Path, out: Path, isa: str | None, json: Path | None, hash_check: bool) -> None:
    """A program file."""
    from dq_deploy.native.file import SUFFIX

    refuse(out.suffix != SUFFIX, f"--out got {out}, expected a name that ends in {SUFFIX} for --target {NATIVE}")
    check_outputs(out, json, inputs=(ckpt,))
    from dq_deploy.cli.text.export_summary import show_program_export, summary_of_program_export
    from dq_deploy.native.file.content import write_program_file
    from dq_deploy.record import content_sha256, load_record

    started = time.perf_counter()
    record = load_record(ckpt, hash_check=hash_check)
    packed_for = write_program_file(record, out, isa=isa)
    seconds = time.perf_counter() - started
    summary = summary_of_program_export(out, packed_for, content_sha256(record), seconds=seconds)
    if json is not None:
        write_json(json, summary)
    show_program_export(summary)


def _export_folder(
    ckpt: Path,
    model: Path | None,
    out: Path,
    target: str,
    mode: str,
    component: str | None,
    json: Path | None,
    hash_check: bool,
) -> None:
    """A pipeline as a folder of another tool."""
    from dq_deploy.artifacts import check_new_folder
    from dq_deploy.cli.text.export_summary import show_folder, summary_of_export
    from dq_deploy.errors import OptionError
    from dq_deploy.pipelines.layouts import write_optimum_folder
    from dq_deploy.record import load_record

    if model is None:
        raise OptionError("a layout is of a whole pipeline, expected its folder as --model")
    check_new_folder(out)
    check_outputs(json, inputs=(ckpt, model))
    started = time.perf_counter()
    record = load_record(ckpt, hash_check=hash_check)
    written = write_optimum_folder(
        record,
        model,
        out,
        target=target,
        mode=mode,
        component=component,
        on_part=lambda part: print(f"writing {part}", file=sys.stderr, flush=True),
    )
    summary = summary_of_export(written.manifest, written.engine, seconds=time.perf_counter() - started)
    summary |= {"folder": str(out), "float_parts": list(written.parts), "left_out": list(written.left_out)}
    summary = in_flags_throughout(summary)
    if json is not None:
        write_json(json, summary)
    show_folder(summary, written)


def main() -> None:
    """Entry of the console script."""
    run(export)


if __name__ == "__main__":
    main()
