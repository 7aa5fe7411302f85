"""`dq-tune`: the fastest block sizes of the Triton kernels on the GPU at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.cli.frame import check_outputs, progress, run


def tune(
    model: Annotated[str, typer.Option(help="Whose layer shapes: cifar, sd15 or sdxl.")],
    out: Annotated[Path, typer.Option(help="Table of configurations to write, JSON.")],
    dtype: Annotated[str, typer.Option(help="Type between the layers: float16, bfloat16 or float32.")] = "float16",
    device: Annotated[int, typer.Option(help="CUDA's number of the GPU.")] = 0,
    op: Annotated[str | None, typer.Option(help="Only this op, such as int_conv2d.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes that compile kernels; default: one a usable core.")
    ] = None,
) -> None:
    """Measure the Triton kernels at a model's shapes; a configuration with one wrong result is out.

    Needs an NVIDIA GPU of compute capability 8.0 or newer, torch with CUDA, and triton.
    """
    check_outputs(out)
    from dq_deploy.bench.kernel_tuning import tune_kernels
    from dq_deploy.cli.text.tuned_rules import show_rules

    with progress("tuning") as advance:
        rules = tune_kernels(model, out, dtype=dtype, device=device, op=op, jobs=jobs, on_progress=advance)
    show_rules(rules, out)


def main() -> None:
    """Entry of the console script."""
    run(tune)


if __name__ == "__main__":
    main()
