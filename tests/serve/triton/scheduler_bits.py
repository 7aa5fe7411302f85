"""What diffusers' schedulers compute behind model.py, in the numpy that runs this: `scheduler_bits.py MODEL_PY`."""

from __future__ import annotations

import importlib.util
import json
import sys
import types

CASES = [
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 4),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, 20),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 7),
    ("KDPM2DiscreteScheduler", {}, 20),
    ("KDPM2AncestralDiscreteScheduler", {}, 20),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 20),
    ("UniPCMultistepScheduler", {}, 20),
    ("FlowMatchEulerDiscreteScheduler", {}, 20),
    ("DDIMScheduler", {}, 20),
]


def bits(kind, settings, steps):
    """Hash of the timesteps and of a sample behind the last step of a made-up denoiser."""
    import hashlib

    import diffusers
    import torch

    scheduler = getattr(diffusers, kind)(**settings)
    scheduler.set_timesteps(steps)
    sample = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    sample = sample * float(getattr(scheduler, "init_noise_sigma", 1.0))
    scale = getattr(scheduler, "scale_model_input", lambda latent, t: latent)
    torch.manual_seed(2)
    for t in scheduler.timesteps:
        output = torch.tanh(scale(sample, t)) * 0.7 + 0.01 * float(t) / 1000
        sample = scheduler.step(output, t, sample).prev_sample
    return hashlib.sha256(sample.numpy().tobytes() + scheduler.timesteps.numpy().tobytes()).hexdigest()


def every():
    return {f"{kind} {settings} {steps}": bits(kind, settings, steps) for kind, settings, steps in CASES}


def main():
    import numpy as np

    sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
    spec = importlib.util.spec_from_file_location("loop", sys.argv[1])
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    print(json.dumps({"numpy": np.__version__, "bits": every()}))


if __name__ == "__main__":
    main()
