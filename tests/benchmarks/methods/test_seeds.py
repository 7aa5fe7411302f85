"""Cells of several training seeds: which lines count, and what the intervals are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.methods.cells import Line, Spec, Terms, append_line, read_lines
from benchmarks.methods.seeds import lines_by_seed, over_seeds, recognised_less_float, row_of_seeds
from benchmarks.methods.table import table
from dq_deploy.comparison import Cell

TERMS = Terms(count=4)
FLOAT_RIGHT = [1, 1, 0, 1]


def line(method: str, seed: int, psnr: float, *, wrong: int = 0, error: str | None = None, count: int = 4) -> Line:
    cell = Cell(
        name=f"{method}-w4a8",
        method=method,
        weight_bits=4,
        activation_bits=8,
        psnr_db=tuple(psnr + i for i in range(4)),
        recognised=tuple(bool(right and i >= wrong) for i, right in enumerate(FLOAT_RIGHT)),
        error=error,
    )
    terms = Terms(count=count, seed=seed)
    return Line(Spec("digits-dit", method, "W4A8"), terms, cell, {"recognised_of_float": FLOAT_RIGHT})


def test_the_last_line_of_each_seed_counts_under_the_same_terms() -> None:
    found = lines_by_seed(
        [line("minmax", 1, 9), line("minmax", 0, 1), line("minmax", 0, 2), line("minmax", 2, 3, count=8)], TERMS
    )
    assert {seed: own.cell.psnr_db[0] for seed, own in found["digits-dit/minmax-w4a8"].items()} == {0: 2, 1: 9}
    assert lines_by_seed([line("minmax", 0, 1), line("minmax", 0, 2, error="broke")], TERMS) == {}


def test_recognition_comes_back_from_the_file_by_image(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for seed in (0, 1):
        append_line(path, line("minmax", seed, 20, wrong=seed))
    (own,) = lines_by_seed(read_lines(path), TERMS).values()
    np.testing.assert_array_equal(recognised_less_float(own), [[0, 0, 0, 0], [-1, 0, 0, 0]])
    untold = {0: replace(own[0], facts={}), 1: own[1]}
    assert recognised_less_float(untold) is None
    assert row_of_seeds(own[0].spec, untold, {})["recognised less float's, points"] == "-"


def test_differences_are_of_the_same_seed_and_image() -> None:
    first = {seed: line("minmax", seed, 20 + 5 * seed) for seed in (0, 1)}
    own = {seed: line("dmq", seed, 22 + 5 * seed) for seed in (0, 1, 2)}
    row = row_of_seeds(own[0].spec, own, first)
    assert row["PSNR less minmax's, dB"] == "2.00 [2.00, 2.00]"
    assert row["PSNR by seed"] == "23.50, 28.50, 33.50"
    assert row_of_seeds(own[0].spec, own, {0: first[0]})["PSNR less minmax's, dB"] == "-"


@pytest.mark.parametrize(("seeds", "shown"), [((0,), False), ((0, 1), True)])
def test_one_seed_gives_no_section(seeds: tuple[int, ...], shown: bool) -> None:
    every = [line("dmq", seed, 20) for seed in seeds]
    assert bool(over_seeds(every, TERMS)) == shown
    assert ("digits-dit, several training seeds" in table({}, TERMS, every)) == shown
