"""A denoiser of several outputs is proven in each of them: a control network's residuals."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dq_deploy import export, verify
from dq_deploy.models import call_of_record, denoiser_from_record, denoiser_outputs, output_specs
from dq_deploy.native.runner import NativeRunner
from dq_deploy.record import load_record, save_record
from dq_deploy.verify.inputs import batch_at, run_all
from dq_deploy.verify.output.difference import StepOutput, compare_outputs, run_module, simulation
from dq_deploy.verify.output.float_replay import FloatPathCheck
from dq_deploy.verify.output.parting import ALLOWED, find_parting
from tests.configurations.scaled import scaled
from tests.configurations.text_unets import CONTROLNETS
from tests.configurations.trial import quantized, small_denoiser


@pytest.fixture(scope="module")
def record():
    return quantized(small_denoiser(scaled(CONTROLNETS[0])), weight_bits=8)


def test_both_engines_are_exact_in_every_output(record, tmp_path):
    save_record(record, tmp_path / "control.pt")
    assert load_record(tmp_path / "control.pt").call == record.call
    export(record, tmp_path / "control.onnx", target="onnxruntime")
    for name in ("control.pt", "control.onnx"):
        report = verify(record, tmp_path / name, steps=2, inputs=1, threads=1)
        assert report.exact, report.failures


def test_an_output_that_is_wrong_is_named_whichever_it_is(record):
    batch = batch_at(record, [0, 1], seed=0, kind="mixed")
    names = [spec.name for spec in output_specs(call_of_record(record))]
    module, values = denoiser_from_record(record), {}
    for name in record.layers:
        hook = lambda _module, args, y, name=name: values.update({name: (args[0].numpy(), y.numpy())})  # noqa: E731
        module.get_submodule(name).register_forward_hook(hook)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in batch.feeds.items()}
    finals = tuple(value.numpy() for value in denoiser_outputs(module, tensors, call_of_record(record).constants))
    for wrong in (None, 0, len(names) - 1):
        check = FloatPathCheck(record=record, layers=list(record.layers))
        check.add(batch, values, tuple(1.01 * y if i == wrong else y for i, y in enumerate(finals)))
        problem = check.result().problem
        assert (f"the output {names[wrong]} is off by" in problem) if wrong is not None else not problem


def test_the_worst_output_of_a_step_is_what_is_reported(record):
    batch = batch_at(record, [0, 0], seed=0, kind="step")
    with NativeRunner(record, threads=1) as runner:
        right = tuple(run_all(runner, batch.feeds).values())
    near = (*right[:-1], right[-1] + np.float32(1e-3) * np.ptp(right[-1]))
    (step,) = compare_outputs(record, [batch], [near], [right], [right], None)
    assert step.engine_psnr_db == pytest.approx(60, abs=0.01)
    assert step.output == list(call_of_record(record).outputs)[-1]
    (same,) = compare_outputs(record, [batch], [right], [right], [right], None)
    assert same.engine_psnr_db == 200


def test_the_noise_of_one_output_explains_no_error_of_another(record, monkeypatch):
    monkeypatch.setattr("dq_deploy.verify.output.parting.MOVED_BY", 1e-2)  # makes every output noisy
    batch = batch_at(record, [0, 0], seed=0, kind="step")
    names, kept = list(call_of_record(record).outputs), SimpleNamespace(of=lambda _index: {})
    (right,) = run_module(simulation(record, requantized=False), [batch])
    errors = {"engine_psnr_db": 20.0, "training_psnr_db": 20.0, "simulation_psnr_db": 20.0}

    def parting(finals, name):
        step = StepOutput(bucket=0, timestep=0.0, samples=2, output=name, **errors)
        return find_parting(record, [batch], kept, [finals], step, requantized=False)

    noise = [parting(right, name).noise for name in names]
    of_all = [own * value.size for own, value in zip(noise, right, strict=True)]
    at = int(np.argmin(of_all))
    off = np.float32(np.sqrt(2 * ALLOWED * noise[at]))
    wrong = tuple(value + off if i == at else value for i, value in enumerate(right))
    assert 2 * of_all[at] < sum(of_all)  # all outputs' noise together would explain it
    assert not parting(wrong, names[at]).explained
    assert parting(wrong, names[at - 1]).explained
