"""The call is derived from every form of pipeline, and what is recorded is what its denoiser was given."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("transformers") is None:
    pytest.skip("needs transformers, which text pipelines of diffusers import", allow_module_level=True)

from PIL import Image

from dq_deploy.calibration.recording import SamplingRun, call_of_pipeline
from dq_deploy.methods.ranges.step_ranges import model_inputs
from dq_deploy.models import call_denoiser
from tests.calibration.recording import tiny_forms

SIZES = ("height", "width")
TEXT = ("B", "tokens", 12)
LATENT = ("B", 4, *SIZES)
FORMS: dict[str, tuple[dict[str, tuple[int | str, ...]], dict[str, Any], tuple[int | str, ...]]] = {
    "sdxl": (
        {
            "sample": LATENT,
            "timestep": ("B",),
            "encoder_hidden_states": ("B", "tokens", 24),
            "added_cond_kwargs.text_embeds": ("B", 8),
            "added_cond_kwargs.time_ids": ("B", 6),
        },
        {},
        LATENT,
    ),
    "img2img": ({"sample": LATENT, "timestep": ("B",), "encoder_hidden_states": TEXT}, {}, LATENT),
    "controlnet": (
        {
            "sample": LATENT,
            "timestep": ("B",),
            "encoder_hidden_states": TEXT,
            "down_block_additional_residuals.0": ("B", 8, *SIZES),
            "down_block_additional_residuals.1": ("B", 8, *SIZES),
            "down_block_additional_residuals.2": ("B", 8, "height_2", "width_2"),
            "down_block_additional_residuals.3": ("B", 16, "height_2", "width_2"),
            "mid_block_additional_residual": ("B", 16, "height_2", "width_2"),
        },
        {},
        LATENT,
    ),
    "consistency": (
        {"sample": LATENT, "timestep": ("B",), "encoder_hidden_states": TEXT, "timestep_cond": ("B", 8)},
        {},
        LATENT,
    ),
    "one_step": (
        {"sample": ("B", 1, *SIZES), "timestep": ("B",), "class_labels": ("B",)},
        {},
        ("B", 1, *SIZES),
    ),
    "dit": (
        {"hidden_states": ("B", 4, 8, 8), "timestep": ("B",), "class_labels": ("B",)},
        {},
        ("B", 8, 8, 8),
    ),
    "pixart": (
        {
            "hidden_states": LATENT,
            "encoder_hidden_states": ("B", "tokens", 16),
            "timestep": ("B",),
            "encoder_attention_mask": ("B", "tokens"),
        },
        {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        ("B", 8, *SIZES),
    ),
    "sd3": (
        {
            "hidden_states": LATENT,
            "encoder_hidden_states": ("B", "tokens", 24),
            "pooled_projections": ("B", 16),
            "timestep": ("B",),
        },
        {},
        LATENT,
    ),
    "flux": (
        {
            "hidden_states": ("B", "image_tokens", 16),
            "encoder_hidden_states": ("B", "tokens", 24),
            "pooled_projections": ("B", 12),
            "timestep": ("B",),
            "img_ids": ("image_tokens", 3),
            "txt_ids": ("tokens", 3),
            "guidance": ("B",),
        },
        {},
        ("B", "image_tokens", 16),
    ),
}
"""Inputs in the order of the forward, constants, and the output's shape."""


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_inputs_sizes_and_constants_are_found_and_the_rows_give_the_outputs_again(form: str, picture: Path) -> None:
    torch.manual_seed(0)
    make = getattr(tiny_forms, form)
    pipeline, asked = make(picture) if form in ("img2img", "controlnet") else make()
    module = tiny_forms.denoiser_of(pipeline)
    derived = call_of_pipeline(pipeline, module, asked, {})
    inputs, constants, output = FORMS[form]
    assert {item.name: item.shape for item in derived.call.inputs} == inputs
    assert list(derived.call.constants.items()) == list(constants.items())
    assert derived.call.outputs == {"output": output}
    assert len(derived.notes) == (form == "dit"), derived.notes
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _m, _a, out: outputs.append(out[0]))
    run = SamplingRun(pipeline, module, derived.call, asked)
    found = run.record(2, memory_gib=1)
    handle.remove()
    flat = found.flat()
    assert flat["trajectory"].max() == 1
    drawn = torch.cat(outputs)[-found.rows.count :]  # zeros before, where only the timesteps are asked for
    wanted = drawn[torch.from_numpy(np.lexsort((found.step, nth_of(found.step))))]
    with torch.no_grad():
        got = call_denoiser(module, model_inputs(flat, slice(None), derived.call))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def nth_of(step: np.ndarray) -> np.ndarray:
    seen: dict[int, int] = {}
    nth = []
    for value in step.tolist():
        nth.append(seen.get(value, 0))
        seen[value] = nth[-1] + 1
    return np.array(nth)
