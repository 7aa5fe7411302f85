"""Prompts to calibrate with: a file of them, or the list that is shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from dq_deploy.errors import FileProblemError, InputError
from dq_deploy.models.pipeline.call import LONGEST_PROMPT


def shipped_prompts() -> tuple[str, ...]:
    """64 plain prompts: things, places, people, drawings."""
    text = resources.files("dq_deploy.calibration.recording").joinpath("prompts.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line.

    Raises:
        FileProblemError: the file is missing, unreadable or no UTF-8.
        InputError: it is empty, or a line is empty or too long; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FileProblemError(f"{path} does not exist; expected a text file with a prompt a line") from error
    except OSError as error:
        raise FileProblemError(f"cannot read {path}: {error.strerror}; expected a text file of prompts") from error
    except UnicodeDecodeError as error:
        raise FileProblemError(f"{path} is no UTF-8 text ({error.reason}); save it as UTF-8") from error
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()  # behind the last line's end
    if not lines:
        raise InputError(f"{path} is empty, expected a prompt a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InputError(f"{path}, line {number} is empty, expected a prompt on each line; remove the line")
        if len(line) > LONGEST_PROMPT:
            raise InputError(
                f"{path}, line {number} has {len(line)} characters, expected at most {LONGEST_PROMPT}; shorten it"
            )
        if not line.strip().isprintable():
            raise InputError(f"{path}, line {number} holds a control character, expected plain text")
    return tuple(line.strip() for line in lines)


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Hash over the prompts, a line each."""
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()
