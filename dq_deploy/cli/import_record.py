"""`dq-import`: a fake-quant checkpoint of another project and its float model become a record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame import check_outputs, in_flags_throughout, run, write_json


def import_record(
    source: Annotated[
        str, typer.Option("--from", help="Who wrote the checkpoint: q-diffusion, dmq, quest, cachequant or eda-dm.")
    ],
    ckpt: Annotated[Path, typer.Option(help="The fake-quant checkpoint; it is read as tensors, nothing in it is run.")],
    float_model: Annotated[
        Path,
        typer.Option(
            "--float",
            help="Float model it was made from: weights as .safetensors, .ckpt, .pth or .pt, or a diffusers folder.",
        ),
    ],
    settings: Annotated[
        Path, typer.Option(help="YAML with what the checkpoint does not say; docs/foreign-checkpoints.md lists it.")
    ],
    out: Annotated[Path, typer.Option(help="Quantized model to write, .pt or .safetensors.")],
    masks: Annotated[
        str,
        typer.Option(
            help="For dmq, layers whose channel factors differ by step: float keeps them in float, vote elects one "
            "factor a channel and says how many it changes."
        ),
    ] = "float",
    component: Annotated[
        str | None, typer.Option(help="Denoiser of a pipeline in --float that has several, as prior.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the summary as JSON.")] = None,
) -> None:
    """Turn a fake-quant checkpoint of another project into a quantized model that runs in integers."""
    from dq_deploy.cli.text.import_summary import show_import, summary_of_import
    from dq_deploy.readers import import_checkpoint, load_settings
    from dq_deploy.record import check_record_path, save_record

    check_record_path(out)
    check_outputs(out, json, inputs=(ckpt, float_model, settings))
    started = time.perf_counter()
    record = import_checkpoint(source, ckpt, float_model, load_settings(settings), masks=masks, component=component)
    save_record(record, out)
    summary = in_flags_throughout(summary_of_import(record, out, seconds=time.perf_counter() - started))
    if json is not None:
        write_json(json, summary)
    show_import(summary)


def main() -> None:
    """Console script."""
    run(import_record)


if __name__ == "__main__":
    main()
