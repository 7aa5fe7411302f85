"""The loop's model.py draws what `dq-sample` draws, bit for bit, and answers wrong requests with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.serve.triton import write_triton_repository
from tests.serve.triton.drawn_here import drawn_here
from tests.serve.triton.served import Served


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_engine):
    out = tmp_path_factory.mktemp("alone") / "out"
    write_triton_repository(out, model=None, engine=tiny_engine, name="tiny")
    return Served(out, "tiny")


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler", "euler-ancestral", "dpm++2m", "heun", "unipc"])
def test_labels_are_drawn_as_by_dq_sample(scheduler, tiny_engine, tmp_path):
    out = write_triton_repository(
        tmp_path / "out", model=None, engine=tiny_engine, name="tiny", scheduler=scheduler
    ).path
    found = Served(out, "tiny").pictures(LABEL=[2, 0], SEED=7, STEPS=4)
    wanted = drawn_here(tiny_engine, None, PipelineCall(labels=(2, 0), seed=7, steps=4, count=2, scheduler=scheduler))
    assert found.shape == (2, 8, 8, 1)
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found[0], found[1])


def test_steps_that_are_not_asked_for_are_those_of_the_calibration(alone, tiny_engine):
    found = alone.pictures(LABEL=1, SEED=3)
    assert np.array_equal(found, drawn_here(tiny_engine, None, PipelineCall(labels=(1,), seed=3, steps=6)))


def test_another_size_is_drawn(alone, tiny_engine):
    asked = PipelineCall(labels=(1,), seed=3, steps=2, height=16, width=8)
    found = alone.pictures(LABEL=1, SEED=3, STEPS=2, HEIGHT=16, WIDTH=8)
    assert found.shape == (1, 16, 8, 1)
    assert np.array_equal(found, drawn_here(tiny_engine, None, asked))


def test_a_count_goes_round_the_labels_and_a_picture_depends_on_its_place_alone(alone):
    found = alone.pictures(LABEL=[0, 1], SEED=1, STEPS=2, COUNT=3)
    assert np.array_equal(alone.pictures(LABEL=[0, 1, 0], SEED=1, STEPS=2), found)
    assert np.array_equal(alone.pictures(LABEL=[0], SEED=1, STEPS=2), found[:1])


WRONG = {
    "label": ({"LABEL": 3}, "LABEL is 3, expected 0 to 2"),
    "no seed": ({"SEED": -1}, "SEED is -1, expected 0 to 4294967295"),
    "no step": ({"STEPS": 0}, "STEPS is 0, expected 1 to 1000"),
    "more steps": ({"STEPS": 1001}, "STEPS is 1001, expected 1 to 1000"),
    "no picture": ({"COUNT": 0}, "COUNT is 0, expected 1 to 64"),
    "fewer than labels": ({"LABEL": [0, 1], "COUNT": 1}, "COUNT is 1, expected at least 2"),
    "many": ({"LABEL": [0] * 65}, "got 65 pictures, expected at most 64"),
    "one side": ({"HEIGHT": 16}, "got one of HEIGHT and WIDTH, expected both or none"),
    "long side": ({"HEIGHT": 4096, "WIDTH": 8}, "HEIGHT is 4096, expected 1 to 2048"),
    "odd side": ({"HEIGHT": 9, "WIDTH": 8}, "a height of 9, expected a multiple of 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gets_its_reason_and_the_next_one_its_pictures(case, alone):
    changes, words = WRONG[case]
    response = alone.ask(**{"LABEL": 0, "SEED": 1, "STEPS": 2, **changes})
    assert words in response.error.message()
    assert response.error.code == "invalid"
    assert alone.pictures(LABEL=0, SEED=1, STEPS=2).shape == (1, 8, 8, 1)


def test_a_cancelled_request_takes_no_further_step(alone):
    before = len(alone.calls)
    response = alone.ask(LABEL=0, SEED=1, STEPS=6, cancelled_after=2)
    assert response.error.code == "cancelled"
    assert len(alone.calls) == before + 2


def test_a_failure_inside_is_an_error_of_that_request_alone(alone, monkeypatch):
    good = alone.pictures(LABEL=0, SEED=1, STEPS=3)

    def fail(arrays, names):
        raise RuntimeError("two\nlines")

    with monkeypatch.context() as patch:
        patch.setattr(alone, "_step", fail)
        assert alone.ask(LABEL=0, SEED=1, STEPS=3).error.message() == "RuntimeError: two lines"
    assert np.array_equal(alone.pictures(LABEL=0, SEED=1, STEPS=3), good)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    pytest.importorskip("transformers")
    from tests.pipelines.layouts.tiny_folders import tiny_folder

    place = tmp_path_factory.mktemp("text")
    tiny = tiny_folder("sd", place)
    written = write_triton_repository(place / "out", model=tiny.pipeline, engine=tiny.record, name="sd")
    return tiny, written, Served(written.path, "sd")


def test_prompts_are_drawn_as_by_dq_sample(text):
    tiny, written, served = text
    found = served.pictures(PROMPT=["a red cat", "a dog"], NEGATIVE_PROMPT="blue", SEED=4, STEPS=3, GUIDANCE=7.3)
    asked = PipelineCall(prompts=("a red cat", "a dog"), negative_prompt="blue", seed=4, steps=3, guidance=7.3, count=2)
    wanted = drawn_here(written.engine, tiny.pipeline, asked)
    assert np.array_equal(found, wanted)
    assert found.shape == (2, 16, 16, 3)
    assert served.calls[-1] == (2, 4, 8, 8)


def test_the_pipeline_comes_without_the_weights_of_its_denoiser(text):
    tiny, written, _ = text
    place = written.path / "sd" / "1" / "pipeline"
    copied = {str(path.relative_to(place)) for path in place.rglob("*.*")}
    weights = {one for one in copied if one.endswith(".safetensors")}
    assert weights == {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"}
    assert "unet/config.json" in copied
    assert written.inputs == ("PROMPT", "NEGATIVE_PROMPT", "SEED", "STEPS", "COUNT", "GUIDANCE", "HEIGHT", "WIDTH")
    assert (tiny.pipeline / "unet" / "diffusion_pytorch_model.safetensors").is_file()


WRONG_TEXTS = {
    "empty": ({"PROMPT": " "}, "PROMPT is empty"),
    "long": ({"PROMPT": "x" * 10_001}, "PROMPT has 10001 characters, expected at most 10000"),
    "no UTF-8": ({"PROMPT": b"\xff"}, "PROMPT is no UTF-8"),
    "no guidance": ({"NEGATIVE_PROMPT": "x", "GUIDANCE": 1.0}, "would change nothing with a guidance of 1"),
    "no number": ({"GUIDANCE": float("nan")}, "GUIDANCE is nan, expected a finite number"),
}


@pytest.mark.parametrize("case", WRONG_TEXTS)
def test_a_wrong_text_gets_its_reason(case, text):
    changes, words = WRONG_TEXTS[case]
    response = text[2].ask(**{"PROMPT": "a", "SEED": 1, "STEPS": 2, **changes})
    assert words in response.error.message()


def test_a_pipeline_with_guidance_needs_batches_of_two(text, tmp_path):
    from dq_deploy.errors import OptionError

    tiny, _, _ = text
    with pytest.raises(OptionError, match="batches of 1, expected at least 2"):
        write_triton_repository(tmp_path / "out", model=tiny.pipeline, engine=tiny.record, name="sd", max_batch=1)


def test_a_denoiser_that_reads_texts_needs_its_pipeline(text, tmp_path):
    from dq_deploy.errors import OptionError

    with pytest.raises(OptionError, match="takes encoder_hidden_states, which a denoiser alone gets from nobody"):
        write_triton_repository(tmp_path / "out", model=None, engine=text[0].record, name="sd")
