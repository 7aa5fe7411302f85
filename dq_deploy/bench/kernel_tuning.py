"""The fastest block sizes of the Triton kernels on one GPU, measured at a model's layer shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dq_deploy.artifacts import atomic_path, place_of_output
from dq_deploy.bench.environment import usable_cores
from dq_deploy.errors import DqError, MissingDependencyError, OptionError

if TYPE_CHECKING:
    import torch

DTYPES = ("float16", "bfloat16", "float32")
MODELS = ("cifar", "sd15", "sdxl")


def tune_kernels(
    model: str,
    out: Path,
    *,
    dtype: str = "float16",
    device: int = 0,
    op: str | None = None,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, object]]:
    """Measure the kernels and write the rules of the fastest configurations; one with a wrong result is out.

    Args:
        model: whose layer shapes, one of `MODELS`.
        out: table to write, JSON; anew after every shape, so that a stopped run keeps what it measured.
        dtype: of the values between the layers, one of `DTYPES`.
        device: CUDA's number of the GPU.
        op: only this op; None for all.
        jobs: processes that compile; None for one a usable core.
        on_progress: called with (shapes done, shapes in all).

    Returns:
        A rule a shape, as `dq_kernels.gpu.tune.tuning.fastest` gives it; times in milliseconds.

    Raises:
        OptionError: an unknown model, dtype, op or GPU, or no process.
        MissingDependencyError: there is no NVIDIA GPU, torch has no CUDA, or the kernels are missing.
    """
    for name, given, known in (("model", model, MODELS), ("dtype", dtype, DTYPES)):
        if given not in known:
            raise OptionError(f"`{name}` is {given}, expected one of {', '.join(known)}")
    if jobs is not None and jobs < 1:
        raise OptionError(f"`jobs` is {jobs}, expected at least 1")
    from dq_kernels import OPS

    if op is not None and op not in OPS:
        raise OptionError(f"`op` is {op}, expected one of {', '.join(OPS)}")
    import torch

    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "dq-tune needs an NVIDIA GPU and torch with CUDA, found none; run it on the machine that will run the model"
        )
    if not 0 <= device < torch.cuda.device_count():
        raise OptionError(f"`device` is {device}, expected 0 to {torch.cuda.device_count() - 1}")
    from dq_kernels.cpu.library import KernelInputError, KernelsMissingError

    try:
        return _measure(model, out, dtype, torch.device("cuda", device), op, jobs or usable_cores(), on_progress)
    except KernelInputError as error:
        raise DqError(str(error)) from error
    except KernelsMissingError as error:
        raise MissingDependencyError(str(error)) from error


def _measure(
    model: str,
    out: Path,
    dtype: str,
    place: torch.device,
    op: str | None,
    jobs: int,
    on_progress: Callable[[int, int], None],
) -> list[dict[str, object]]:
    import torch
    from dq_kernels.gpu.tune.clock import torch_clock
    from dq_kernels.gpu.tune.compiling import Compiler
    from dq_kernels.gpu.tune.configurations import architecture_of
    from dq_kernels.gpu.tune.tuning import fastest, problem_of, shapes_of_model, write_table

    with torch.cuda.device(place):
        architecture = architecture_of(torch.cuda.get_device_capability(place))
        source = f"measured on {torch.cuda.get_device_name(place)}, {dtype}, shapes of {model}"
        clock = torch_clock(place)
        shapes, rules = shapes_of_model(model, op), []
        streams = place_of_output(out).streams  # a pipe gets the table once, whole
        with TemporaryDirectory() as folder, Compiler(architecture, Path(folder), jobs) as compiler:
            for number, shape in enumerate(shapes, 1):
                problem = problem_of(*shape, getattr(torch, dtype), place)
                rules.append(fastest(problem, architecture, clock, compiler=compiler))
                if number == len(shapes) or not streams:
                    with atomic_path(out) as temporary:
                        write_table(temporary, rules, source)
                on_progress(number, len(shapes))
    return rules
