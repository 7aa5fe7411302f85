"""What every command prints for `--help`, 100 columns wide and without colour."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from unittest import mock

from tests.cli.running import command

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def help_texts() -> dict[str, str]:
    """The text of each command of pyproject.toml by its name."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    texts = {}
    with mock.patch.dict(os.environ, PLAIN):
        for name, entry in scripts.items():
            module = entry.partition(":")[0].removeprefix("dq_deploy.cli.")
            done = command(module, "--help", script=name)
            assert done.code == 0, done.err
            texts[name] = done.out
    return texts
