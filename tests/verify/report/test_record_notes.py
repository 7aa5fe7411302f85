"""A verdict says what the record holds that no engine runs, and what an import left out."""

from __future__ import annotations

import dataclasses

import numpy as np

from dq_deploy.record import AttentionQuantizers, CodeTable, load_record, save_record
from dq_deploy.verify import verify
from dq_deploy.verify.report.record_notes import record_notes
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser


def with_attention(record):
    table = CodeTable(bits=8, q_min=0, q_max=255, scale=np.ones(1, np.float32), zero_point=np.zeros(1, np.int32))
    own = AttentionQuantizers(name="mid_block.attentions.0", tables={"q": table, "p": table})
    left = {"stage": "left out", "attention_quantizers": ["a.q", "b.q"], "reasons": {"no scale": ["a.q", "b.q"]}}
    return dataclasses.replace(record, attention={own.name: own}, provenance={"history": [left]})


def test_kept_and_left_out_quantizers_are_said_in_the_report(tmp_path):
    record = with_attention(random_record(tiny_denoiser(), steps=2))
    save_record(record, tmp_path / "m.pt")
    report = verify(load_record(tmp_path / "m.pt"), tmp_path / "m.pt", steps=1, inputs=1)
    assert report.exact
    said = record_notes(record)
    assert set(said) <= set(report.notes)
    assert said[0].startswith("2 quantizers of attention's products are not run, ")
    assert said[1] == "left out on import, 2 quantizers of attention, a.q first: no scale"
    assert max(map(len, said)) <= 300


def test_a_record_without_any_says_nothing():
    assert record_notes(random_record(tiny_denoiser(**ONE_LEVEL))) == []
