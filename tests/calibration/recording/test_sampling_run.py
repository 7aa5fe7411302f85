"""A pipeline's calls become rows by step: both halves of guidance, schedulers that come twice, what changes refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("transformers") is None:
    pytest.skip("needs transformers, which text pipelines of diffusers import", allow_module_level=True)

from dq_deploy.calibration import CalibrationSource
from dq_deploy.calibration.recording import AskedPipeline, SamplingRun, call_of_pipeline
from dq_deploy.calibration.recording.sampling_run import NOISE_OFFSET
from dq_deploy.errors import InputError, NonFiniteError, OptionError
from dq_deploy.methods import quantize
from dq_deploy.methods.finetuning import picture_training
from dq_deploy.models import Denoiser
from dq_deploy.models.pipeline import build_scheduler
from dq_deploy.models.pipeline.call import generators_of
from tests.calibration.recording import tiny_forms
from tests.tiny import LATENT_SCHEDULER, tiny_conditional_denoiser


@pytest.fixture(scope="module")
def drawn() -> tuple[Any, Any, Any]:
    """A text pipeline, what is asked of it, and its denoiser's call."""
    pipeline, asked = tiny_forms.text()
    module = tiny_forms.denoiser_of(pipeline)
    return pipeline, asked, call_of_pipeline(pipeline, module, asked, {}).call


def run_of(drawn: tuple[Any, Any, Any], scheduler: str | None = None, **changes: Any) -> SamplingRun:
    pipeline, asked, call = drawn
    if scheduler is not None:
        pipeline.scheduler = build_scheduler(dict(LATENT_SCHEDULER), scheduler)
    return SamplingRun(pipeline, pipeline.unet, call, replace(asked, **changes))


def generators(run: SamplingRun, indices: list[int]) -> list[torch.Generator]:
    return generators_of(run.asked.seed, [NOISE_OFFSET + index for index in indices])


