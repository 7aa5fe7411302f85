"""Classes with a file of their own compute what diffusers' own class computes."""

from __future__ import annotations

import diffusers
import torch

from dq_deploy.models import build_denoiser, call_arguments, default_call, example_inputs
from tests.configurations.published import ACCEPTED
from tests.configurations.scaled import scaled


def both(name: str) -> tuple[torch.nn.Module, torch.nn.Module, dict[str, torch.Tensor], dict[str, object]]:
    """Ours and diffusers' module with the same weights, and inputs of two samples."""
    small = scaled(next(full for full in ACCEPTED if full.name == name))
    config = dict(small.config)
    torch.manual_seed(0)
    ours = build_denoiser(small.class_name, config)
    own = getattr(diffusers, small.class_name)(**{k: v for k, v in config.items() if k != "_class_name"}).eval()
    own.load_state_dict({key.replace(".layer.", "."): value for key, value in ours.state_dict().items()})
    call = default_call(config, small.sizes)
    return ours, own, {k: torch.from_numpy(v) for k, v in example_inputs(call, 2, 0).items()}, dict(call.constants)


@torch.no_grad()
def test_qwen_image_turns_by_angles_as_by_complex_numbers():
    ours, own, inputs, constants = both("Qwen-Image")
    arguments = call_arguments(inputs, constants)
    torch.testing.assert_close(ours(**arguments).sample, own(**arguments).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_animatediff_takes_one_text_a_sample_for_the_text_of_every_frame():
    ours, own, inputs, _ = both("stable-diffusion-v1-5 with animatediff-motion-adapter-v1-5-2")
    frames = inputs["sample"].shape[2]
    every = inputs["encoder_hidden_states"].repeat_interleave(frames, dim=0)
    expected = own(**{**inputs, "encoder_hidden_states": every}).sample
    torch.testing.assert_close(ours(**inputs).sample, expected)
    torch.testing.assert_close(ours(**{**inputs, "encoder_hidden_states": every}).sample, expected)
