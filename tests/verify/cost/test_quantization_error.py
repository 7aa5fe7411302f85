"""What quantization costs is measured against the float model, layer by layer and step by step, and decides nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from dq_deploy import load_model, quantize, save_record
from dq_deploy.errors import GuaranteeError, InputError
from dq_deploy.models import denoiser_from_record
from dq_deploy.verify.cost.quantization_error import check_same_shapes, quantization_error, ratio_db
from dq_deploy.verify.cost.quantization_inputs import quantization_inputs
from dq_deploy.verify.inputs import batch_at
from dq_deploy.verify.output.float_source import recorded_float_model
from tests.cli.running import command
from tests.tiny import SCHEDULER, tiny_conditional_denoiser, tiny_denoiser


def minmax_record(denoiser, weights: int, activations: int, **more):
    bits = {"weight_bits": weights, "activation_bits": activations, "keep": (), **more}
    return quantize(denoiser, method="minmax", steps=3, samples=4, outputs=False, **bits)


def test_every_layer_is_closer_to_float_with_more_bits():
    denoiser = tiny_denoiser(classes=3)
    found = []
    for bits in (4, 8):
        record = minmax_record(denoiser, bits, bits, layer_bits={"*": bits})  # the first and last layer too
        inputs, words = quantization_inputs(record, denoiser.module, images=2)
        found.append(quantization_error(record, denoiser.module, inputs))
        assert words == "2 trajectories of the float model by DDPMScheduler, seed 7919"
    few, many = found
    assert len(few.layers) == len(record.layers)
    assert (many.local_sqnr_db > few.local_sqnr_db).all()
    assert np.median(many.local_sqnr_db - few.local_sqnr_db) > 15
    assert (many.sqnr_db > few.sqnr_db).all()
    assert (many.output_sqnr_db > few.output_sqnr_db + 10).all()
    first = few.layers.index("conv_in")
    assert np.array_equal(few.sqnr_db[first], few.local_sqnr_db[first])  # it receives the sample itself
    assert np.median(few.sqnr_db) < np.median(few.local_sqnr_db)
    assert few.samples.tolist() == [2, 2, 2]


def test_weights_off_by_a_tenth_give_the_ratio_that_follows():
    """Weight-only layers quantize nothing else, so the float model with its own weights has no error at all."""
    record = minmax_record(tiny_conditional_denoiser(cross_attention_dim=64), 4, 16)
    name = next(n for n in record.weight_only if n.endswith("attn2.to_k"))
    module = denoiser_from_record(record)
    inputs = [batch_at(record, [0, 1, 2, 2], seed=3, kind="mixed")]
    same = quantization_error(record, module, inputs)
    assert (same.sqnr_db == 200).all()
    assert (same.output_sqnr_db == 200).all()
    module.get_submodule(name).weight.data *= 1.1
    found = quantization_error(record, module, inputs)
    row = found.layers.index(name)
    assert found.bits[row] == "W4A16"
    assert found.local_sqnr_db[row] == pytest.approx(20 * np.log10(11), abs=1e-3)
    assert found.sqnr_db[row] == pytest.approx(20 * np.log10(11), abs=1e-3)  # text comes from outside the model
    others = [i for i in range(len(found.layers)) if i != row]
    assert (found.local_sqnr_db[others] == 200).all()
    assert (found.output_sqnr_db < 200).all()
    assert found.samples.tolist() == [1, 1, 2]


def test_steps_in_one_batch_are_kept_apart_and_a_step_without_inputs_is_unknown():
    denoiser = tiny_denoiser()
    record = minmax_record(denoiser, 8, 4)
    together = quantization_error(record, denoiser.module, [batch_at(record, [0, 2], seed=1, kind="mixed")])
    feeds = batch_at(record, [0, 2], seed=1, kind="mixed").feeds
    alone = batch_at(record, [2], seed=1, kind="step")
    alone = dataclasses.replace(alone, feeds={name: value[1:] for name, value in feeds.items()})
    single = quantization_error(record, denoiser.module, [alone])
    assert np.isnan(together.sqnr_db[:, 1]).all()
    assert np.isnan(single.sqnr_db[:, :2]).all()
    assert np.allclose(together.local_sqnr_db[:, 2], single.local_sqnr_db[:, 2], atol=0.5)
    assert not denoiser.module.conv_in._forward_hooks


def test_ratios_of_nothing():
    ratio = ratio_db(np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.1, 0.0, 1.0, 0.0]))
    assert ratio[:2].tolist() == [10.0, 200.0]
    assert np.isnan(ratio[2:]).all()


def test_a_model_with_other_layers_is_refused():
    record = minmax_record(tiny_denoiser(), 8, 8)
    with pytest.raises(InputError, match="has weights"):
        check_same_shapes(record, tiny_denoiser(block_out_channels=[8, 24]).module)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of a float model, of another one, and the file of a record of the first."""
    base = tmp_path_factory.mktemp("float")
    for seed, name in enumerate(("right", "wrong")):
        tiny_denoiser(seed).module.save_pretrained(base / name / "unet")
        (base / name / "scheduler").mkdir()
        (base / name / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    record = minmax_record(load_model(base / "right"), 4, 8)
    save_record(record, base / "record.pt")
    return base


def test_the_command_measures_it_beside_the_engine_and_changes_no_verdict(folders, tmp_path):
    run = ("--engine", folders / "record.pt", "--exact", "--threads", 1, "--json", tmp_path / "v.json",
           "--steps-checked", 1, "--inputs", 1)  # fmt: skip
    done = command("verify", *run, "--html", tmp_path / "v.html")
    assert done.code == 0, done.err
    assert "worst layer" in done.out
    found = json.loads((tmp_path / "v.json").read_text())["quantization"]
    assert len(found["layers"]) == len(found["sqnr_db"]) == len(found["local_sqnr_db"])
    assert {len(row) for row in found["sqnr_db"]} == {3}
    assert found["source"] == str(folders / "right")
    page = (tmp_path / "v.html").read_text()
    assert "Error of quantization" in page
    assert "Worst layers" in page


def test_it_can_be_left_out(folders, monkeypatch):
    seen = []

    def prove(*_args, **options):
        seen.append(options["quantization_error"])
        raise GuaranteeError("seen")

    monkeypatch.setattr("dq_deploy.verify.proof.prove_engine", prove)
    for more in ((), ("--no-quantization-error",)):
        command("verify", "--engine", folders / "record.pt", *more)
    assert seen == [True, False]


def test_another_float_model_is_refused_in_one_line(folders):
    done = command("verify", "--engine", folders / "record.pt", "--float-model", folders / "wrong")
    assert done.code != 0
    assert "give the model it was quantized from" in done.err


def test_a_folder_that_is_gone_or_changed_is_a_note(folders, tmp_path):
    from dq_deploy import load_record

    record = load_record(folders / "record.pt")
    assert recorded_float_model(record)[0] is not None
    for source, words in (
        (tmp_path / "gone", "is not here"),
        (folders / "wrong", "now holds a model"),
        (None, "not say"),
    ):
        moved = dataclasses.replace(record, provenance={**record.provenance, "source": source and str(source)})
        model, why = recorded_float_model(moved)
        assert model is None
        assert words in why
        assert why.endswith("; give the float model's folder as `model`")
