"""Quantizers of attention: of every attention that can have them, a row a step, and kept in the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dq_deploy
from dq_deploy.errors import OptionError
from dq_deploy.models import call_denoiser, example_inputs
from dq_deploy.models.attention_calls import attention_calls
from dq_deploy.simulation.fake_quant import simulate
from tests.configurations import trial
from tests.configurations.test_small_forms import SMALL
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

OPTIONS = {"method": "minmax", "weight_bits": 8, "steps": 3, "samples": 2}


@pytest.fixture(scope="module")
def record():
    return dq_deploy.quantize(tiny_conditional_denoiser(), **OPTIONS, attention="int8")


def test_every_attention_has_tables_with_a_row_a_step(record, tmp_path):
    seen = set()
    module = simulate(record)
    inputs = {name: torch.from_numpy(v) for name, v in example_inputs(record.call, 1, 0).items()}
    with torch.no_grad(), attention_calls(module.denoiser, lambda call: seen.add(call.name)):
        call_denoiser(module, inputs)
    assert set(record.attention) == seen
    for own in record.attention.values():
        assert own.why_not_int8 == ""
        assert not own.normed
        assert {role: len(table.scale) for role, table in own.tables.items()} == {"q": 3, "k": 3, "v": 3, "e": 1}
        assert all(not table.zero_point.any() for table in own.tables.values())
    dq_deploy.save_record(record, tmp_path / "model.pt")
    read = dq_deploy.load_record(tmp_path / "model.pt")
    assert {n: sorted(a.tables) for n, a in read.attention.items()} == {n: ["e", "k", "q", "v"] for n in seen}
    assert read.provenance["options"]["attention"] == "int8"


def test_the_scale_is_the_largest_magnitude_that_the_quantized_model_shows(record):
    plain = dq_deploy.quantize(tiny_conditional_denoiser(), **OPTIONS)
    assert plain.attention == {}
    assert all(np.array_equal(a.parts[0].scale, plain.layers[n].parts[0].scale) for n, a in record.layers.items())
    name, own = next(iter(record.attention.items()))
    assert own.tables["k"].scale.dtype == np.float32
    assert 0 < own.tables["k"].scale.max() < 1
    assert name.endswith("attn1")


def test_inputs_that_samples_share_are_given_once(monkeypatch):
    """As Stable Audio's rotations, which a file of inputs holds once a row."""
    monkeypatch.setattr(trial, "quantize", lambda *a, **k: dq_deploy.quantize(*a, **k, attention="int8"))
    form = next(form for names, form in SMALL.items() if names.startswith("stable-audio"))
    record = trial.quantized(trial.small_denoiser(form))
    assert all(own.why_not_int8 == "" for own in record.attention.values())
    assert any(name.endswith("attn1") for name in record.attention)


def test_a_model_without_attention_is_refused():
    plain = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    denoiser = tiny_denoiser(**plain, add_attention=False)
    with pytest.raises(OptionError, match="attention is 'int8', but the model has no attention; leave it out"):
        dq_deploy.quantize(denoiser, **OPTIONS, attention="int8")


def test_another_width_is_refused():
    with pytest.raises(OptionError, match=r"attention is 'fp8', expected one of int8$"):
        dq_deploy.quantize(tiny_conditional_denoiser(), **OPTIONS, attention="fp8")
