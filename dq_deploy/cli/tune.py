"""`dq-tune`: the fastest block sizes of the Triton kernels on the GPU at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dq_deploy.artifacts import atomic_path, place_of_output
from dq_deploy.cli.frame import check_outputs, progress, run
from dq_deploy.errors import DqError, MissingDependencyError, OptionError

DTYPES = ("float16", "bfloat16", "float32")
MODELS = ("cifar", "sd15", "sdxl")


def tune(
    model: Annotated[str, typer.Option(help="Whose layer shapes: cifar, sd15 or sdxl.")],
    out: Annotated[Path, typer.Option(help="Table of configurations to write, JSON.")],
    dtype: Annotated[str, typer.Option(help="Type between the layers: float16, bfloat16 or float32.")] = "float16",
    device: Annotated[int, typer.Option(help="CUDA's number of the GPU.")] = 0,
    op: Annotated[str | None, typer.Option(help="Only this op, such as int_conv2d.")] = None,
) -> None:
    """Measure the Triton kernels at a model's shapes; a configuration with one wrong result is out.

    Needs an NVIDIA GPU of compute capability 8.0 or newer, torch with CUDA, and triton.
    """
    check_outputs(out)
    for name, given, known in (("--model", model, MODELS), ("--dtype", dtype, DTYPES)):
        if given not in known:
            raise OptionError(f"{name} is {given}, expected one of {', '.join(known)}")
    from dq_kernels import OPS

    if op is not None and op not in OPS:
        raise OptionError(f"--op is {op}, expected one of {', '.join(OPS)}")
    import torch

    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "dq-tune needs an NVIDIA GPU and torch with CUDA, found none; run it on the machine that will run the model"
        )
    if not 0 <= device < torch.cuda.device_count():
        raise OptionError(f"--device is {device}, expected 0 to {torch.cuda.device_count() - 1}")
    from dq_kernels.cpu.library import KernelInputError, KernelsMissingError

    try:
        rows = measure(model, out, dtype, device, op)
    except KernelInputError as error:
        raise DqError(str(error)) from error
    except KernelsMissingError as error:
        raise MissingDependencyError(str(error)) from error
    _print(rows, out)


def measure(model: str, out: Path, dtype: str, device: int, op: str | None) -> list[dict[str, object]]:
    """Rules of the fastest configurations, written to `out` after every shape."""
    import torch
    from dq_kernels.gpu.tune.configurations import architecture_of
    from dq_kernels.gpu.tune.tuning import cuda_clock, fastest, problem_of, shapes_of_model, write_table

    place = torch.device("cuda", device)
    with torch.cuda.device(place):
        architecture = architecture_of(torch.cuda.get_device_capability(place))
        source = f"measured on {torch.cuda.get_device_name(place)}, {dtype}, shapes of {model}"
        clock = cuda_clock(place)
        shapes, rules = shapes_of_model(model, op), []
        streams = place_of_output(out).streams  # a pipe gets the table once, whole
        with progress("tuning") as advance:
            for number, shape in enumerate(shapes, 1):
                problem = problem_of(*shape, getattr(torch, dtype), place)
                rules.append(fastest(problem, architecture, clock))
                if number == len(shapes) or not streams:
                    with atomic_path(out) as temporary:
                        write_table(temporary, rules, source)
                advance(number, len(shapes))
    return rules


def _print(rows: list[dict[str, object]], out: Path) -> None:
    from rich.table import Table

    from dq_deploy.cli.frame import console

    table = Table(title=f"{len(rows)} rules in {out}")
    for name in ("op", "m", "n", "k", "bits", "ms", "ms of default", "wrong", "failed"):
        table.add_column(name, justify="left" if name == "op" else "right")
    for row in rows:
        facts = [str(row[name][0]) if name in row else "" for name in ("m", "n", "k", "bits")]  # type: ignore[index]
        times = [f"{row[name]:.4f}" for name in ("milliseconds", "milliseconds_default")]
        table.add_row(str(row["op"]), *facts, *times, str(row["wrong"]), str(row["failed"]))
    console().print(table)


def main() -> None:
    """Entry of the console script."""
    run(tune)


if __name__ == "__main__":
    main()
