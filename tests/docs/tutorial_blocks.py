"""The tutorial's fenced blocks, and one script of its commands in order."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: its language, the file it is saved as where it has a title, and its text."""

    language: str
    title: str | None
    text: str


def blocks_of(page: str) -> list[Block]:
    """Fenced blocks of a Markdown page in their order."""
    found = re.findall(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [Block(language=language, title=title or None, text=text) for language, title, text in found]


def mark(number: int) -> str:
    """The line in the script's output behind which the block's output begins."""
    return f"===== block {number} ====="


def script_of(blocks: list[Block]) -> str:
    """The lines of the bash blocks, with the mark of each in front."""
    lines: list[str] = []
    for number, block in enumerate(blocks):
        if block.language == "bash":
            lines += [f"echo '{mark(number)}'", block.text]
    return "\n".join(lines)


def comparable(line: str) -> str:
    """A printed line without numbers, frames, widths and the CPU, which differ between machines."""
    line = re.sub(r"^[^;]+; (?=avx)|(?<= on )[^;]+(?=;)|\b(avx|fma|amx)\w*", " ", re.sub(r"[─-╿]", " ", line))
    return " ".join(re.sub(r"[\d.,]+", "#", line).split())
