"""Recorded inputs are checked against the model and used as they are."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dq_deploy.calibration import CalibrationSource, read_source, recorded_inputs, rows_in_turn
from dq_deploy.errors import FileProblemError, InputError, ModelError, OptionError
from dq_deploy.methods import quantize
from dq_deploy.models import default_call, example_inputs, input_specs
from tests.tiny import tiny_conditional_config, tiny_conditional_denoiser, tiny_denoiser

SPECS = input_specs(default_call(tiny_conditional_config(sdxl=True)))
EMBEDDINGS = ("encoder_hidden_states", "text_embeds", "time_ids")


def rows(count: int) -> dict[str, np.ndarray]:
    return example_inputs(default_call(tiny_conditional_config(sdxl=True)), count, 3)


def conditions(count: int) -> dict[str, np.ndarray]:
    return {name: value for name, value in rows(count).items() if name in EMBEDDINGS}


def written(path: Path, tensors: dict[str, Any]) -> Path:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path


def test_conditions_are_read_as_the_model_takes_them(tmp_path: Path) -> None:
    given = conditions(3)
    half = written(tmp_path / "c.safetensors", {name: value.astype(np.float16) for name, value in given.items()})
    source = read_source(SPECS, conditions=half)
    assert source.kind == "trajectory"
    assert source.files["conditions"].startswith("c.safetensors ")
    for name, value in source.conditions.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, given[name].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(rows_in_turn(given, 5)["time_ids"], given["time_ids"][[0, 1, 2, 0, 1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeds": None}, "expected encoder_hidden_states, text_embeds, time_ids"),
        ({"sample": np.zeros((3, 4, 8, 8), np.float32)}, "holds encoder_hidden_states, sample"),
        (
            {"encoder_hidden_states": np.zeros((3, 77, 13), np.float32)},
            r"has shape \[3, 77, 13\], expected \[N, tokens, 12",
        ),
        ({"time_ids": np.zeros((2, 6), np.float32)}, "different numbers of rows"),
        ({"text_embeds": np.full((3, 8), np.nan, np.float32)}, "text_embeds holds NaN or infinity"),
        ({"text_embeds": np.zeros((3, 8), bool)}, "text_embeds is bool, expected float32"),
        ({"text_embeds": np.zeros((3, 8), np.int64)}, "text_embeds is int64, expected float32"),
    ],
)
def test_a_wrong_tensor_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = {name: value for name, value in {**conditions(3), **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        read_source(SPECS, conditions=written(tmp_path / "c.safetensors", tensors))


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblemError, match="does not exist"):
        read_source(SPECS, conditions=tmp_path / "none.safetensors")
    path = written(tmp_path / "c.safetensors", conditions(2))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileProblemError, match="is damaged"):
        read_source(SPECS, conditions=path)


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "l.safetensors", rows(2))
    with pytest.raises(OptionError, match="`latents` and `kind` random"):
        read_source(SPECS, kind="random", latents=path)
    with pytest.raises(OptionError, match="needs a file"):
        read_source(SPECS, kind="latents")
    with pytest.raises(OptionError, match="'guess', expected one of trajectory, random, latents"):
        read_source(SPECS, kind="guess")
    with pytest.raises(OptionError, match="takes no embeddings"):
        read_source(input_specs(tiny_denoiser().call), conditions=path)
    embeddings = written(tmp_path / "c.safetensors", conditions(2))
    with pytest.raises(OptionError, match="holds its conditions"):
        read_source(SPECS, conditions=embeddings, latents=path)


def test_recorded_latents_keep_their_timesteps_and_take_the_steps_in_turn() -> None:
    given = rows(5)
    given["timestep"] = np.array([900, 100, 900, 500, 100], np.float32)
    inputs, timesteps = recorded_inputs(given, memory_gib=1)
    assert timesteps.tolist() == [100, 500, 900]
    assert inputs["step"].tolist() == [0, 1, 2, 0, 2]
    assert timesteps[inputs["step"]].tolist() == inputs["timestep"].tolist()
    order = [int(np.flatnonzero((given["sample"] == row).all(axis=(1, 2, 3)))[0]) for row in inputs["sample"]]
    assert sorted(order) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(inputs["text_embeds"], given["text_embeds"][order])
    with pytest.raises(OptionError, match="memory_gib"):
        recorded_inputs(given, memory_gib=1e-6)


def quick(source: CalibrationSource | None = None, **changes: Any) -> Any:
    denoiser = tiny_conditional_denoiser(sdxl=True, **changes)
    return quantize(denoiser, method="minmax", steps=3, samples=2, calibration=source)


def test_the_provenance_says_what_calibrated(tmp_path: Path) -> None:
    told = quick().provenance["calibration"]
    assert told["sampler"] == "DDIMScheduler of DenoiserPipeline"
    assert "random normal embeddings, seed 0" in told["conditions"]
    path = written(tmp_path / "c.safetensors", conditions(2))
    told = quick(read_source(SPECS, kind="random", conditions=path)).provenance["calibration"]
    assert told["sampler"] == "none, unit normal noise at every timestep"
    assert told["conditions"].startswith("2 recorded rows of c.safetensors ")
    latents = {**rows(4), "timestep": np.array([10, 20, 20, 30], np.float32)}
    record = quick(read_source(SPECS, latents=written(tmp_path / "l.safetensors", latents)))
    assert record.provenance["calibration"]["inputs"] == 4
    assert record.provenance["calibration"]["latents"].startswith("l.safetensors ")
    assert record.timesteps.tolist() == [10, 20, 30]


def test_conditions_decide_the_ranges() -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    one, ten = ({**conditions(2), "encoder_hidden_states": np.full((2, 77, 12), v, np.float32)} for v in (1, 10))
    scales = []
    for given in (one, ten):
        layer = quick(CalibrationSource(kind="random", conditions=given)).layers[name]
        scales.append(layer.parts[0].scale)
    np.testing.assert_allclose(scales[1], 10 * scales[0], rtol=1e-5)


def test_random_calibration_feeds_unit_noise_at_every_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    denoiser = tiny_conditional_denoiser()
    kind: Any = type(denoiser.module)
    forward = kind.forward

    @functools.wraps(forward)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["sample"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", watched)
    quantize(denoiser, method="minmax", steps=4, samples=16, calibration=CalibrationSource(kind="random"))
    samples = torch.cat([value for value in seen if not value.is_meta])  # layers are listed on meta tensors
    assert samples.shape[0] == 64
    assert abs(float(samples.mean())) < 0.05
    assert abs(float(samples.std()) - 1) < 0.05


def test_a_model_that_gives_other_channels_than_it_takes_has_no_trajectory() -> None:
    with pytest.raises(ModelError, match="takes 9 channels and gives 4"):
        quick(in_channels=9)
    assert quick(CalibrationSource(kind="random"), in_channels=9).steps == 3


@pytest.mark.parametrize(
    ("scheduler", "highest", "last"),
    [
        ({"_class_name": "DDIMScheduler"}, 1000, 999),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 100}, 100, 99),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}, 1001, 1000),
    ],
)
def test_a_timestep_beyond_the_schedulers_is_refused(
    scheduler: dict[str, Any], highest: float, last: int, tmp_path: Path
) -> None:
    given = rows(2)
    for timestep in (last, highest):
        given["timestep"] = np.array([1, timestep], np.float32)
        path = written(tmp_path / f"{timestep}.safetensors", given)
        read_source(SPECS, latents=path)  # no scheduler is known
        if timestep == last:
            read_source(SPECS, latents=path, scheduler_config=scheduler)
            continue
        with pytest.raises(
            InputError, match=f"timestep holds {highest}, expected 0 to {last}, which the model's scheduler has"
        ):
            read_source(SPECS, latents=path, scheduler_config=scheduler)
