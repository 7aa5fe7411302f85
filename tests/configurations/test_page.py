"""The committed table is of the configurations that the tests know, and says of none that it failed."""

from __future__ import annotations

import pytest

from tests.configurations.published import ACCEPTED, PUBLISHED


@pytest.fixture(scope="module")
def rows(repository):
    """Cells by configuration."""
    text = (repository / "docs" / "configurations.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in lines[1:]}


def test_the_table_has_every_configuration_with_its_class_and_parameters(rows):
    assert set(rows) == {full.name for full in PUBLISHED}
    for full in PUBLISHED:
        assert rows[full.name][1] == full.class_name
        assert rows[full.name][2] == ("" if full.parameters is None else f"{full.parameters:,}")


def test_nothing_that_was_tried_failed(rows):
    for full in ACCEPTED:
        assert set(rows[full.name][4:7]) <= {"8 4", "not tried"}, full.name
