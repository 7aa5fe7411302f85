"""A file of prompts has one on each line; what is wrong is said with the line's number."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq_deploy.calibration.recording import read_prompts, shipped_prompts
from dq_deploy.errors import DqError


def test_the_shipped_ones_are_64_different_short_prompts() -> None:
    prompts = shipped_prompts()
    assert len(set(prompts)) == len(prompts) == 64
    assert all(3 <= len(prompt.split()) <= 12 and prompt.isascii() for prompt in prompts)


def test_lines_are_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfa red ball\r\n  ein gr\xc3\xbcner Baum \n")
    assert read_prompts(path) == ("a red ball", "ein grüner Baum")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; expected a text file with a prompt a line"),
        (b"", "is empty, expected a prompt a line"),
        (b"a\n\nb\n", "line 2 is empty"),
        (b"a\n" + b"x" * 10**6, "line 2 has 1000000 characters, expected at most 10000"),
        (b"a\n\xff\n", "is no UTF-8 text"),
        (b"a\x00b\n", "line 1 holds a control character"),
    ],
)
def test_what_is_no_prompt_is_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DqError, match=message) as caught:
        read_prompts(path)
    assert len(str(caught.value)) < 300
