"""`dq-export`: a record becomes an engine file with its manifest."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame import check_outputs, in_flags_throughout, refuse, run, write_json
from dq_deploy.cli.frame.hash_check import HashCheck


def export(
    ckpt: Annotated[Path, typer.Option(help="Quantized model, .pt or .safetensors.")],
    out: Annotated[
        Path,
        typer.Option(help="ONNX file to write; its manifest goes to FILE.json. With --layout a new folder."),
    ],
    target: Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt or tensorrt-rtx.")] = "onnxruntime",
    mode: Annotated[str, typer.Option(help="exact, or fast for onnxruntime.")] = "exact",
    float_type: Annotated[
        str | None,
        typer.Option(
            help="Type of the operations between the integer layers, for tensorrt and tensorrt-rtx: float16 (default), "
            "bfloat16 or float32."
        ),
    ] = None,
    conv: Annotated[
        str | None,
        typer.Option(help="For tensorrt-rtx: gemm (default), products of int8 patches, or native, convolutions."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="optimum: write the whole pipeline of --model as a folder that Optimum loads, its other parts in "
            "float, for onnxruntime or openvino."
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="With --layout: folder of the pipeline.")] = None,
    component: Annotated[
        str | None, typer.Option(help="With --layout: the denoiser's name, where a pipeline has several.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the summary as JSON.")] = None,
    hash_check: HashCheck = True,
) -> None:
    """Write the integer graph of a quantized model for one engine."""
    from dq_deploy.artifacts import file_for_several
    from dq_deploy.targets import check_target

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
