"""Processes that begin with the libraries loaded: forks of a server which has loaded them once for a test worker.

Loading torch and diffusers takes longer than what most tests have a process do. Each is a process of its own all the
same: it can be killed, limited and given an environment. That programs start from nothing is shown by
tests/packaging, tests/test_startup.py and the tests that start Python themselves.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
LOADED = (
    *("torch", "torch.onnx", "torch.distributed", "torch._dynamo", "onnx", "onnxscript", "onnxruntime"),
    *("diffusers.models.unets.unet_2d", "diffusers.models.unets.unet_2d_condition"),
    *("diffusers.schedulers.scheduling_ddim", "dq_deploy.methods", "dq_deploy.models", "dq_deploy.targets"),
)


@functools.cache
def _server() -> Any:
    """The way to start forks of the server, which is started now and ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    with mock.patch.dict(os.environ, {"PYTHONPATH": path}), contextlib.chdir(ROOT):
        forkserver.ensure_running()
    return context


def _run(
    module: str, words: list[str], environment: dict[str, str], printed: list[str], folder: str, most_bytes: int
) -> None:
    """Become that program."""
    for number, path in enumerate(printed, start=1):
        where = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(where, number)
        os.close(where)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Forked:
    """A program that runs as `python -m` would run it.

    Args:
        module: whose name is `__main__` in it.
        arguments: its words.
        environment: what is set besides this process's own.
        together: its two streams come as one.
        most_bytes: a file may have; 0 for as many as it likes.
    """

    def __init__(
        self,
        module: str,
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        together: bool = False,
        most_bytes: int = 0,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dq-forked-")
        names = ("out", "out") if together else ("out", "err")
        self._printed = [str(Path(self._folder.name, name)) for name in names]
        given = {**os.environ, **(environment or {})}
        words = list(map(str, arguments))
        self._process = _server().Process(
            target=_run, args=(module, words, given, self._printed, os.getcwd(), most_bytes), daemon=True
        )
        self._process.start()

    def send_signal(self, number: int) -> None:
        """See `subprocess.Popen`."""
        os.kill(self._process.pid, number)

    def ended(self, timeout: float = 300) -> CompletedProcess[str]:
        """Its exit code and what it printed, once it has ended; one that does not end in time is killed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutExpired(self._process.name, timeout)
        with self._folder:
            out, err = (Path(path).read_text() if Path(path).exists() else "" for path in self._printed)
        return CompletedProcess([], self._process.exitcode, out, err)
