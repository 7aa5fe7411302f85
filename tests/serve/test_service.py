"""The promise: the same request gives the same bytes alone and in any crowd; and what ends a request early."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dq_deploy.errors import OptionError, SchedulerWarning
from dq_deploy.models.pipeline import PipelineCall
from dq_deploy.open_engine import open_engine
from dq_deploy.pipelines.draw import draw_images
from dq_deploy.pipelines.grid import bytes_from_unit
from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser
from dq_deploy.serve import Limits, Served
from dq_deploy.serve.admission import QueueFullError
from dq_deploy.serve.opening import open_service
from dq_deploy.serve.orders import PartialPicture, PictureFormat, Reason, Status, StepDone, Terms
from dq_deploy.serve.service import StoppingError
from tests.serve.asking import all_over, ask, pictures_of, wait_for

SCHEDULERS = ["ddim", "ddpm", "euler-ancestral", "heun", "dpm++2m", "kdpm2", "unipc", "lcm"]


def label(seed: int, **changes) -> PipelineCall:
    return PipelineCall(**{"labels": (seed % 3,), "seed": seed, "steps": 6, **changes})


def text(seed: int, **changes) -> PipelineCall:
    prompt = ("a red house", "a cat", "two boats")[seed % 3]
    return PipelineCall(**{"prompts": (prompt,), "seed": seed, "steps": 5, **changes})


def pixels(data: bytes) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(data)))
    return image[..., None] if image.ndim == 2 else image


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_request_gives_the_same_bytes_alone_and_in_a_crowd(tiny_record_path, scheduler):
    limits = Limits(max_batch=5)
    with open_service(Served(engine=tiny_record_path, threads=1, scheduler=scheduler, limits=limits)) as service:
        calls = [label(seed, steps=4 + seed % 4, count=1 + seed % 3) for seed in range(9)]
        alone = [pictures_of(service, call) for call in calls]
        answers = [ask(service, call, Terms(client=str(i % 4), priority=i % 2)) for i, call in enumerate(calls)]
        all_over(answers)
        assert [answer.pictures for answer in answers] == alone
    assert len({data for pictures in alone for data in pictures}) == sum(call.count for call in calls)


@pytest.mark.parametrize(("target", "mode"), [("onnxruntime", "exact"), ("onnxruntime", "fast"), ("openvino", "exact")])
def test_on_exported_engines_too(tiny_record, tmp_path, target, mode):
    """No proof for them; in mode fast a call holds steps of one bucket alone, which the engine refuses to mix."""
    pytest.importorskip(target)
    from dq_deploy import export

    export(tiny_record, tmp_path / "unet.onnx", target=target, mode=mode)
    served = Served(engine=tmp_path / "unet.onnx", threads=1, limits=Limits(max_batch=4))
    with open_service(served) as service:
        calls = [label(seed, steps=3 + seed % 3) for seed in range(8)]
        alone = [pictures_of(service, call) for call in calls]
        answers = [ask(service, call) for call in calls]
        all_over(answers)
        assert [answer.pictures for answer in answers] == alone
        assert not service.card.same_bytes.proven


def test_with_text_guidance_and_a_vae_too(text_service):
    calls = [text(seed, guidance=(1.0, 4.0)[seed % 2], count=1 + seed % 2) for seed in range(8)]
    alone = [pictures_of(text_service, call) for call in calls]
    answers = [ask(text_service, call, Terms(client=str(i))) for i, call in enumerate(calls)]
    all_over(answers)
    assert [answer.pictures for answer in answers] == alone


def test_a_picture_is_the_one_that_is_drawn_without_a_server(text_service, text_model):
    call = text(4, count=2, guidance=3.0)
    served = [pixels(data) for data in pictures_of(text_service, call)]
    from dq_deploy.models.pipeline import open_pipeline

    with open_engine(text_model / "model.pt", threads=1) as runner:
        pipeline = open_pipeline(text_model, denoiser=IntegerDenoiser(runner))
        pipeline.scheduler = text_service.painter.pipelines.draws.scheduler
        drawn = draw_images(pipeline, call, batch=1).images
    for mine, theirs in zip(served, drawn, strict=True):
        assert np.array_equal(mine, np.moveaxis(bytes_from_unit(theirs), 0, -1))


def test_pictures_on_the_way_leave_the_picture_as_it_is(text_service):
    plain = pictures_of(text_service, text(3))
    answer = ask(text_service, text(3), Terms(partial_images=2, step_events=True, preview_every=2)).wait()
    assert answer.pictures == plain
    partial = [event for event in answer.events if isinstance(event, PartialPicture)]
    steps = [event for event in answer.events if isinstance(event, StepDone)]
    assert [event.number for event in partial] == [0, 1]
    assert [event.step for event in steps] == list(range(1, len(steps) + 1))
    assert {event.step for event in steps if event.preview is not None} == {2, 4}
    assert partial[0].picture.data != partial[1].picture.data != plain[0]


def test_each_format_holds_the_same_pixels(label_service):
    files = [PictureFormat(name="png"), PictureFormat(name="webp", quality=100), PictureFormat(name="jpeg", quality=95)]
    found = [ask(label_service, label(1), file=file).wait().pictures[0] for file in files]
    assert [Image.open(io.BytesIO(data)).format for data in found] == ["PNG", "WEBP", "JPEG"]
    first, *others = (pixels(data)[..., 0].astype(int) for data in found)
    assert all(np.abs(first - other).max() < 40 for other in others)


def test_a_cancelled_request_leaves_within_one_step(label_service):
    answer = ask(label_service, label(5, steps=900), Terms(step_events=True))
    answer.told.wait(20)
    assert label_service.cancel(answer.order.id)
    done = answer.order.steps_done
    answer.wait()
    wait_for(lambda: label_service._admission.drawn == 0)
    assert answer.order.status is Status.CANCELLED
    assert answer.failure.reason is Reason.CANCELLED
    assert answer.order.steps_done <= done
    assert label_service.standings() == []


def test_a_request_ends_when_its_time_is_up(label_service):
    answer = ask(label_service, label(5, steps=900, count=3), Terms(time_limit_s=0.3)).wait()
    assert answer.failure.reason is Reason.TIME
    assert "not done within 0.3 s" in answer.failure.message
    wait_for(lambda: label_service._admission.drawn == 0)


def test_a_full_queue_refuses_and_loses_nothing(label_service):
    first = ask(label_service, label(1, count=40))
    with pytest.raises(QueueFullError):
        ask(label_service, label(2, count=40))
    assert len(first.wait().pictures) == 40
    assert label_service.retry_after() >= 1


def test_one_picture_of_another_client_is_not_held_up_by_many(label_service):
    many = ask(label_service, label(1, count=40, steps=20), Terms(client="many"))
    many.told.wait(20)
    one = ask(label_service, label(2, steps=20), Terms(client="one")).wait()
    done = len(many.pictures)
    many.wait()
    assert one.failure is None
    assert done < 30


def test_what_the_pipeline_does_not_take_is_refused_at_once(label_service):
    with pytest.raises(OptionError, match="got `negative_prompt`"):
        ask(label_service, label(1, negative_prompt="blurry"))


def test_requests_that_are_there_finish_and_others_are_refused(tiny_record_path):
    with open_service(Served(engine=tiny_record_path, threads=1, steps=6)) as service:
        answer = ask(service, label(1, count=5))
        service.stop_taking()
        assert not service.ready
        with pytest.raises(StoppingError):
            ask(service, label(2))
        assert service.wait_until_idle(30)
        assert len(answer.wait().pictures) == 5


def test_requests_that_are_there_when_it_is_closed_are_told(tiny_record_path):
    with open_service(Served(engine=tiny_record_path, threads=1, steps=6)) as service:
        answer = ask(service, label(1, steps=900, count=5))
    assert answer.wait().failure.reason is Reason.STOPPING


def test_counts_and_times_are_told(label_service):
    pictures_of(label_service, label(1, count=2))
    lines = label_service.metrics.text().decode().splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert values["dq_requests_waiting"] == values["dq_requests_running"] == values["dq_pictures_running"] == 0
    assert values['dq_requests_total{kind="generation",status="done"}'] >= 1
    assert values["dq_engine_call_seconds_count"] > 0
    assert values["dq_pictures_total"] >= 2


def test_a_pipeline_whose_scheduler_differs_is_refused_or_said_before_it_serves(text_model, tmp_path):
    shutil.copytree(text_model, tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    served = Served(engine=text_model / "model.pt", model=tmp_path / "model", steps=2, threads=1)
    file.write_text(json.dumps({**config, "beta_end": 0.5}))
    with pytest.raises(OptionError, match=r"has beta_end 0\.5, expected 0\.012 as"), open_service(served):
        pass
    file.write_text(json.dumps({**config, "timestep_spacing": "trailing"}))
    words = "timestep_spacing 'trailing', .* calibrated with 'leading', which counts; name one"
    with pytest.warns(SchedulerWarning, match=words), open_service(served):
        pass
