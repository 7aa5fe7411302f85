"""Any class of diffusers that is told the time is a denoiser; the others are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dq_deploy import models
from dq_deploy.calibration import read_source
from dq_deploy.errors import ModelError, RecordError
from dq_deploy.methods import quantize
from dq_deploy.models.buffers import computed_buffers
from dq_deploy.record import load_record, save_record
from tests.models.capture.small import DIT, small
from tests.tiny import SCHEDULER

CLASS = "DiTTransformer2DModel"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("NoSuchModel", "diffusers has no class of this name"),
        ("DDIMScheduler", "is no model that is told a timestep"),
        ("AutoencoderKL", "is no model that is told a timestep"),
        ("Lumina2Transformer2DModel", "would need the places of its tokens computed from the mask"),
        ("ZImageTransformer2DModel", "would need a forward with a batch in front"),
        ("StableCascadeUNet", "calls its timestep 'timestep_ratio', expected 'timestep'"),
    ],
)
def test_what_does_not_denoise_is_refused_by_name(family: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        models.build_denoiser(family, {})
    assert "\n" not in str(caught.value)


def test_a_class_that_no_test_has_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "_class_name": "SanaTransformer2DModel",
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 4,
        "cross_attention_dim": 8,
        "caption_channels": 6,
        "sample_size": 8,
        "patch_size": 1,
    }
    tried = tuple(name for name in models.TRIED if name != config["_class_name"])
    monkeypatch.setattr("dq_deploy.models.family.TRIED", tried)
    family = models.family_of(config)
    module = models.build_denoiser(family, config, device="meta")
    assert models.quantizable_layers(module, models.default_call(config))
    assert models.words_of_untried(family).startswith("SanaTransformer2DModel was never tried here")
    assert not any(models.words_of_untried(models.CLASS_NAMES.get(name, name)) for name in tried)


def test_a_module_without_weights_has_the_buffers_that_no_file_holds() -> None:
    bare, _ = small(DIT)
    whole, _ = small(DIT, device="cpu")
    values = computed_buffers(whole)
    assert list(values) == ["pos_embed.pos_embed"]
    assert torch.equal(computed_buffers(bare)["pos_embed.pos_embed"], values["pos_embed.pos_embed"])
    assert all(value.is_meta for value in bare.state_dict().values())


def test_a_record_carries_buffers_that_no_file_holds(tmp_path: Path) -> None:
    module, call = small(DIT, device="cpu")
    config = {**{key: value for key, value in module.config.items() if key[0] != "_"}, "_class_name": CLASS}
    denoiser = models.Denoiser(
        family=models.family_of(config),
        module=module,
        config=config,
        call=call,
        scheduler_config=dict(SCHEDULER),
        source="small",
        source_sha256="0" * 64,
    )
    computed_buffers(module)["pos_embed.pos_embed"] += 1  # another machine's sines
    source = read_source(models.input_specs(call), kind="random", scheduler_config=dict(SCHEDULER))
    record = quantize(denoiser, method="minmax", steps=2, samples=1, calibration=source)
    save_record(record, tmp_path / "m.safetensors")
    read = load_record(tmp_path / "m.safetensors")
    values = computed_buffers(module)["pos_embed.pos_embed"]
    assert record.family == CLASS
    assert torch.equal(computed_buffers(models.denoiser_from_record(read))["pos_embed.pos_embed"], values)
    silent = replace(
        read, float_parameters={k: v for k, v in read.float_parameters.items() if k != "pos_embed.pos_embed"}
    )
    own = computed_buffers(models.denoiser_from_record(silent))["pos_embed.pos_embed"]
    assert torch.equal(own + 1, values)
    wrong = replace(
        read, float_parameters={**read.float_parameters, "pos_embed.pos_embed": np.zeros((1, 2), np.float32)}
    )
    with pytest.raises(RecordError, match=r"pos_embed\.pos_embed is torch\.float32\(1, 2\), expected"):
        models.denoiser_from_record(wrong)