def test_both_halves_of_guidance_are_rows_of_one_picture(drawn: Any) -> None:
    flat = run_of(drawn, "ddim").record(2, memory_gib=1).flat()
    assert flat["step"].tolist() == [0, 1] * 4
    assert flat["trajectory"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    first = flat["step"] == 1
    sample, texts = flat["sample"][first], flat["encoder_hidden_states"][first]
    np.testing.assert_array_equal(sample[0], sample[1])  # one picture, two texts
    np.testing.assert_array_equal(texts[0], texts[2])  # the empty prompt
    assert not np.array_equal(texts[1], texts[3])  # of two prompts
    plain = run_of(drawn, guidance=1.0).record(1, memory_gib=1)
    assert plain.rows.count == 2


@pytest.mark.parametrize(
    ("scheduler", "rows"),
    [("heun", [2, 4, 4]), ("kdpm2", [2, 2, 2, 2, 2]), ("dpm++sde", [2, 2, 2]), ("unipc", [2, 2, 2])],
)
def test_a_scheduler_that_comes_to_a_step_twice_gives_it_twice_the_rows(
    scheduler: str, rows: list[int], drawn: Any
) -> None:
    run = run_of(drawn, scheduler, steps=3)
    visits = run.visits(influence=True)
    assert sorted(visits.rows.tolist()) == sorted(rows)
    assert visits.influence is not None
    assert (visits.influence > 0).all()
    found = run.record(1, memory_gib=1)
    np.testing.assert_array_equal(found.timesteps, visits.timesteps)
    assert np.bincount(found.step).tolist() == visits.rows.tolist()
    assert found.least == 2


def test_the_same_picture_whatever_stands_beside_it(drawn: Any) -> None:
    run = run_of(drawn, "euler-ancestral")
    both, one = run.record(2, memory_gib=1).flat(), run.record(1, memory_gib=1).flat()
    np.testing.assert_array_equal(both["sample"][both["trajectory"] == 0], one["sample"])
    other = run_of(drawn, seed=1).record(1, memory_gib=1).flat()
    assert not np.array_equal(other["sample"], one["sample"])


@pytest.mark.parametrize(
    "scheduler",
    ["ddim", "ddpm", "pndm", "lms", "euler", "euler-ancestral", "heun", "kdpm2", "dpm++2m", "dpm++sde", "unipc", "lcm"],
)
def test_gradients_pass_the_whole_run_to_what_answers(scheduler: str, drawn: Any) -> None:
    run = run_of(drawn, scheduler, steps=4)
    pipeline, module, scheduler_before = run.pipeline, run.module, run.pipeline.scheduler
    plain = run.last_samples([0, 1])
    asked = run.asked.arguments(pipeline, [0, 1], output_type="latent")
    asked["generator"] = [torch.Generator().manual_seed(g.initial_seed()) for g in generators(run, [0, 1])]
    np.testing.assert_array_equal(plain, pipeline(**asked).images)
    assert not plain.requires_grad
    factor = torch.ones((), requires_grad=True)
    hook = module.register_forward_hook(lambda _module, _args, output: (output[0] * factor,))
    try:
        learned = run.last_samples([0, 1], gradients=True)
        (slope,) = torch.autograd.grad(learned.square().sum(), factor)
    finally:
        hook.remove()
    np.testing.assert_array_equal(learned.detach(), plain)
    assert pipeline.scheduler is scheduler_before
    assert "step" not in vars(pipeline.scheduler)
    found = float(slope)
    far = []
    for value in (1.001, 0.999):
        hook = module.register_forward_hook(lambda _module, _args, output, value=value: (output[0] * value,))
        far.append(float(run.last_samples([0, 1]).double().square().sum()))
        hook.remove()
    assert found == pytest.approx((far[0] - far[1]) / 0.002, rel=0.05)


def test_a_size_or_a_value_that_changes_is_refused_by_name(drawn: Any) -> None:
    _, _, call = drawn
    with pytest.raises(InputError, match=r"sample of shape \[2, 4, 16, 8\], expected \[2, 4, 8, 8\]"):
        run_of(drawn, height=32, width=16).visits()
    other = (drawn[0], drawn[1], replace(call, constants={"cross_attention_kwargs": {"scale": 0.5}}))
    with pytest.raises(InputError, match="cross_attention_kwargs"):
        run_of(other).visits()


def test_a_prompt_s_embedding_that_is_not_finite_names_the_input(drawn: Any) -> None:
    pipeline = drawn[0]
    named = dict(pipeline.text_encoder.named_parameters())
    weight = next(value for name, value in named.items() if name.endswith("position_embedding.weight"))
    kept = weight.data.clone()
    weight.data[0] = float("nan")
    try:
        with pytest.raises(NonFiniteError, match="input encoder_hidden_states is not finite at timestep"):
            run_of(drawn, "ddim").record(1, memory_gib=1)
    finally:
        weight.data.copy_(kept)


@pytest.mark.parametrize(("method", "choice"), [("minmax", "tdac"), ("dilatequant", "uniform")])
def test_methods_take_what_a_pipeline_gives(method: str, choice: str, drawn: Any) -> None:
    pipeline, asked, call = drawn
    pipeline.scheduler = build_scheduler(dict(LATENT_SCHEDULER), "euler")
    denoiser: Denoiser = replace(tiny_conditional_denoiser(), module=pipeline.unet, call=call)
    given = CalibrationSource(pipeline=AskedPipeline(pipeline=pipeline, asked=asked, words={"pipeline": "tiny"}))
    options = {"steps": 2, "samples": 4, "calibration_choice": choice, "keep": ("*_block*", "*_blocks.1*")}
    if method != "minmax":
        options |= {"iterations": 1, "batch": 2, "samples": 1}
    record = quantize(denoiser, calibration=given, method=method, **options)
    told = record.provenance["calibration"]
    assert told["sampler"] == "EulerDiscreteScheduler of StableDiffusionPipeline"
    assert told["inputs"] == 2 * 2 * options["samples"]  # type: ignore[operator]
    assert told["pipeline"] == "tiny"
    assert record.call == call
    assert torch.is_tensor(next(denoiser.module.parameters()))


def test_a_sampler_that_gradients_do_not_pass_is_refused_before_anything_is_computed(
    drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(drawn, "ddim", steps=2)
    before = run.pipeline.unet.__dict__.get("forward")
    run.check_gradients()
    assert run.pipeline.unet.__dict__.get("forward") is before
    kind = type(run.pipeline.scheduler)
    step = kind.step
    monkeypatch.setattr(
        kind, "step", lambda self, output, *args, **kwargs: step(self, output.detach(), *args, **kwargs)
    )
    with pytest.raises(OptionError, match="gradients do not pass a StableDiffusionPipeline with a DDIMScheduler"):
        run.check_gradients()


def test_training_on_pictures_runs_the_pipeline_with_guidance(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PICTURES", "HELD_OUT", "BATCH"):
        monkeypatch.setattr(picture_training, name, 2)
    pipeline, asked, call = drawn
    pipeline.scheduler = build_scheduler(dict(LATENT_SCHEDULER), "euler-ancestral")
    denoiser: Denoiser = replace(tiny_conditional_denoiser(), module=pipeline.unet, call=call)
    given = CalibrationSource(pipeline=AskedPipeline(pipeline=pipeline, asked=asked, words={"pipeline": "tiny"}))
    scheduler, learning = pipeline.scheduler, [p.requires_grad for p in pipeline.text_encoder.parameters()]
    record = quantize(
        denoiser, calibration=given, method="minmax", steps=2, samples=2, weight_bits=4, picture_iterations=1
    )
    note = record.provenance["history"][-1]
    assert note["stage"] == "picture-training"
    assert note["held_out_db_gained"] >= 0
    assert pipeline.scheduler is scheduler
    assert [p.requires_grad for p in pipeline.text_encoder.parameters()] == learning
    assert all(p.grad is None for p in (*pipeline.text_encoder.parameters(), *pipeline.unet.parameters()))
