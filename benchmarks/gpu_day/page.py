"""The page of the day: what each part found, and which rows of docs/status.md may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu_day.book import DONE, Book
from benchmarks.gpu_day.parts import PARTS, Part

SHOWN = 12
"""Rows of a part on the page; the rest is in its results file."""


def latest(book: Book) -> list[dict[str, Any]]:
    """The last row of each key, without the end's."""
    found = {row["key"]: row for row in book.rows if row["key"] != DONE}
    return list(found.values())


def may_change(part: Part, book: Book) -> bool:
    """Whether a part shows what its rows of docs/status.md say: it is done on a GPU, and every row is right."""
    rows = latest(book)
    real = not any(row["rehearsal"] for row in book.rows)
    return bool(real and book.done and rows and all(_right(row) for row in rows))


def _right(row: Mapping[str, Any]) -> bool:
    value = row["value"]
    if row["error"] is not None:
        return False
    if row["rehearsal"] and row["part"] in ("plans", "backends"):
        return True  # that nothing runs there without a GPU is what a rehearsal expects
    if row["part"] == "unets-exact" and row["key"].startswith("wrong values"):
        return value == 0
    if row["part"] == "plans":
        return isinstance(value, dict) and (value.get("outcome") == "ran" or "latency_ms" in value)
    if row["part"] == "kernels-fast":
        return "red" not in value
    if row["part"] == "backends":
        return isinstance(value, dict) and bool(value.get("right"))
    return True


def _text(row: Mapping[str, Any]) -> str:
    if row["error"] is None:
        return str(row["value"])[:160]
    first = (row["error"]["text"].splitlines() or [""])[0]
    return f"**{row['error']['kind']}**: {first}"[:200]


def page(books: Mapping[str, Book]) -> str:
    """The page as Markdown."""
    rehearsal = any(row["rehearsal"] for book in books.values() for row in book.rows)
    lines = ["# The day with a GPU", ""]
    if rehearsal:
        lines += ["Rehearsed without a GPU: nothing here may change a row of docs/status.md.", ""]
    for part in PARTS:
        book = books[part.name]
        rows = latest(book)
        failed = [row for row in rows if not _right(row)]
        state = "not begun" if not book.rows else "done" if book.done else "stopped; call it again"
        seconds = sum(row["seconds"] for row in book.rows)
        lines += [f"## {part.name}: {state}", "", f"{len(rows)} rows, {len(failed)} not right, {seconds:.0f} s.", ""]
        if rehearsal:
            lines += [f"A GPU would add: {part.adds}.", ""]
        lines += [f"- {row['key']}: {_text(row)}" for row in (failed + [r for r in rows if r not in failed])[:SHOWN]]
        lines += [""]
    lines += ["## Rows of docs/status.md that may change from never run", ""]
    allowed = [(part, name) for part in PARTS for name in part.status if may_change(part, books[part.name])]
    kept = [name for part in PARTS for name in part.status if not may_change(part, books[part.name])]
    lines += [f"- {name}, by the part {part.name}" for part, name in allowed] or ["None."]
    lines += ["", f"These stay as they are: {', '.join(kept) or 'none'}."]
    return "\n".join(lines) + "\n"
