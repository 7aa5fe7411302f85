"""`dq-sample` draws with the engine, compares with the float model, and stops where a number is not finite."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dq_deploy import export, save_record
from tests.cli.running import command
from tests.tiny import ONE_LEVEL, random_record, tiny_conditional_denoiser, tiny_denoiser


def options(tmp_path, *more, labels="0,1,2"):
    return ["--labels", labels, "--out", tmp_path / "samples.png", "--json", tmp_path / "samples.json", *more]


def test_the_demo_engine_draws_what_the_float_model_draws(demo_record_path, demo_engine, tmp_path):
    more = ["--ckpt", demo_record_path, "--engine", demo_engine, "--steps", 20, "--compare", "--threads", 1]
    done = command("sample", *options(tmp_path, *more, labels="0,7"))
    assert done.code == 0, done.err
    values = json.loads((tmp_path / "samples.json").read_text())
    assert len(values["images"]) == 2
    assert values["mean_psnr_db"] > 12  # two unrelated digits have about 8 dB
    assert values["mean_psnr_db"] == pytest.approx(np.mean([i["psnr_db"] for i in values["images"]]))
    assert 0.3 < values["mean_ssim"] <= 1
    assert values["constant_images"] == []
    assert values["furthest_from_calibrated"] == 0
    assert "warning" not in done.err
    assert Image.open(tmp_path / "samples.png").width > 200
    assert "PSNR" in done.out


def test_the_engine_and_the_simulation_draw_the_same(tiny_record_path, tiny_engine, tmp_path):
    pictures = []
    for source in (["--engine", tiny_engine], ["--ckpt", tiny_record_path]):
        done = command("sample", *options(tmp_path, *source, "--steps", 4))
        assert done.code == 0, done.err
        pictures.append(np.asarray(Image.open(tmp_path / "samples.png")).astype(int)[:, 90:])
    assert np.abs(pictures[0] - pictures[1]).max() <= 3


def test_steps_that_were_not_calibrated_are_a_warning_with_the_distance(tiny_engine, tmp_path):
    done = command("sample", *options(tmp_path, "--engine", tiny_engine, "--steps", 7))
    assert done.code == 0
    assert "were not calibrated" in done.err
    assert json.loads((tmp_path / "samples.json").read_text())["furthest_from_calibrated"] > 0


@pytest.mark.parametrize(
    ("more", "labels", "message"),
    [
        ([], "0,3", "label 3 is out of range, expected 0 to 2"),
        ([], "x", "--labels got 'x'"),
        (["--steps", 1001], "0", "at most 1000"),
        (["--scheduler", "nope"], "0", "which diffusers does not have; expected a class of it as DDIMScheduler"),
        (["--scheduler", "edm-euler"], "0", "EDMEulerScheduler is for EDM preconditioning"),
        (["--scheduler", "euler", "--eta", 1], "0", "EulerDiscreteScheduler has no eta"),
        (["--prompt", "a ball"], "0", "the pipeline that draws is not known, expected its folder; give --model DIR"),
        (["--eta", 2], "0", "from 0 to 1"),
        (["--threads", 0], "0", "threads is 0"),
        (["--steps", 0], "0", "error: steps is 0, expected at least 1"),
        (["--batch", 0], "0", "error: --batch is 0, expected at least 1"),
        (["--count", -5], "0", "--count is -5, expected at least 1"),
        (["--count", 10**12], "0", "--count is 1000000000000, expected at most 100000"),
        (["--model", "any"], "0", "model folder any does not exist"),
        (["--model", "examples/mnist-ddpm-32"], "0", "is no pipeline and --compare was not given"),
        (["--out", "samples.gif"], "0", "ends in .png"),
        (["--device", ""], "0", "device is ''"),
        (["--compare"], "0", "--model DIR"),
        (["--compare", "--model", "missing"], "0", "missing"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(more, labels, message, tiny_engine, tmp_path):
    done = command("sample", *options(tmp_path, "--engine", tiny_engine, *more, labels=labels))
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert done.err.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_labels_and_sources_that_are_missing_are_mistakes(tiny_engine, tmp_path):
    done = command("sample", "--engine", tiny_engine, "--out", tmp_path / "samples.png")
    assert (done.code, "give --labels" in done.err) == (2, True)
    done = command("sample", "--labels", "0", "--out", tmp_path / "samples.png")
    assert (done.code, "neither --ckpt nor --engine" in done.err) == (2, True)


def test_an_unconditional_model_takes_a_count_and_no_labels(tmp_path):
    path = tmp_path / "model.safetensors"
    save_record(random_record(tiny_denoiser()), path)
    done = command("sample", "--ckpt", path, "--count", 3, "--steps", 2, "--out", tmp_path / "samples.png")
    assert done.code == 0, done.err
    assert "3 images by the simulation" in done.out
    done = command("sample", "--ckpt", path, "--labels", "0", "--out", tmp_path / "other.png")
    assert (done.code, "the model has no classes" in done.err) == (2, True)


def test_an_engine_of_another_checkpoint_is_refused(tiny_engine, tmp_path):
    path = tmp_path / "other.pt"
    save_record(random_record(tiny_denoiser(classes=3), seed=1), path)
    done = command("sample", *options(tmp_path, "--ckpt", path, "--engine", tiny_engine))
    assert done.code == 2
    assert "was exported from the record" in done.err


def test_a_float_model_that_is_not_the_quantized_one_is_refused(tiny_record, demo_model_dir, tmp_path):
    path = tmp_path / "model.pt"
    record = dataclasses.replace(tiny_record, provenance={"source": "gone", "source_sha256": "0" * 64})
    save_record(record, path)
    done = command("sample", *options(tmp_path, "--ckpt", path, "--compare", "--model", demo_model_dir))
    assert (done.code, "the one that was quantized" in done.err) == (2, True)
    done = command("sample", *options(tmp_path, "--ckpt", path, "--compare"))
    assert (done.code, "does not exist; give --model" in done.err) == (2, True)


def test_a_non_finite_value_stops_the_loop_and_is_traced_to_its_layer(tmp_path):
    record = random_record(tiny_denoiser(classes=3, **ONE_LEVEL))
    name = "conv_out"  # a value inside would be made finite by the next quantizer
    layer = record.layers[name]
    part = dataclasses.replace(
        layer.parts[0],
        weight_scale=np.full_like(layer.parts[0].weight_scale, 2.0**60),
        scale=np.full_like(layer.parts[0].scale, 2.0**60),
        pre=np.full_like(layer.parts[0].pre, 2.0**60),
    )
    bias = np.full(layer.out_channels, 3.4e38, np.float32)  # finite, and beyond float32 once anything is added
    changed = dataclasses.replace(layer, parts=(part,), bias=bias)
    broken = dataclasses.replace(record, layers={**record.layers, name: changed})
    model, engine = tmp_path / "broken.pt", tmp_path / "broken.onnx"
    save_record(broken, model)
    export(broken, engine)
    done = command("sample", *options(tmp_path, "--ckpt", model, "--engine", engine, "--steps", 4))
    assert done.code == 3
    assert "step 1 of 4" in done.err
    assert f"the first layer whose output is not finite is {name}" in done.err
    assert not (tmp_path / "samples.png").exists()


def test_a_constant_image_is_a_warning(tiny_engine, tmp_path, monkeypatch):
    from dq_deploy.pipelines import draw

    def constant(*_, **__):
        images = np.stack([np.full((1, 8, 8), i, np.float32) for i in range(3)])
        return draw.Drawn(images=images, latents=False, timesteps=(), remarks=())

    monkeypatch.setattr(draw, "draw_images", constant)
    done = command("sample", *options(tmp_path, "--engine", tiny_engine, "--steps", 2))
    assert done.code == 0
    assert "warning: image 1 (label 1) holds one single value" in done.err


def test_a_device_without_an_engine_has_no_use(tiny_record_path, tmp_path):
    done = command("sample", *options(tmp_path, "--ckpt", tiny_record_path, "--device", "cpu"))
    assert (done.code, "--device cpu was given without --engine, which alone has it" in done.err) == (2, True)


def saved(folder, denoiser):
    denoiser.module.save_pretrained(folder)
    return folder


def test_a_float_model_is_held_against_an_engine_without_its_record(tiny_engine, tmp_path):
    given = options(tmp_path, "--engine", tiny_engine, "--steps", 2, "--compare", labels="0")
    same = saved(tmp_path / "same", tiny_denoiser(seed=1, classes=3))
    done = command("sample", *given, "--model", same)
    assert done.code == 0, done.err
    assert "could not be compared with those that were quantized; give --ckpt to have them checked" in done.err
    classes = saved(tmp_path / "classes", tiny_denoiser(classes=4))
    done = command("sample", *given, "--model", classes)
    assert done.code == 2
    assert "has num_class_embeds 4, expected 3 as what was quantized; give the model" in done.err
    other = saved(tmp_path / "other", tiny_conditional_denoiser())
    done = command("sample", *given, "--model", other)
    assert done.code == 2
    assert "is a UNet2DConditionModel, expected the UNet2DModel quantized" in done.err


def test_a_denoiser_alone_is_drawn_in_the_size_that_was_calibrated_or_the_one_asked_for(tmp_path):
    path, out = tmp_path / "model.pt", tmp_path / "samples.safetensors"
    denoiser = tiny_denoiser(**ONE_LEVEL, sizes={"height": 4, "width": 12})
    save_record(dataclasses.replace(random_record(denoiser), call=denoiser.call), path)
    for asked, shape in (((), (1, 1, 4, 12)), (("--height", 6, "--width", 6), (1, 1, 6, 6))):
        done = command("sample", "--ckpt", path, "--count", 1, "--steps", 2, *asked, "--out", out)
        assert done.code == 0, done.err
        assert load_file(out)["simulation"].shape == shape
