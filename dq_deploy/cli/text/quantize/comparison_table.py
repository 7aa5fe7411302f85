"""The table that `dq-quantize --compare` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dq_deploy.comparison.table import MISSING, Row, headings

if TYPE_CHECKING:
    from rich.table import Table


def rich_table(rows: Sequence[Row], title: str) -> Table:
    """The rows as a table of a column a method, so that it fits a terminal."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("")
    for row in rows:
        table.add_column(row["method"], justify="right", overflow="fold")
    for name in headings(rows)[1:]:
        table.add_row(
            name, *(row.get(name, "failed" if "error" in row else MISSING).replace(" [", "\n[") for row in rows)
        )
    return table
