"""What people write as YAML is read as plain values; what would be taken for something else is said."""

from __future__ import annotations

import pytest

from dq_deploy.plain_yaml import plain_yaml


def test_plain_values_anchors_and_merged_mappings_are_read():
    assert plain_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: [1.5, true, null]}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": [1.5, True, None]},
    }
    assert plain_yaml("") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 2\nsteps: 3", "'steps' stands twice at line 2, column 1"),
        ("minmax: {steps: 2, steps: 3}", "'steps' stands twice"),
        ("a:\n\tb: 1", "cannot start any token"),
        ("a: \0", "not allowed"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 100_000, "it is nested too deeply to be read"),
    ],
    ids=["twice", "twice within", "tab", "NUL", "two documents", "object", "deep"],
)
def test_what_cannot_be_read_is_one_line(text, words):
    with pytest.raises(ValueError, match=r".") as refused:
        plain_yaml(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
