"""Attention in codes as a record's quantizers have it, in the native engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dq_kernels.cpu.library import known_isas

import dq_deploy
from dq_deploy import open_engine, save_record
from dq_deploy.errors import InputError, NonFiniteError, OptionError
from dq_deploy.models import call_of_record, example_inputs
from dq_deploy.native.file.content import write_program_file
from dq_deploy.native.runner import NativeRunner
from dq_deploy.record import AttentionQuantizers, CodeTable
from dq_deploy.verify.prover import ProofOptions
from tests.configurations import trial
from tests.configurations.test_small_forms import SMALL
from tests.tiny import random_record, tiny_conditional_denoiser
from tests.verify.native.proving import proof_of


@pytest.fixture(scope="module")
def record():
    return dq_deploy.quantize(
        tiny_conditional_denoiser(), method="minmax", weight_bits=8, steps=3, samples=2, attention="int8"
    )


@pytest.fixture(scope="module")
def feeds(record):
    return example_inputs(call_of_record(record), 3, 0)


def run(record, feeds, **options):
    with NativeRunner(record, threads=1, **options) as runner:
        return runner.run(feeds)["output"]


def test_it_is_near_attention_in_float32(record, feeds):
    want, got = run(record, feeds), run(record, feeds, attention="int8")
    assert got.tobytes() != want.tobytes()
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_quantizers_change_nothing_unless_they_are_asked_for(record, feeds):
    without = dataclasses.replace(record, attention={})
    assert run(record, feeds).tobytes() == run(without, feeds).tobytes()
    assert run(record, feeds, attention="bf16").tobytes() == run(without, feeds, attention="bf16").tobytes()


def test_every_instruction_set_gives_nearly_the_same(record, feeds):
    """Exp and float attention differ in their last bit, and so a code at a tie."""
    found = [run(record, feeds, attention="int8", isa=isa) for isa in known_isas()]
    assert max(np.abs(other - found[0]).max() for other in found) < 0.02 * np.abs(found[0]).max()


def test_a_mixed_batch_equals_its_samples_one_by_one(record, feeds):
    with NativeRunner(record, threads=2, attention="int8") as runner:
        together = runner.run(feeds)["output"]
        alone = [runner.run({n: v[i : i + 1].copy() for n, v in feeds.items()})["output"] for i in range(3)]
    assert np.concatenate(alone).tobytes() == together.tobytes()


def test_a_program_file_runs_them_too(record, feeds, tmp_path):
    write_program_file(record, tmp_path / "model.dqn")
    with open_engine(tmp_path / "model.dqn", threads=1, attention="int8") as runner:
        assert runner.run(feeds)["output"].tobytes() == run(record, feeds, attention="int8").tobytes()
        assert "attention in int8" in runner.runtime_words


def test_attentions_without_quantizers_stay_in_float32(record, feeds):
    name = next(iter(record.attention))
    some = dataclasses.replace(record, attention={name: record.attention[name]})
    one, every, none = run(some, feeds, attention="int8"), run(record, feeds, attention="int8"), run(record, feeds)
    assert len({one.tobytes(), every.tobytes(), none.tobytes()}) == 3


def test_a_record_without_quantizers_is_refused(feeds):
    plain = random_record(tiny_conditional_denoiser(), steps=3)
    with pytest.raises(InputError, match="attention is int8, but the record has no quantizers for it; quantize with"):
        NativeRunner(plain, attention="int8")


def test_quantizers_that_cannot_run_are_named(record):
    name, own = next(iter(record.attention.items()))
    half = AttentionQuantizers(name=name, tables={role: own.tables[role] for role in ("q", "k", "e")})
    bad = dataclasses.replace(record, attention={name: half})
    with pytest.raises(InputError, match=f"quantizers for it: {name}, it has no quantizer of v; quantize"):
        NativeRunner(bad, attention="int8")
    wide = dataclasses.replace(own.tables["e"], bits=16, q_max=65535)
    assert AttentionQuantizers(name=name, tables={**own.tables, "e": wide}).why_not_int8 == (
        "its quantizer of e has 16 bits"
    )


def test_more_keys_than_fit_are_refused(record, feeds, monkeypatch):
    monkeypatch.setattr("dq_deploy.native.cpu.executor.codes_fit", lambda keys, _features: keys < 70)
    with pytest.raises(InputError, match="has 77 keys of 4 features, which do not fit as codes; take `attention` bf16"):
        run(record, feeds, attention="int8")


def test_what_is_out_of_reach_is_clamped_and_a_nan_is_an_error(record, feeds):
    name = next(name for name in record.layers if name.endswith("attn1.to_v"))
    layer = record.layers[name]
    part = dataclasses.replace(layer.parts[0], weight_scale=np.full_like(layer.parts[0].weight_scale, 2.0**60))
    loud = dataclasses.replace(record, layers={**record.layers, name: dataclasses.replace(layer, parts=(part,))})
    assert np.isfinite(run(loud, feeds, attention="int8")).all()
    nan = {**feeds, "encoder_hidden_states": np.full_like(feeds["encoder_hidden_states"], np.nan)}
    with NativeRunner(record, attention="int8", finite_check=False) as runner, pytest.raises(NonFiniteError):
        runner.run(nan)


def test_a_gpu_has_no_choice(record, tmp_path, monkeypatch):
    save_record(record, tmp_path / "model.pt")
    monkeypatch.setattr("dq_deploy.native.devices.chosen_device", lambda _wanted: "cuda")
    with pytest.raises(OptionError, match="attention is 'int8' on a GPU"):
        open_engine(tmp_path / "model.pt", device="cuda", attention="int8")


def with_zero_points(record, role, zero):
    """Of one operand of every attention."""
    tables = {name: dict(own.tables) for name, own in record.attention.items()}
    for own in tables.values():
        own[role] = dataclasses.replace(own[role], zero_point=np.full_like(own[role].zero_point, zero))
    return dataclasses.replace(
        record, attention={name: AttentionQuantizers(name=name, tables=own) for name, own in tables.items()}
    )


@pytest.mark.parametrize("role", ["k", "v"])
def test_sums_that_an_int32_does_not_hold_are_refused(record, feeds, role, monkeypatch):
    far = with_zero_points(record, role, 2**16)
    assert np.isfinite(run(far, feeds, attention="int8")).all()  # 77 keys of 4 features
    monkeypatch.setattr("dq_deploy.native.cpu.executor.LARGEST_SUM", 2**20)
    with pytest.raises(InputError, match="keys of 4 features, whose sums of codes an int32 does not hold; take `atten"):
        run(far, feeds, attention="int8")


@pytest.fixture(scope="module")
def masked():
    """Of PixArt, whose cross-attention has a mask, with quantizers of both attentions, as an import has them."""
    form = next(form for form in SMALL.values() if form.class_name == "PixArtTransformer2DModel")
    record = trial.quantized(trial.small_denoiser(form))
    softmax = CodeTable(
        bits=8, q_min=0, q_max=255, scale=np.full(1, 1 / 255, np.float32), zero_point=np.zeros(1, np.int32)
    )
    table = dataclasses.replace(softmax, q_min=-128, q_max=127)
    names = [f"transformer_blocks.0.attn{i}" for i in (1, 2)]
    tables = {"q": table, "k": table, "v": table, "p": softmax}
    return dataclasses.replace(record, attention={n: AttentionQuantizers(name=n, tables=tables) for n in names})


def test_attentions_with_a_mask_alone_are_refused(masked):
    only = {"transformer_blocks.0.attn2": masked.attention["transformer_blocks.0.attn2"]}
    with pytest.raises(InputError, match=r"can run on codes: transformer_blocks.0.attn2 has a mask, or fewer heads"):
        NativeRunner(dataclasses.replace(masked, attention=only), attention="int8")


def test_a_proof_says_which_quantizers_are_not_run(masked):
    with NativeRunner(masked, threads=1, attention="int8", finite_check=False) as runner:
        report = proof_of(masked, runner, ProofOptions(steps=1, inputs=1))
    assert report.attention.operations == 1
    start = "4 quantizers of attention's products are not run, transformer_blocks.0.attn2 first (it has a mask"
    assert any(note.startswith(start) for note in report.notes)


def test_a_share_of_bfloat16_leaves_masked_attention_out(masked):
    with NativeRunner(masked, threads=1, attention="bf16", finite_check=False) as runner:
        report = proof_of(masked, runner, ProofOptions(steps=1, inputs=1))
    assert 0 < report.attention.mac_share < report.macs.attention / report.macs.of_all
