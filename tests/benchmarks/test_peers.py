"""The peers' sampling loop is diffusers' DDIM, and each peer says which packages it needs."""

from __future__ import annotations

import numpy as np
import peers
import pytest
import torch
from diffusers import DDIMScheduler
from peers.float_files import schedule_of
from peers.job import images_of

from dq_deploy.calibration import build_ddim


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_loop_of_the_peers_is_ddim(prediction: str, clip: float | None) -> None:
    steps, count = 5, 3
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=clip is not None)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.tolist()
    rows = [[t, alphas[t], alphas[t - 200] if t >= 200 else 1.0] for t in scheduler.timesteps.tolist()]
    noise = np.random.default_rng(0).standard_normal((count, 1, 4, 4)).astype(np.float32)

    def denoise(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.sin(inputs["sample"] * 3) + inputs["timestep"][:, None, None, None] / 1000

    x = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        output = denoise({"sample": x.numpy(), "timestep": np.full(count, float(t), np.float32)})
        x = scheduler.step(torch.from_numpy(output), t, x).prev_sample
    mine = images_of(denoise, noise, None, {"steps": rows, "prediction_type": prediction, "clip": clip})
    np.testing.assert_allclose(mine, np.clip(x.numpy(), -1, 1), atol=1e-5)


def test_the_schedule_holds_the_samplers_numbers() -> None:
    config = {"num_train_timesteps": 1000, "prediction_type": "v_prediction", "clip_sample": False}
    schedule = schedule_of(config, 4)
    scheduler = build_ddim(config, 4)
    assert [row[0] for row in schedule["steps"]] == scheduler.timesteps.tolist()
    assert [row[2] for row in schedule["steps"][:-1]] == [row[1] for row in schedule["steps"][1:]]
    assert (schedule["prediction_type"], schedule["clip"]) == ("v_prediction", None)


@pytest.mark.parametrize("name", peers.NAMES)
def test_every_peer_pins_its_packages_and_has_a_worker(name: str) -> None:
    assert all("==" in line or line in {"sympy", "onnxscript"} for line in peers.requirements(name))
    assert (peers.HERE / f"{name.replace('-', '_')}.py").is_file()
