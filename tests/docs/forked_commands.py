"""Lines of a shell, run in order: commands of this project and Python programs in forks of one process.

It has loaded the libraries that each of them begins with, which takes longer than what most of them do. Each is a
process of its own all the same. That the commands are installed as programs is shown by tests/packaging.
"""

from __future__ import annotations

import importlib
import os
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

MODULES = {"dq-import": "import_record"}


def _code_of(run: Callable[[], object]) -> int:
    """Run a program as Python would, to its exit code."""
    try:
        run()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _forked(run: Callable[[], object], words: list[str]) -> int:
    """The same in a fork, with these words as its arguments."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.argv = words
    code = _code_of(run)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_line(line: str) -> int:
    """Exit code of one line."""
    words = shlex.split(line)
    if not words:
        return 0
    if words[0] == "cd":
        os.chdir(words[1])
        return 0
    if words[0].startswith("dq-"):
        name = MODULES.get(words[0], words[0].removeprefix("dq-"))
        return _forked(importlib.import_module(f"dq_deploy.cli.{name}").main, words)
    if words[0] == "python":
        return _forked(lambda: runpy.run_path(words[1], run_name="__main__"), words[1:])
    return subprocess.run(["bash", "-c", line], check=False).returncode


def main(script: str) -> int:
    """Run a script; a failure ends it."""
    import diffusers
    import torch.onnx  # noqa: F401

    from dq_deploy.models import build_denoiser  # noqa: F401 - loaded for all
    from dq_deploy.targets import engine_graph  # noqa: F401

    for name in ("UNet2DModel", "UNet2DConditionModel", "DDIMPipeline"):
        getattr(diffusers, name)
    for line in script.replace("\\\n", " ").splitlines():
        code = run_line(line)
        if code:
            print(f"{line}: exit code {code}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).read_text(encoding="utf-8")))
