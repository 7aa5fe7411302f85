"""Run a command in this process, as its console script would."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock


@dataclass(frozen=True, kw_only=True)
class Done:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


def command(name: str, *arguments: Any, script: str = "") -> Done:
    """Run `dq-<name>`, or the script of another name, with these arguments."""
    main = importlib.import_module(f"dq_deploy.cli.{name}").main
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = [script or f"dq-{name}", *(str(argument) for argument in arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code=code, out=out.getvalue(), err=err.getvalue())
