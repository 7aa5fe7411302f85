"""The float model of a record is loaded as it was when it was quantized: variant, component, single file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import pytest
from safetensors.torch import load_file, save_file

from dq_deploy import load_model
from dq_deploy.errors import ModelError
from dq_deploy.models import float_model_of
from tests.tiny import ONE_LEVEL, tiny_denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def pipeline(tmp_path):
    """Two denoisers, the first with other weights in a variant."""
    folder = tmp_path / "pipe"
    module = tiny_denoiser(**ONE_LEVEL).module
    for name in ("prior", "unet"):
        module.save_pretrained(folder / name)
    state = load_file(folder / "prior" / WEIGHTS)
    save_file({key: value + 1 for key, value in state.items()}, folder / "prior" / WEIGHTS.replace(".", ".ema.", 1))
    entry = ["diffusers", "UNet2DModel"]
    (folder / "model_index.json").write_text(json.dumps({"prior": entry, "unet": entry}))
    return folder


def recorded(found):
    place = {"variant": found.variant, "component": found.component, "config": found.config_source}
    return {"source": found.source, **place}


def test_the_variant_and_the_component_come_back(pipeline):
    found = load_model(pipeline, component="prior", variant="ema")
    own = recorded(found)
    assert float_model_of(own).source_sha256 == found.source_sha256
    moved = pipeline.rename(pipeline.with_name("moved"))
    with pytest.raises(ModelError, match="pipe does not exist"):
        float_model_of(own)
    for path in (moved, moved / "prior"):
        assert float_model_of(own, path).source_sha256 == found.source_sha256


def test_a_single_file_comes_back_with_its_configuration(pipeline, tmp_path):
    file = Path(shutil.copy(pipeline / "unet" / WEIGHTS, tmp_path / "one.safetensors"))
    found = load_model(file, component="unet", config=pipeline)
    own = recorded(found)
    assert float_model_of(own).source_sha256 == found.source_sha256
    assert float_model_of(own, pipeline).source_sha256 == found.source_sha256


def test_a_record_without_a_source_says_what_to_give():
    with pytest.raises(ModelError, match="does not say which float model it was made from; give"):
        float_model_of({})


def test_sizes_that_no_configuration_says_come_from_the_record(tmp_path):
    diffusers.UNet2DModel.from_config({**tiny_denoiser(**ONE_LEVEL).config, "sample_size": None}).save_pretrained(
        tmp_path
    )
    found = load_model(tmp_path, sizes={"height": 8, "width": 16})
    with pytest.raises(ModelError, match="has no sample_size"):
        float_model_of(recorded(found), tmp_path)
    assert float_model_of(recorded(found), tmp_path, sizes=found.call.sizes).call == found.call
