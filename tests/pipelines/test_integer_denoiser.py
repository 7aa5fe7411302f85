"""An engine in the denoiser's place of a diffusers pipeline is called as the float class, and says what it is not."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
)
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from dq_deploy import IntegerDenoiser, export, open_engine, save_record
from dq_deploy.errors import InputError, NonFiniteError, OptionError
from tests.pipelines.float_runner import FloatRunner
from tests.tiny import ONE_LEVEL, random_record, tiny_conditional_denoiser, tiny_denoiser

SCHEDULERS = {"ddim": (DDIMPipeline, DDIMScheduler), "ddpm": (DDPMPipeline, DDPMScheduler)}


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser(**ONE_LEVEL)


@pytest.fixture(scope="module")
def record_path(denoiser, tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "model.pt"
    save_record(random_record(denoiser), path)
    return path


@pytest.fixture(scope="module")
def unet(record_path):
    with open_engine(record_path, threads=1) as runner:
        yield IntegerDenoiser(runner)


def drawn(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size=2, num_inference_steps=4, generator=generator, output_type="np", **options).images


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_float_engine_in_its_place_gives_the_pictures_of_diffusers_bit_for_bit(name, denoiser):
    pipeline_class, scheduler_class = SCHEDULERS[name]
    pictures = [
        drawn(pipeline_class(unet=unet, scheduler=scheduler_class()))
        for unet in (denoiser.module, IntegerDenoiser(FloatRunner(denoiser)))
    ]
    assert np.array_equal(*pictures)


def test_the_record_and_the_exported_file_draw_the_same_picture(record_path, tmp_path):
    from dq_deploy import load_record

    export(load_record(record_path), tmp_path / "unet.onnx")
    pictures = []
    for path in (record_path, tmp_path / "unet.onnx"):
        unet = IntegerDenoiser(path, threads=1)
        pictures.append(drawn(DDIMPipeline(unet=unet, scheduler=DDIMScheduler())))
        assert unet.calls == 4
        unet.close()
    assert np.abs(pictures[0] - pictures[1]).max() < 0.02


def test_a_pipeline_folder_is_loaded_without_its_float_denoiser(denoiser, unet, tmp_path):
    DDIMPipeline(unet=denoiser.module, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    for weights in (tmp_path / "pipe" / "unet").glob("*.safetensors"):
        weights.unlink()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipe", unet=unet)
    assert isinstance(pipeline.unet, IntegerDenoiser)
    assert drawn(pipeline).shape == (2, 8, 8, 1)


def test_outputs_have_the_class_the_type_and_the_place_of_the_float_denoiser(unet):
    sample = torch.randn(2, 1, 8, 8)
    assert isinstance(unet(sample, 5), UNet2DOutput)
    assert isinstance(unet(sample, 5, return_dict=False), tuple)
    assert unet(sample.half(), torch.tensor(5)).sample.dtype == torch.float16
    assert unet(sample, torch.tensor([5, 900])).sample.shape == sample.shape
    assert unet.config.sample_size == 8
    assert (unet.dtype, unet.to(torch.bfloat16).dtype, unet.float().dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )
    assert unet.device == torch.device("cpu")
    assert sum(parameter.numel() for parameter in unet.parameters()) == 0


def test_a_batch_may_mix_timesteps(unet):
    sample = torch.randn(2, 1, 8, 8)
    both = unet(sample, torch.tensor([5.0, 900.0])).sample
    alone = [unet(sample[i : i + 1], t).sample for i, t in enumerate((5, 900))]
    assert torch.equal(both, torch.cat(alone))


def test_text_and_added_conditions_reach_the_engine(tmp_path):
    denoiser = tiny_conditional_denoiser(sdxl=True)
    save_record(random_record(denoiser), tmp_path / "model.pt")
    unet = IntegerDenoiser(tmp_path / "model.pt")
    added = {"text_embeds": torch.randn(2, 8), "time_ids": torch.ones(2, 6)}
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 12)
    result = unet(sample, 5, text, added_cond_kwargs=added, cross_attention_kwargs=None)
    assert isinstance(result, UNet2DConditionOutput)
    assert unet.add_embedding.linear_1.in_features == 32
    other = unet(sample, 5, text, added_cond_kwargs={**added, "text_embeds": torch.zeros(2, 8)})
    assert not torch.equal(result.sample, other.sample)
    with pytest.raises(InputError, match=r"gives mid_block_additional_residual, a tensor of shape \(2, 16, 4, 4\)"):
        unet(sample, 5, text, added_cond_kwargs=added, mid_block_additional_residual=torch.zeros(2, 16, 4, 4))
    with pytest.raises(InputError, match=r"gives down_block_additional_residuals\.0"):
        unet(sample, 5, text, added_cond_kwargs=added, down_block_additional_residuals=(torch.zeros(2, 8, 8, 8),))
    with pytest.raises(InputError, match=r"gives added_cond_kwargs\.image_embeds"):
        unet(sample, 5, text, added_cond_kwargs={**added, "image_embeds": torch.zeros(2, 1, 8)})
    with pytest.raises(InputError, match=r"gives cross_attention_kwargs, \{'scale': 0\.5\}"):
        unet(sample, 5, text, added_cond_kwargs=added, cross_attention_kwargs={"scale": 0.5})


def test_what_it_cannot_do_is_refused_by_name(unet, denoiser, tmp_path):
    sample = torch.randn(2, 1, 8, 8)
    with pytest.raises(InputError, match=r"timestep has shape \(2, 3\) for a batch of 2"):
        unet(sample, torch.zeros(2, 3))
    with pytest.raises(InputError, match="the sample is a ndarray"):
        unet(sample.numpy(), 5)
    with pytest.raises(InputError, match=r"the sample is torch\.int64, expected a float type"):
        unet(sample.long(), 5)
    with pytest.raises(OptionError, match="got push_to_hub"):
        unet.save_pretrained(tmp_path / "pipe", push_to_hub=True)
    for factors in ({}, {"unet.conv_in.lora_A.weight": torch.zeros(2, 9)}, "folder/of/lora"):
        with pytest.raises(OptionError, match="LoRA adds to float weights"):
            unet.load_lora_adapter(factors)
    unet.load_lora_adapter({"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 9)})
    unet.unload_lora()
    with pytest.raises(OptionError, match="open another record"):
        unet.load_state_dict({}, strict=False)
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(OptionError, match="cannot be copied"):
            copied(unet)
    with pytest.raises(OptionError, match="cannot be pickled"):
        pickle.dumps(unet)
    for name in ("compile", "enable_cache", "from_pretrained", "_load_ip_adapter_weights", "set_attention_backend"):
        with pytest.raises(OptionError, match=f"got {name} for an integer denoiser, which cannot do that: "):
            getattr(unet, name)()
    with pytest.raises(OptionError, match=r"type torch\.int8"):
        unet.to(torch.int8)
    for name in ("enable_freeu", "set_attn_processor", "fuse_qkv_projections"):
        assert not hasattr(unet, name)
    with pytest.raises(InputError, match="has no manifest"):
        IntegerDenoiser(_without_manifest(denoiser))
    with pytest.raises(OptionError, match="got threads"):
        IntegerDenoiser(unet.runner, threads=2)
    with pytest.raises(OptionError, match="got hash_check"):
        IntegerDenoiser(unet.runner, hash_check=False)


def _without_manifest(denoiser):
    runner = FloatRunner(denoiser)
    runner.manifest = None
    return runner


def test_a_saved_pipeline_is_whole_but_for_the_float_weights_and_opens_with_an_integer_denoiser(unet, tmp_path, caplog):
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    assert "has no float weights" in caplog.text
    names = sorted(path.name for path in (tmp_path / "pipe").rglob("*.*"))
    assert names == ["config.json", "model_index.json", "scheduler_config.json"]
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipe", unet=unet)
    assert drawn(pipeline).shape == (2, 8, 8, 1)


def test_parts_of_the_float_class_are_there_to_be_looked_at_alone(unet):
    part = unet.mid_block.resnets[0]
    assert isinstance(part, ResnetBlock2D)
    assert part.norm1.num_groups == 4
    changes = {
        "a new processor": lambda: setattr(part, "processor", None),
        "register_forward_hook": lambda: part.register_forward_hook(print),
        "forward": lambda: part(torch.ones(1), None),
    }
    for what, change in changes.items():
        with pytest.raises(OptionError, match=rf"got {what} of mid_block\.resnets\.0 in an integer denoiser"):
            change()


def test_a_record_is_called_with_the_plain_values_it_was_made_for(denoiser):
    runner = FloatRunner(denoiser)
    runner.manifest = dataclasses.replace(runner.manifest, constants={"class_labels": 3})
    sample = torch.randn(2, 1, 8, 8)
    with pytest.raises(InputError, match=r"gives class_labels 4, expected 3: this engine was made for that value"):
        IntegerDenoiser(runner)(sample, 5, class_labels=4)
    with pytest.raises(InputError, match="does not give class_labels, expected 3, for which this engine was made"):
        IntegerDenoiser(runner)(sample, 5)


def test_pipelines_offload_and_compile_it_without_a_change(denoiser):
    pytest.importorskip("accelerate")
    pictures = []
    for change in (None, "offload", "compile"):
        unet = IntegerDenoiser(FloatRunner(denoiser))
        pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
        if change == "offload":
            pipeline.enable_model_cpu_offload(device="cpu")
        if change == "compile":
            pipeline.unet = torch.compile(unet, backend="eager")
        pictures.append(drawn(pipeline))
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


def test_a_value_that_is_not_finite_names_the_call_and_the_timestep(denoiser):
    runner = FloatRunner(denoiser)
    runner._run = lambda feeds: {"output": np.full_like(feeds["sample"], np.nan)}
    unet = IntegerDenoiser(runner)
    with pytest.raises(NonFiniteError, match=r"call 1 of the denoiser, timestep \[750"):
        drawn(DDIMPipeline(unet=unet, scheduler=DDIMScheduler()))


def test_an_engine_that_was_given_open_stays_open(unet):
    IntegerDenoiser(unet.runner).close()
    assert unet(torch.randn(1, 1, 8, 8), 5).sample.shape == (1, 1, 8, 8)


def test_labels_are_whole_numbers(tmp_path):
    save_record(random_record(tiny_denoiser(classes=3, **ONE_LEVEL)), tmp_path / "model.pt")
    unet = IntegerDenoiser(tmp_path / "model.pt")
    sample = torch.randn(2, 1, 8, 8)
    assert unet(sample, 5, torch.tensor([0, 2])).sample.shape == sample.shape
    with pytest.raises(InputError, match=r"class_labels is torch\.float32, expected int64"):
        unet(sample, 5, torch.tensor([0.5, 2.0]))


def test_a_timestep_that_is_no_number_is_named(unet):
    for timestep in (float("nan"), torch.tensor(float("nan"))):
        with pytest.raises(InputError, match=r"input timestep holds nan"):
            unet(torch.randn(1, 1, 8, 8), timestep)
    for timestep in (None, "5"):
        with pytest.raises(InputError, match=rf"timestep is {timestep!r}, expected a number"):
            unet(torch.randn(1, 1, 8, 8), timestep)
    sample = torch.randn(1, 1, 8, 8)
    assert torch.equal(unet(sample, np.int64(5)).sample, unet(sample, 5).sample)


def test_a_scheduler_of_ones_own_is_compared_where_that_is_asked(denoiser):
    calibrated = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
    unet = IntegerDenoiser(FloatRunner(dataclasses.replace(denoiser, scheduler_config=calibrated)))
    unet.check_scheduler(EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"))
    with pytest.raises(OptionError, match="DDIMScheduler has beta_schedule 'linear', expected 'scaled_linear'"):
        unet.check_scheduler(DDIMScheduler())
