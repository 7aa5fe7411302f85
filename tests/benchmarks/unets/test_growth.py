"""Points vary one size at a time, exponents are slopes, and the page is made of the last row of each point."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from benchmarks.unets import growth
from dq_deploy.errors import DqError


def rows(exponent: float = 1.0):
    found = []
    for point in growth.points():
        size = point.batch * point.height * point.channels / point.threads
        engine = {"ms": {"p50": size**exponent}, "peak_mib": 50 + size / 100}
        engines = {name: engine for name in (growth.NATIVE, *growth.PEERS)}
        environment = {"cpu": "a CPU", "date": "2026-11-30T00:00:00"}
        row = {"point": asdict(point), "engines": engines, "limit": {"ms": size / 2, "mib": size / 200}, "isa": "avx2"}
        found.append({**row, "environment": environment, "commit": "abc", "goes_first": False, "not_run": {}})
    return found


def test_every_point_differs_from_the_base_in_one_size():
    others = [point for point in growth.points() if point != growth.BASE]
    assert len(others) == sum(len(values) - 1 for values in growth.AXES.values())
    for point in others:
        assert sum(asdict(point)[axis] != asdict(growth.BASE)[axis] for axis in growth.AXES) == 1


def test_the_exponent_is_the_slope_of_the_logarithms():
    assert growth.exponent((1, 2, 4), (3.0, 12.0, 48.0)) == pytest.approx(2.0)


def test_the_page_has_a_line_for_each_size_and_the_last_row_counts():
    page = growth.page([*rows(2.0), *rows()])
    assert page.count("| batch | 1, 16 | **1.00** (2048.0 to 32768.0)") == 1
    assert "| threads | 1, 2 | **-1.00**" in page
    assert all(title in page for title in growth.TITLES.values())


def test_the_page_names_every_commit_and_says_that_others_waited_only_where_all_did():
    found = [{**row, "goes_first": True} for row in rows()]
    assert ", commit abc, native" in growth.page(found)
    assert "had to wait" in growth.page(found)
    found[0] = {**found[0], "commit": "def", "goes_first": False}
    assert ", commit abc, def, native" in growth.page(found)
    assert "had to wait" not in growth.page(found)


def test_a_missing_point_is_named():
    with pytest.raises(DqError, match="no row has batch 16"):
        growth.page([row for row in rows() if row["point"]["batch"] != 16])


def test_the_picture_has_a_panel_for_each_size(tmp_path):
    pytest.importorskip("matplotlib")
    growth.draw(rows(), "ms", tmp_path / "time.png")
    assert (tmp_path / "time.png").read_bytes()[:4] == b"\x89PNG"


def test_the_limit_grows_with_the_sizes_of_the_record(tmp_path, monkeypatch):
    from benchmarks.unets import roofline
    from dq_deploy import save_record
    from tests.tiny import random_record, tiny_conditional_denoiser

    denoiser = tiny_conditional_denoiser()
    save_record(random_record(denoiser), tmp_path / "record.pt")
    monkeypatch.setattr(roofline.peaks, "operations", lambda loop, threads: 100.0)
    monkeypatch.setattr(roofline.peaks, "copy", lambda log2_bytes, threads: 10.0)
    monkeypatch.setattr(growth, "inputs_of", lambda point: inputs(denoiser, point))
    small = growth.limits(tmp_path / "record.pt", replace(growth.BASE, threads=1), growth_isa())
    large = growth.limits(tmp_path / "record.pt", replace(growth.BASE, threads=1, batch=4), growth_isa())
    assert large["ms"] > 2 * small["ms"]
    assert large["mib"] > small["mib"] > 0


def inputs(denoiser, point):
    from dq_deploy.models import example_inputs

    return example_inputs(denoiser.call, point.batch, 0)


def growth_isa():
    from dq_kernels.cpu.library import known_isas

    isas = known_isas()
    if len(isas) < 2:
        pytest.skip("plain C++ has no bound of its own")
    return isas[-1]
