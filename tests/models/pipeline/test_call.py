"""What is asked of a pipeline becomes the arguments of its call; what it does not take is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import diffusers

from dq_deploy.errors import DqError, FileProblemError, OptionError
from dq_deploy.models.pipeline import PipelineCall, build_scheduler
from dq_deploy.models.pipeline.call_file import read_call
from dq_deploy.models.pipeline.open import suited
from dq_deploy.models.pipeline.pictures import read_picture
from tests.pipelines.tiny_pipelines import tiny_text_pipeline
from tests.pipelines.tiny_transformers import dit, flux
from tests.tiny import ONE_LEVEL, SCHEDULER, tiny_denoiser


@pytest.fixture(scope="module")
def text():
    return tiny_text_pipeline()


def picture(path, size=(16, 16), mode="RGB"):
    Image.new(mode, size).save(path)
    return path


def test_options_become_arguments_with_a_generator_for_each_image(text):
    call = PipelineCall(
        prompts=("a", "b"), negative_prompt="c", guidance=2.0, steps=3, height=16, width=24, seed=2, count=3
    )
    found = call.arguments(text, [1, 2], output_type="np")
    generators = found.pop("generator")
    assert found == {
        "prompt": ["b", "a"],
        "negative_prompt": ["c", "c"],
        "guidance_scale": 2.0,
        "num_inference_steps": 3,
        "height": 16,
        "width": 24,
        "output_type": "np",
    }
    assert [g.initial_seed() for g in generators] == [2 * 1_000_003 + 1, 2 * 1_000_003 + 2]


def test_an_unconditional_pipeline_takes_a_number_of_images():
    module = tiny_denoiser(**ONE_LEVEL).module
    pipeline = diffusers.DDPMPipeline(module, build_scheduler(SCHEDULER))
    assert PipelineCall(count=4).arguments(pipeline, [0, 1, 2])["batch_size"] == 3
    for option, call in (
        ("guidance", PipelineCall(guidance=3.0)),
        ("prompt", PipelineCall(prompts=("a",))),
        ("labels", PipelineCall(labels=(1,))),
        ("eta", PipelineCall(eta=0.5)),
        ("height", PipelineCall(height=8, width=8)),
    ):
        with pytest.raises(OptionError, match=f"got `{option}`, which DDPMPipeline does not take; it takes batch_size"):
            call.arguments(pipeline, [0])


def test_a_text_pipeline_needs_a_prompt_and_a_text_encoder(text):
    with pytest.raises(OptionError, match="draws what a prompt says; give `prompt`"):
        PipelineCall().arguments(text, [0])
    encoder, text.text_encoder = text.text_encoder, None
    tokenizer, text.tokenizer = text.tokenizer, None
    with pytest.raises(OptionError, match="StableDiffusionPipeline has no text encoder, expected one for `prompt`"):
        PipelineCall(prompts=("a",)).arguments(text, [0])
    text.text_encoder, text.tokenizer = encoder, tokenizer


def test_pictures_and_masks_are_read_and_checked(text, tmp_path):
    good, mask = picture(tmp_path / "a.png", (24, 16)), picture(tmp_path / "m.png", (24, 16), "L")
    call = PipelineCall(prompts=("a",), image=good, mask=mask, strength=0.5)
    found = call.arguments(suited(text, call), [0])
    assert (found["image"].size, found["mask_image"].mode) == ((24, 16), "L")
    assert (found["width"], found["height"]) == (24, 16)
    (tmp_path / "damaged.png").write_bytes(good.read_bytes()[:40])
    for image, message in (
        (tmp_path / "none.png", "does not exist"),
        (tmp_path / "damaged.png", "is damaged or no PNG, JPEG"),
        (picture(tmp_path / "l.png", mode="L"), "has the mode L, expected RGB"),
        (picture(tmp_path / "odd.png", (17, 16)), "is 17 x 16, expected multiples of 2"),
        (picture(tmp_path / "other.png"), r"sizes image 16 x 16, mask 24 x 16"),
    ):
        wrong = PipelineCall(prompts=("a",), image=image, mask=mask)
        with pytest.raises(FileProblemError, match=message):
            wrong.arguments(suited(text, wrong), [0])
    for early, message in ((tmp_path, "is no file"), (tmp_path / "l.png", "has the mode L")):
        with pytest.raises(FileProblemError, match=message):
            read_call(None, image=early)
    only = PipelineCall(prompts=("a",), mask=mask)
    with pytest.raises(OptionError, match="got `mask` without `image`"):
        only.arguments(suited(text, only), [0])


def test_a_picture_is_one_and_turned_as_its_camera_says(tmp_path):
    first, second = Image.new("RGB", (8, 16)), Image.new("RGB", (8, 16), "red")
    turned = first.getexif()
    turned[0x112] = 6
    first.save(tmp_path / "turned.jpg", exif=turned)
    assert read_picture(tmp_path / "turned.jpg").size == (16, 8)
    for name in ("two.png", "two.webp"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        with pytest.raises(FileProblemError, match="has 2 frames, expected one"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"count": 0}, "count is 0"),
        ({"strength": 1.5}, r"strength is 1\.5, expected a number from 0 to 1"),
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"height": 1_000_000, "width": 2}, "height is 1000000, expected at most 16384"),
        ({"height": 8, "width": 16385}, "width is 16385, expected at most 16384"),
        ({"guidance": -1}, "guidance is -1, expected at least 0"),
        ({"prompts": ("a", " ")}, "prompt 2 is empty"),
        ({"prompts": ("a", "\udcff")}, "prompt 2 is no UTF-8 text"),
        ({"negative_prompt": "\ud800"}, "negative_prompt is no UTF-8 text"),
        ({"prompts": ("a" * 1_000_000,)}, "prompt 1 has 1000000 characters, expected at most 10000"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(OptionError, match=message):
        PipelineCall(**values)


def test_a_file_says_anything_a_call_takes(text, tmp_path):
    picture(tmp_path / "look.png")
    path = tmp_path / "call.yaml"
    path.write_text(
        "prompt: [a, b]\nguidance_scale: 3\nnum_inference_steps: 4\nclip_skip: 1\nimage: look.png\n"
        "ip_adapter_image: [look.png]\n"
    )
    call = read_call(path, seed=3, count=None, prompts=())
    assert (call.prompts, call.guidance, call.steps, call.seed) == (("a", "b"), 3, 4, 3)
    assert call.image == tmp_path / "look.png"
    assert np.asarray(call.extra["ip_adapter_image"][0]).shape == (16, 16, 3)
    assert call.arguments(suited(text, call), [0])["clip_skip"] == 1
    with pytest.raises(OptionError, match=r"got steps twice, as an option and in .*call\.yaml"):
        read_call(path, steps=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "holds a list, expected lines"),
        ("a: [", "is no YAML"),
        ("steps: many", "has steps 'many', expected int"),
        ("prompt: []", r"has prompt \[\], expected one or a list of str"),
        ("prompt: a\nprompts: b", "has prompts twice"),
        ("ip_adapter_image: none.png", r"none\.png does not exist"),
        ("ip_adapter_image: x.gif", r"x\.gif does not exist"),
        ("guidance: 2\nguidance: 3", "is no YAML: 'guidance' stands twice"),
        ("extra: {a: 1, a: 2}", "'a' stands twice"),
        ("1: a", "has the key 1, expected words"),
        ("!!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_a_file_that_says_it_badly_is_refused(content, message, tmp_path):
    path = tmp_path / "call.yaml"
    path.write_text(content)
    with pytest.raises(DqError, match=message):
        read_call(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense: 3", "got `nonsense`, which StableDiffusionPipeline does not take; it takes"),
        ("kwargs: {a: 1}", "got `kwargs`, which"),
        ("guidance_rescale: true", "guidance_rescale is True, expected float"),
        ("guidance_rescale: '0.7'", r"guidance_rescale is '0\.7', expected float"),
        ("latents: [1, 2]", "latents of StableDiffusionPipeline is a tensor"),
    ],
)
def test_what_the_pipeline_does_not_take_is_refused_by_name(line, message, text, tmp_path):
    path = tmp_path / "call.yaml"
    path.write_text(f"prompt: a\n{line}")
    with pytest.raises(OptionError, match=message):
        read_call(path).arguments(text, [0])


def test_what_would_change_nothing_is_refused(text, tmp_path):
    for call, message in (
        (PipelineCall(prompts=("a",), negative_prompt="b", guidance=1.0), "draws with guidance_scale 1, without"),
        (PipelineCall(prompts=("a",), steps=1001), "steps is 1001, expected 1 to 1000"),
        (PipelineCall(prompts=("a",), eta=0.5), "eta is 0.5, expected 0: PNDMScheduler has no eta"),
        (
            PipelineCall(prompts=("a",), image=picture(tmp_path / "a.png"), strength=0.1, steps=2),
            "strength 0.1 of 2 steps leaves no step to take",
        ),
    ):
        with pytest.raises(OptionError, match=message):
            call.arguments(suited(text, call), [0])


def test_guidance_that_the_denoiser_does_not_take_is_refused():
    pipeline, given = flux()
    extra = given.pop("extra")
    asked = PipelineCall(**given, negative_prompt="b", extra=extra)
    with pytest.raises(OptionError, match=r"`negative_prompt` would change nothing.*true_cfg_scale above 1"):
        asked.arguments(pipeline, [0])
    asked = PipelineCall(**given, negative_prompt="b", extra={**extra, "true_cfg_scale": 2.0})
    assert asked.arguments(pipeline, [0])["negative_prompt"] == ["b"]
    pipeline.transformer.register_to_config(guidance_embeds=False)
    with pytest.raises(OptionError, match="`guidance` would change nothing"):
        PipelineCall(**given, extra=extra).arguments(pipeline, [0])


def test_an_argument_that_the_pipeline_cannot_do_without_is_named():
    pipeline, _ = dit()
    with pytest.raises(OptionError, match="the DiTPipeline cannot draw without class_labels; give `labels`"):
        PipelineCall().arguments(pipeline, [0])
    assert PipelineCall(labels=(3,)).arguments(pipeline, [0])["class_labels"] == [3]


def test_a_file_of_the_call_says_nothing_that_the_commands_say(tmp_path):
    for name in ("return_dict", "output_type", "generator", "num_images_per_prompt"):
        (tmp_path / "call.yaml").write_text(f"prompt: a\n{name}: 3\n")
        with pytest.raises(FileProblemError, match=f"has {name}, which a file of the call cannot say"):
            read_call(tmp_path / "call.yaml")


def test_a_seed_and_a_negative_prompt_have_an_end():
    with pytest.raises(OptionError, match=r"seed is .*, expected at most 4294967295"):
        PipelineCall(seed=2**63)
    with pytest.raises(OptionError, match="negative_prompt has 10001 characters"):
        PipelineCall(negative_prompt="a" * 10001)


def test_a_tensor_is_given_by_the_path_of_a_numpy_file(tmp_path):
    values = np.arange(12.0).reshape(1, 12)
    np.save(tmp_path / "vision.npy", values)
    (tmp_path / "call.yaml").write_text("image_embeds: vision.npy\nlists: [vision.npy]")
    given = read_call(tmp_path / "call.yaml").extra
    assert (given["image_embeds"].dtype, given["image_embeds"].tolist()) == (torch.float32, values.tolist())
    assert given["lists"][0].tolist() == values.tolist()
    np.save(tmp_path / "nan.npy", values * np.nan)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "damaged.npy").write_bytes(b"no")
    for value, message in (
        ("nan.npy", "holds NaN"),
        ("text.npy", "expected real numbers"),
        ("damaged.npy", "cannot read"),
        ("none.npy", "cannot read"),
        ("vision.pt", r"expected the path of an array as numpy's save writes it \(.npy\)"),
    ):
        (tmp_path / "call.yaml").write_text(f"image_embeds: {value}")
        with pytest.raises(FileProblemError, match=message):
            read_call(tmp_path / "call.yaml")


def test_steps_for_which_the_scheduler_looks_behind_its_table_are_refused():
    from diffusers import PNDMScheduler

    from tests.pipelines.tiny_pipelines import tiny_text_pipeline

    pipeline = tiny_text_pipeline()
    config = {**pipeline.scheduler.config, "steps_offset": 1}
    pipeline.scheduler = PNDMScheduler.from_config(config)
    PipelineCall(prompts=("a",), steps=999).arguments(pipeline, [0])
    with pytest.raises(OptionError, match="1000 steps with steps_offset 1 and leading spacing visit timestep 1000"):
        PipelineCall(prompts=("a",), steps=1000).arguments(pipeline, [0])
    assert pipeline.scheduler.num_inference_steps is None
