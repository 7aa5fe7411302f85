"""Tables of facts and the words of their cells, which what `dq-info` shows of a record and of an engine share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def facts_table(title: str, rows: Mapping[str, Any]) -> Table:
    """A row a fact; None is said as `none`."""
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, "none" if value is None else str(value))
    return table


def short_list(values: Any) -> str:
    """Numbers, of a long list the first and the last three."""
    texts = [f"{value:g}" for value in values]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:3], "...", *texts[-3:]])


def value_text(value: Any) -> str:
    """A JSON value in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(value_text(item) for item in value)
    return str(value)
