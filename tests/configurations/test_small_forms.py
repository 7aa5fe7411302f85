"""Every published configuration, scaled down: W4A8, in process, every integer of the native engine as the numerics."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.native.runner import NativeRunner
from tests.configurations.published import ACCEPTED, small_forms
from tests.configurations.scaled import scaled
from tests.configurations.scaled_video_and_sound import SCALED
from tests.configurations.trial import mixed_feeds, quantized, small_denoiser, wrong_values

CHEAP = ("LTX-Video", "stable-audio-open-1.0", "CogVideoX-2b", "Wan2.1-T2V-1.3B")
"""Of the classes that are scaled down in a file of their own: those that take a second; the grid tries all."""

SMALL = {
    names: form
    for names, form in small_forms().items()
    if form.class_name not in SCALED or names.split("; ")[0] in CHEAP
}


@pytest.mark.parametrize("names", SMALL)
def test_a_small_form_is_natively_exact(names):
    denoiser = small_denoiser(SMALL[names])
    record = quantized(denoiser)
    feeds = mixed_feeds(denoiser)
    with NativeRunner(record, threads=1) as runner:
        wrong = wrong_values(record, runner, feeds)
        outputs = runner.run(feeds)
    assert set(wrong) == set(record.layers)
    assert not any(wrong.values())
    assert all(np.isfinite(output).all() for output in outputs.values())


@pytest.mark.parametrize("full", ACCEPTED, ids=lambda full: full.name)
def test_a_small_form_has_every_kind_of_block_of_the_full_one(full):
    small = scaled(full).config
    for key in ("down_block_types", "up_block_types"):
        assert set(small.get(key, ())) >= set(full.config.get(key, ()))
    changed = {key for key in full.config if type(full.config[key]) is str and full.config[key] != small[key]}
    assert not changed
