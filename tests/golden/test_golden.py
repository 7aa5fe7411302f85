"""What is written for one small model is what was committed: its manifests, graphs and native program."""

from __future__ import annotations

import difflib

from tests.golden.contents import FOLDER, contents

SHOWN = 60
"""Lines of a difference that are printed."""


def difference(name: str, committed: str, written: str) -> str:
    """The lines that differ with two around them, and how many more there are."""
    lines = list(
        difflib.unified_diff(
            committed.splitlines(), written.splitlines(), f"committed {name}", f"written {name}", n=2, lineterm=""
        )
    )
    rest = [f"... and {len(lines) - SHOWN} more lines"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *rest])


def test_the_small_model_is_written_as_it_was():
    written = contents()
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    names = sorted(written.keys() | committed.keys())
    found = [difference(name, committed.get(name, ""), written.get(name, "")) for name in names]
    found = [text for text in found if text]
    assert not found, "\n\n".join([*found, "if the change is meant: python -m tests.golden.renew"])


def test_a_difference_is_printed_with_the_lines_around_it():
    before = "one\ntwo\nthree\nfour\nfive\nsix\n"
    assert difference("x", before, before) == ""
    assert difference("x", before, before.replace("four", "4")).splitlines() == [
        *("--- committed x", "+++ written x", "@@ -2,5 +2,5 @@"),
        *(" two", " three", "-four", "+4", " five", " six"),
    ]
