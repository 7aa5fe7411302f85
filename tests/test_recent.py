"""The last results are kept, and no more of them."""

from __future__ import annotations

import pytest

from dq_deploy.recent import Recent


def test_a_result_is_made_once_and_the_one_used_longest_ago_goes_first():
    made: list[str] = []
    recent: Recent[str] = Recent(2)

    def get(key: str) -> str:
        return recent.get(key, lambda: (made.append(key), key.upper())[1])

    assert [get(key) for key in "ababac"] == list("ABABAC")
    assert made == ["a", "b", "c"]
    assert [get("a"), get("b")] == ["A", "B"]
    assert made == ["a", "b", "c", "b"]


def test_a_failure_is_not_kept():
    recent: Recent[int] = Recent(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 1) == 1
