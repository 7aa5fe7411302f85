"""The prompts that the text-to-image model is measured with."""

from __future__ import annotations

import pytest

from benchmarks.methods.text_to_image import CLASSES, MODEL, chosen_prompts


def test_the_prompts_are_taken_in_their_order_and_no_more_than_there_are():
    assert chosen_prompts(MODEL, CLASSES) == chosen_prompts(MODEL, 500)[:CLASSES]
    with pytest.raises(SystemExit, match="expected 1 to 500"):
        chosen_prompts(MODEL, 501)
