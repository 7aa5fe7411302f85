"""Kernels of a record compiled ahead of time, on a machine without a GPU: nothing is compiled where the model runs.

    compile_record(load_record("model.pt"), Path("cubins"), architecture=90, batches=(1, 2))

Then `DQ_KERNELS_CUBINS=cubins` where the record runs. Of the same record, batch sizes, sizes and float type only; any
other call is refused by name. Never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dq_kernels.gpu.ahead_of_time.compile import compile_all, store, unique
from dq_kernels.gpu.launch import launching
from dq_kernels.gpu.launch.calls import KernelCall

from dq_deploy.errors import OptionError
from dq_deploy.native.cuda.executor import CudaExecutor
from dq_deploy.native.runner import varying_sizes
from dq_deploy.native.trace.traced import traced_program

if TYPE_CHECKING:
    from dq_deploy.record import Record

KERNEL_OPS = ("int_linear", "int_conv2d")
"""Products; every other op that is a kernel of ours writes codes."""


def kernel_calls(
    record: Record,
    *,
    architecture: int,
    batches: Sequence[int] = (1, 2),
    sizes: Mapping[str, int] | None = None,
    dtype: str = "float16",
    observed: bool = False,
) -> list[KernelCall]:
    """Every different kernel call of a record's step.

    Args:
        record: the quantized denoiser.
        architecture: of `dq_kernels.gpu.ARCHITECTURES`.
        batches: batch sizes.
        sizes: of the axes that vary besides, by name; those of the record's call where they are not given.
        dtype: float type of images.
        observed: also the calls of `NativeCudaRunner.observe`, which the proof makes.

    Raises:
        InputError: a layer that no GPU kernel takes.
    """
    varying = varying_sizes(record)
    # a device without memory: shapes, types and strides are all that a call is made of
    executor = CudaExecutor(traced_program(record), record, device="meta", dtype=dtype, varying=varying)
    wanted = tuple((name, (sizes or {}).get(name, size)) for name, size in executor.programs.first)
    found: list[KernelCall] = []
    for batch in batches:
        with launching.collecting(architecture) as calls:
            for run in _kernels_of(executor, batch, wanted, observed):
                run()
        found += calls
    return unique(found, architecture)


def _kernels_of(
    executor: CudaExecutor, batch: int, sizes: tuple[tuple[str, int], ...], observed: bool
) -> list[Callable[[], None]]:
    made = executor.prepared_at(batch, sizes)
    runs: list[Callable[[], None]] = []
    for op, function in zip(made.memory.program.ops, made.functions[1:], strict=True):
        product, coded = op.kind in KERNEL_OPS, op.attributes.get("outs") is not None
        if product or coded:
            runs.append(function)
        if observed and product:
            runs.append(executor.observed_product(op, made)[0])
        if observed and coded and op.kind != "quantize":
            runs.append(executor.observed_codes(op, made)[0])
    return runs


def compile_record(
    record: Record,
    folder: Path,
    *,
    architecture: int,
    batches: Sequence[int] = (1, 2),
    sizes: Mapping[str, int] | None = None,
    dtype: str = "float16",
    observed: bool = False,
    jobs: int = 1,
) -> int:
    """Compile a record's kernels into a folder, adding to what is there.

    Args:
        record: see `kernel_calls`, and so for the rest.
        folder: for cubins and their index.
        architecture: of `dq_kernels.gpu.ARCHITECTURES`.
        batches: batch sizes.
        sizes: of the axes that vary besides.
        dtype: float type of images.
        observed: also what the proof calls.
        jobs: processes.

    Returns:
        How many kernels were compiled.

    Raises:
        OptionError: the folder's name is taken by a file.
        InputError: a layer that no GPU kernel takes.
    """
    calls = kernel_calls(
        record, architecture=architecture, batches=batches, sizes=sizes, dtype=dtype, observed=observed
    )
    try:
        store(compile_all([(call, architecture) for call in calls], jobs), folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise OptionError(f"the folder {folder} cannot be made: it is a file; give another") from error
    return len(calls)
