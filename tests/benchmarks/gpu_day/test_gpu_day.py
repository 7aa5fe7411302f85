"""The day with a GPU: rows are written as they come and once, parts go on, and only a GPU's rows change a status."""

from __future__ import annotations

import json
import time

import pytest

from benchmarks.gpu_day import __main__ as gpu_day
from benchmarks.gpu_day.book import ATTEMPTS, Book, Day
from benchmarks.gpu_day.page import may_change, page
from benchmarks.gpu_day.parts import BY_NAME, PARTS, Part
from benchmarks.gpu_day.prepare import Piece, bundles
from benchmarks.gpu_day.small import small_shapes


@pytest.fixture
def day(tmp_path):
    return Day(tmp_path, rehearse=False)


def test_a_part_goes_on_where_it_was_stopped(day):
    asked = []

    def part(book):
        for key in ("one", "two", "three"):
            book.row(key, lambda key=key: asked.append(key) or len(asked))

    first = Book(day, "facts")
    first.row("one", lambda: 7)
    with first.path.open("a") as stream:
        stream.write('{"key": "tw')  # the part was ended while it wrote
    again = Book(day, "facts")
    part(again)
    assert asked == ["two", "three"]
    assert (again.value("one"), again.value("three"), again.done) == (7, 2, False)


def test_an_error_is_a_row_and_is_tried_a_few_times(day):
    tried = []

    def fails():
        tried.append(1)
        raise RuntimeError("out of luck")

    for _ in range(ATTEMPTS + 2):
        Book(day, "facts").row("one", fails)
    assert len(tried) == ATTEMPTS
    assert Book(day, "facts").rows[-1]["error"]["text"] == "out of luck"


def books_with(tmp_path, rehearse, values):
    day = Day(tmp_path, rehearse)
    for name, rows in values.items():
        book = Book(day, name)
        for key, value in rows.items():
            book.row(key, lambda value=value: value)
        book.end()
    return {part.name: Book(day, part.name) for part in PARTS}


@pytest.mark.parametrize(("rehearse", "wrong", "expected"), [(False, 0, True), (False, 3, False), (True, 0, False)])
def test_only_right_rows_of_a_gpu_may_change_a_status(tmp_path, rehearse, wrong, expected):
    books = books_with(tmp_path, rehearse, {"unets-exact": {"record": "x.pt", "wrong values cifar w8": wrong}})
    part = BY_NAME["unets-exact"]
    assert may_change(part, books[part.name]) is expected
    text = page(books)
    assert (f"- {part.status[0]}, by the part" in text) is expected
    assert ("Rehearsed without a GPU" in text) is rehearse
    assert not may_change(BY_NAME["plans"], books["plans"])  # not begun


@pytest.mark.parametrize("rehearse", [False, True])
def test_a_plan_that_does_not_load_changes_nothing_and_is_expected_without_a_gpu(tmp_path, rehearse):
    books = books_with(tmp_path, rehearse, {"plans": {"a.plan loads": {"outcome": "failed to load", "error": "9.0"}}})
    assert not may_change(BY_NAME["plans"], books["plans"])
    assert f"1 rows, {int(not rehearse)} not right" in page(books)


@pytest.mark.parametrize("limit", ["-3", "0", "nan", "inf", "soon"])
def test_a_limit_that_is_no_time_is_refused(limit, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_day.parsed([f"--limit={limit}"])
    assert ended.value.code == 2
    assert "argument --limit" in capsys.readouterr().err


def test_a_part_ends_at_its_limit_and_says_so(tmp_path, monkeypatch, capsys):
    def slow(*command, **options):
        return real(["sleep", "30"], start_new_session=True)

    real = gpu_day.subprocess.Popen
    monkeypatch.setattr(gpu_day.subprocess, "Popen", slow)
    began = time.perf_counter()
    assert gpu_day.main(["--folder", str(tmp_path), "--part", "facts", "--limit", "0.2"]) == gpu_day.RED
    assert time.perf_counter() - began < 10
    assert "call it again" in capsys.readouterr().out


def test_a_rehearsed_part_writes_its_rows_and_the_page(tmp_path):
    assert gpu_day.main(["--rehearse", "--folder", str(tmp_path), "--part", "facts"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "facts.jsonl").read_text().splitlines()]
    assert all(row["rehearsal"] for row in rows)
    assert {row["key"] for row in rows if row["error"] is None} >= {"device", "peak int8, TOP/s"}
    text = (tmp_path / "page.md").read_text()
    assert "A GPU would add: the device's own numbers" in text
    assert "None." in text


def test_every_part_says_what_a_gpu_adds():
    assert all(isinstance(part, Part) and part.adds for part in PARTS)
    assert {shape.op for shape in small_shapes()} == {
        *("quantize", "group_norm_silu_quantize", "layer_norm_quantize", "geglu_quantize"),
        *("int_linear", "int_conv2d"),
    }


def test_bundles_hold_at_most_what_fits():
    pieces = [Piece(str(mib), mib, "") for mib in (40.0, 30.0, 30.0, 20.0, 228.0)]
    packed, left = bundles(pieces, 64.0)
    assert [[piece.mib for piece in bundle] for bundle in packed] == [[40.0, 20.0], [30.0, 30.0]]
    assert [piece.mib for piece in left] == [228.0]
