"""What `make test` leaves out is a longer test of a fact that stays: the decision names both, and both are there."""

from __future__ import annotations

import ast
import re

from tests.house import ROOT, sources

PAGE = ROOT / "docs" / "decisions" / "0036-what-make-test-costs.md"


def marked(node: ast.stmt) -> bool:
    return any("pytest.mark.thorough" in ast.unparse(mark) for mark in getattr(node, "decorator_list", ()))


def marked_and_not() -> tuple[set[str], set[str]]:
    """Tests marked thorough, and all the others, as path::name."""
    thorough, others = set(), set()
    for path in sources("tests"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                (thorough if marked(node) else others).add(name)
    return thorough, others


def test_each_has_a_row_that_names_the_faster_test_of_the_same_fact():
    thorough, others = marked_and_not()
    rows = dict(re.findall(r"^\| `(tests/[^`]+)` \| `(tests/[^`]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(rows) == thorough
    assert set(rows.values()) <= others


def test_the_makefile_leaves_out_these_and_no_others():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    runs = re.findall(r"pytest -n .*", text)
    assert [run.split(" -m ")[1] for run in runs] == ['"not thorough"', "thorough"]
