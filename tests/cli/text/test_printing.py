"""Only the commands print: no library file imports rich or typer, and none writes for people."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = sorted(p for p in (ROOT / "dq_deploy").rglob("*.py") if ROOT / "dq_deploy" / "cli" not in p.parents)

FOR_PEOPLE = {"rich", "typer", "tqdm"}
LEFT = {"verify/report/values.py", "verify/plan/report.py"}
"""Files whose tables still stand in the library."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "dq_deploy").as_posix()


def test_no_library_file_draws_tables_or_bars():
    found = []
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if {name.partition(".")[0] for name in names} & FOR_PEOPLE and name_of(path) not in LEFT:
                found.append(f"{name_of(path)}:{node.lineno}")
    assert not found, f"move what prints to dq_deploy/cli/text: {found}"


def test_no_library_file_prints():
    found = []
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if is_print:
                found.append(f"{name_of(path)}:{node.lineno}")
    assert not found, f"return it, and print it in dq_deploy/cli/text: {found}"
