"""The peers' sampling loop is diffusers' DDIM, and each peer says which packages it needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks import peers
from benchmarks.peers.float_files import float_products, schedule_of
from benchmarks.peers.job import images_of, latencies_ms, peak_mib
from dq_deploy.graph.trace import trace
from dq_deploy.models import call_denoiser, example_inputs
from dq_deploy.models.pipeline import build_scheduler, set_steps
from tests.tiny import tiny_denoiser


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
    config = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "clip_sample": False,
    }
    schedule = schedule_of(config, 4)
    scheduler = build_scheduler(config, "DDIMScheduler")
    set_steps(scheduler, 4)
    assert [row[0] for row in schedule["steps"]] == scheduler.timesteps.tolist()
    assert [row[2] for row in schedule["steps"][:-1]] == [row[1] for row in schedule["steps"][1:]]
    assert (schedule["prediction_type"], schedule["clip"]) == ("v_prediction", None)


@pytest.mark.parametrize("name", peers.NAMES)
def test_every_peer_pins_its_packages_and_has_a_worker(name: str) -> None:
    assert all("==" in line or line in {"sympy", "onnxscript"} for line in peers.requirements(name))
    assert (peers.HERE / f"{name.replace('-', '_')}.py").is_file()


def test_peers_leave_the_time_embedding_and_products_of_activations_float() -> None:
    denoiser = tiny_denoiser()
    graph = trace(denoiser.module, example_inputs(denoiser.call, 2, 0), call=call_denoiser)
    left = float_products(graph)
    products = [node for node in graph.graph if node.op_type in {"Gemm", "MatMul", "Conv"}]
    attentions = sum(name.endswith(".to_q") for name, _ in denoiser.module.named_modules())
    assert len(left) == 2 + 2 * attentions
    layers = [m for m in denoiser.module.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(products) - len(left) == len(layers) - 2


def test_models_are_timed_in_turns_and_memory_is_the_programs_own() -> None:
    seen: list[str] = []
    times = latencies_ms((lambda inputs: seen.append("a"), lambda inputs: seen.append("b")), {})
    assert len(times) == 2
    changes = [x for i, x in enumerate(seen) if i == 0 or seen[i - 1] != x]
    assert changes[:4] == ["a", "b", "a", "b"]
    assert seen.count("a") == seen.count("b")
    assert 20 < peak_mib() < 1e6
