"""Kernels of candidates compiled in processes, before they are measured: what does not compile or spills is left out.

Compiling one takes seconds of one core, measuring it a tenth of a second of the GPU. Launches take what was compiled
from a folder, as `DQ_KERNELS_CUBINS` has it, so that nothing is compiled twice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.ahead_of_time.compile import Compiled, compile_call, store
from dq_kernels.gpu.launch.calls import Blank, KernelCall, dtype_name, key_of
from dq_kernels.gpu.launch.launching import CUBINS_VARIABLE, collecting
from dq_kernels.gpu.tune.configurations import Configuration

Launch = Callable[[Configuration], None]


def blank_call(call: KernelCall) -> KernelCall:
    """The same call of arrays that are not there: it can be sent to another process and compiles to the same."""
    arguments = {
        name: Blank(tuple(int(length) for length in value.shape), dtype_name(value))
        if hasattr(value, "shape")
        else value
        for name, value in call.arguments.items()
    }
    return replace(call, arguments=arguments)


def compiled_or_reason(call: KernelCall, architecture: int) -> Compiled | str:
    """A compiled call, or why there is none."""
    try:
        found = compile_call(call, architecture)
    except Exception as error:  # triton has many: too much shared memory, too few registers
        return f"{type(error).__name__}: {error}"
    spills = found.entry["spills"]
    return f"spills registers ({spills} reads and writes)" if spills else found


class Compiler:
    """Compiles candidates in processes and hands them to launches.

    Args:
        architecture: of `ARCHITECTURES`.
        folder: empty; where compiled kernels go.
        jobs: processes.
    """

    def __init__(self, architecture: int, folder: Path, jobs: int) -> None:
        self._architecture, self._folder = architecture, folder
        # not forked: the process that tunes has a GPU open
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else None
        self._known: dict[str, Compiled | str] = {}
        self._folders = 0

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def calls_of(self, launch: Launch, configuration: Configuration) -> list[KernelCall]:
        """The calls that a launch makes with a configuration; none is made."""
        with collecting(self._architecture) as calls:
            launch(configuration)
        return [blank_call(call) for call in calls]

    def reasons(self, launch: Launch, configurations: Sequence[Configuration]) -> dict[Configuration, str]:
        """Why each configuration cannot be measured, or an empty string; all their kernels are compiled."""
        calls: dict[Configuration, list[KernelCall]] = {}
        found: dict[Configuration, str] = {}
        for one in configurations:
            try:
                calls[one] = self.calls_of(launch, one)
            except KernelInputError as error:
                found[one] = str(error)
        self._compile([call for some in calls.values() for call in some])
        for one, some in calls.items():
            known = [self._known[key_of(call, self._architecture)] for call in some]
            found[one] = next((reason for reason in known if isinstance(reason, str)), "")
        return found

    @contextlib.contextmanager
    def kernels(self, launch: Launch, configurations: Sequence[Configuration]) -> Iterator[None]:
        """Launches with these configurations take what was compiled; `reasons` has been asked for them."""
        keys = {key_of(call, self._architecture) for one in configurations for call in self.calls_of(launch, one)}
        folder = self._folder / str(self._folders)  # a folder is read once, so each gets its own
        self._folders += 1
        store([one for key in sorted(keys) if isinstance(one := self._known[key], Compiled)], folder)
        before = os.environ.get(CUBINS_VARIABLE)
        os.environ[CUBINS_VARIABLE] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(CUBINS_VARIABLE)
            if before is not None:
                os.environ[CUBINS_VARIABLE] = before

    def _compile(self, calls: Sequence[KernelCall]) -> None:
        """Compile what is not known yet."""
        new = {key_of(call, self._architecture): call for call in calls}
        new = {key: call for key, call in new.items() if key not in self._known}
        given: tuple[Any, Any] = (list(new.values()), [self._architecture] * len(new))
        run = map if self._pool is None else self._pool.map
        self._known.update(zip(new, run(compiled_or_reason, *given), strict=True))
