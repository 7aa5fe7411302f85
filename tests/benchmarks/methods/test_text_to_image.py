"""The prompts that the text-to-image model is measured with."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.methods.text_to_image import CLASSES, MODEL, Pictures, by_prompt, chosen_prompts, line_of


def test_the_prompts_are_taken_in_their_order_and_gone_through_only_as_a_whole():
    assert chosen_prompts(MODEL, CLASSES) == chosen_prompts(MODEL, 500)[:CLASSES]
    assert chosen_prompts(MODEL, 2000) == chosen_prompts(MODEL, 500)
    with pytest.raises(SystemExit, match="expected 1 to 500, the prompts of"):
        chosen_prompts(MODEL, 501)


def test_pictures_of_one_prompt_count_once_in_an_interval():
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    assert by_prompt(values, 4).tolist() == [0.5, 0.5, 0.5, 0.5]
    images = np.zeros((8, 3, 2, 2), np.float32)
    drawn = Pictures(images=images + np.float32(0.1), right=values.astype(bool))
    floats = Pictures(images=images, right=np.zeros(8, bool))
    line = line_of([drawn], floats, 4)
    assert line["right_difference"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "confidence": 0.95, "count": 4}
    assert line["psnr_db"]["mean"] == pytest.approx(26.02, abs=0.01)  # 20 log10(2 / 0.1)
    other = Pictures(images=images + np.float32(0.2), right=np.ones(8, bool))
    both = line_of([drawn, other], floats, 4)
    assert (both["right"]["mean"], both["right"]["low"], both["right"]["high"]) == (0.75, 0.5, 1.0)
