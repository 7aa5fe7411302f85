"""Sizes that a denoiser does not take are found out once."""

from __future__ import annotations

import pytest

from dq_deploy.errors import InputError, ModelError
from dq_deploy.native.program import by_sizes
from dq_deploy.native.program.by_sizes import ProgramsBySize, Varying


def test_sizes_that_were_refused_are_not_traced_again(tiny_record, monkeypatch):
    traced = []

    def retrace(sizes):
        traced.append(sizes["height"])
        raise ModelError("an odd height")

    monkeypatch.setattr(by_sizes, "KEPT_REFUSALS", 2)
    programs = ProgramsBySize(
        {"constants": {}}, tiny_record, Varying(retrace=retrace, sizes={"height": 8}, axes={"height": ("sample", 2)})
    )
    for height in (7, 7, 9, 11, 11, 7):
        with pytest.raises(InputError, match=f"at height {height} "):
            programs.of((("height", height),))
    assert traced == [7, 9, 11, 7]
