"""How many inputs are used and where their tensors are: a limit is never passed, and a step never left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq_deploy.errors import OptionError
from dq_deploy.methods.blocks import amounts
from dq_deploy.methods.blocks.amounts import amounts_of, bytes_in_memory, inputs_in_shares

MIB = 1 << 20


def inputs(count: int, steps: int = 4) -> dict[str, Any]:
    return {"step": np.arange(count, dtype=np.int64) % steps}


def test_what_fits_is_in_memory_and_what_does_not_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amounts, "free_disk_bytes", lambda: 100 * MIB)
    fits, beyond = (amounts_of(inputs(16), each * MIB, 0.03125, work_bytes=15 * MIB) for each in (1, 2))
    assert (fits.count, fits.on_disk, fits.words) == (16, False, "")
    assert (beyond.count, beyond.on_disk, beyond.dropped, beyond.bytes) == (16, True, 0, 32 * MIB)
    assert "0.0312 GiB, is kept in" in beyond.words


def test_equal_shares_are_left_out_where_the_disk_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amounts, "free_disk_bytes", lambda: 10 * MIB)
    found = amounts_of(inputs(16), MIB, 0.001)
    assert (found.count, found.dropped) == (10, 6)
    assert found.words.startswith("10 of 16 calibration inputs are used, as many of each step")
    assert np.bincount(inputs(16)["step"][inputs_in_shares(inputs(16)["step"], 10)]).tolist() in (
        [3, 3, 2, 2],
        [2, 2, 3, 3],
    )


def test_less_than_an_input_of_every_step_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amounts, "free_disk_bytes", lambda: 3 * MIB)
    with pytest.raises(OptionError, match=r"room for 3 inputs of blocks, expected 0.00391 GiB of either"):
        amounts_of(inputs(16), MIB, 0.001)


def test_arrays_that_stand_for_files_or_repeat_one_value_take_no_memory(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(100, 10))
    shared = np.broadcast_to(np.zeros(50, np.float32), (100, 50))
    assert bytes_in_memory({"step": np.zeros(100, np.int64), "mapped": mapped, "shared": shared}) == 800 + 200


@given(step=st.lists(st.integers(0, 9), min_size=1, max_size=80), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_step_keeps_its_share_and_at_least_one(step: list[int], data: st.DataObject) -> None:
    given_steps = np.array(step)
    kinds = np.unique(given_steps)
    most = data.draw(st.integers(len(kinds), len(step) + 5))
    chosen = inputs_in_shares(given_steps, most)
    assert len(chosen) == min(most, len(step))
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(np.unique(given_steps[chosen]), kinds)
    counts, kept = np.bincount(given_steps), np.bincount(given_steps[chosen])
    for bucket in kinds:
        assert kept[bucket] <= counts[bucket]
        assert kept[bucket] >= min(1, np.floor(counts[bucket] * most / len(step)))
