"""`--help` of every command is what was committed."""

from __future__ import annotations

from tests.cli.help.texts import FOLDER, help_texts
from tests.golden.test_golden import difference


def test_the_help_of_every_command_is_what_was_committed():
    written = help_texts()
    committed = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")}
    names = sorted(written.keys() | committed.keys())
    found = [difference(name, committed.get(name, ""), written.get(name, "")) for name in names]
    found = [text for text in found if text]
    assert not found, "\n\n".join([*found, "if the change is meant: python -m tests.cli.help.renew"])
