"""A transformer is proven natively, at the sizes of its call and at others, steps mixed within a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dq_deploy import save_record, verify
from tests.tiny import random_record
from tests.tiny_transformers import SD3, tiny_transformer


def test_a_transformer_is_exact_at_sizes_it_was_not_calibrated_at(tmp_path: Path) -> None:
    denoiser = tiny_transformer(SD3)
    record = replace(random_record(denoiser, steps=2), call=denoiser.call)
    path = tmp_path / "model.safetensors"
    save_record(record, path)
    report = verify(record, path, steps=1, inputs=1, threads=1, device="cpu")
    assert report.failures == ()
    own, other = report.sizes
    assert own == {"height": 8, "width": 8, "tokens": 6}
    assert all(other[name] < own[name] for name in own)
    assert report.batch_equals_single
