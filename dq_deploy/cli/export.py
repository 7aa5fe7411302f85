"""`dq-export`: a record becomes an engine file with its manifest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame import check_outputs, in_flags_throughout, run, write_json
from dq_deploy.cli.frame.hash_check import HashCheck


def export(
    ckpt: Annotated[Path, typer.Option(help="Quantized model, .pt or .safetensors.")],
    out: Annotated[Path, typer.Option(help="ONNX file to write; its manifest goes to FILE.json.")],
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
    json: Annotated[Path | None, typer.Option(help="Also write the summary as JSON.")] = None,
    hash_check: HashCheck = True,
) -> None:
    """Write the integer graph of a quantized model for one engine."""
    from dq_deploy.artifacts import file_for_several
    from dq_deploy.errors import OptionError
    from dq_deploy.targets import check_target

    check_target(target, mode, float_type=float_type, conv=conv)
    if out.suffix != ".onnx":
        raise OptionError(f"--out got {out}, expected a name that ends in .onnx")
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


def main() -> None:
    """Entry of the console script."""
    run(export)


if __name__ == "__main__":
    main()
