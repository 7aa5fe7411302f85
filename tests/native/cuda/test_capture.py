"""Captures of CUDA graphs bear what other threads do meanwhile."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(
    path
    for room in ("dq_deploy", "kernels", "benchmarks", "tests")
    for path in (ROOT / room).rglob("*.py")
    if "torch.cuda.graph(" in path.read_text(encoding="utf-8") and path != Path(__file__)
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_capture_of_torch_is_of_its_own_thread(path):
    """torch's default, "global", is broken by an allocation of any thread."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    captures = [node for node in calls if ast.unparse(node.func) == "torch.cuda.graph"]
    assert captures
    for node in captures:
        modes = [word.value for word in node.keywords if word.arg == "capture_error_mode"]
        assert [ast.literal_eval(mode) for mode in modes] == ["thread_local"], f"line {node.lineno}"
