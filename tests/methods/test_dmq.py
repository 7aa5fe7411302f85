"""DMQ from end to end on tiny denoisers of both families: what is in the record, exactness, ablations, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy import numerics
from dq_deploy.errors import NonFiniteError
from dq_deploy.methods import Progress, quantize
from dq_deploy.methods.scaling import equivalent_scaling
from dq_deploy.models import call_denoiser, call_of_record, example_inputs
from dq_deploy.record import Record, content_sha256
from dq_deploy.simulation.fake_quant import simulate
from tests.tiny import tiny_conditional_denoiser, tiny_denoiser

QUICK: dict[str, Any] = {
    "method": "dmq",
    "steps": 4,
    "samples": 4,
    "iterations": 2,
    "batch": 4,
    "scaling_iterations": 3,
    "activation_bits": 6,
    # so that the few votes of a tiny model scale some channels
    "agreement": 0.5,
}
MAKE = {"unet2d": tiny_denoiser, "unet2d_condition": tiny_conditional_denoiser}


@pytest.fixture(scope="module", params=list(MAKE))
def record(request: Any) -> Record:
    return quantize(MAKE[request.param](), **QUICK)


def stage(record: Record, name: str) -> dict[str, Any]:
    return next(h for h in record.provenance["history"] if h.get("stage") == name)


def test_weights_have_zero_points_and_skips_are_split(record: Record) -> None:
    names = {name for name, layer in record.layers.items() if len(layer.parts) == 2}
    assert any(name.endswith("conv_shortcut") for name in names)
    zero = [part.w_zero_point for layer in record.layers.values() for part in layer.parts if layer.weight_bits == 4]
    assert any(z.any() for z in zero)


def test_learned_factors_are_in_pre_and_in_the_history(record: Record) -> None:
    errors = stage(record, "learned-scaling")["relative_error"]
    scaled = {name for name, error in errors.items() if error["after"] < error["before"]}
    assert scaled
    for name in scaled:
        layer = record.layers[name]
        assert any((part.pre != 1).any() for part in layer.parts)
        assert layer.fold.startswith("multiplied at run time")


def test_shifted_skips_are_stored_in_eight_bits_and_the_history_says_so(record: Record) -> None:
    notes = stage(record, "power-of-two")["layers"]
    assert set(notes) == {name for name in record.layers if name.endswith("conv_shortcut")}
    shifted = {name for name, note in notes.items() if "stored" in note}
    assert shifted
    assert {name for name in notes if record.layers[name].weight_bits == 8} == shifted


def test_the_simulation_of_the_record_is_exact(record: Record) -> None:
    simulation = simulate(record)
    seen: dict[str, Any] = {}
    for name in record.layers:
        simulation.denoiser.get_submodule(name).register_forward_hook(
            lambda m, a, y, name=name: seen.__setitem__(name, (a[0].clone(), y.clone()))
        )
    inputs = example_inputs(call_of_record(record), 4, 0)
    with torch.no_grad():
        call_denoiser(simulation, {key: torch.from_numpy(value) for key, value in inputs.items()})
    step = simulation.context.step.numpy()
    assert set(seen) == set(record.layers)
    for name, (x, y) in seen.items():
        expected = numerics.integer_layer(record.layers[name], x.numpy(), step).output
        np.testing.assert_array_equal(y.numpy(), expected, err_msg=name)


def test_without_every_part_it_is_ranges_alone() -> None:
    parts = ("learned-scaling", "timestep-weighting", "reconstruction", "power-of-two", "split-skips")
    record = quantize(tiny_denoiser(), **QUICK, without=parts)
    assert [h["stage"] for h in record.provenance["history"]] == ["ranges"]
    for layer in record.layers.values():
        assert len(layer.parts) == 1
        assert (layer.parts[0].pre == 1).all()


def test_groups_of_steps_share_quantizers_and_vote_by_themselves() -> None:
    record = quantize(
        tiny_denoiser(),
        **{**QUICK, "iterations": 0},
        step_groups=2,
        power_of_two="per-group",
        without=("learned-scaling",),
    )
    for layer in record.layers.values():
        for part in layer.parts:
            assert part.scale[0] == part.scale[1]
            assert part.scale[2] == part.scale[3]
    assert stage(record, "power-of-two")["votes"] == "per-group"


class StopHereError(Exception):
    """Ends a run from its progress callback."""


def test_a_stopped_run_takes_its_learned_scales_again(tmp_path: Path) -> None:
    def stop(report: Progress) -> None:
        if report.block == "mid_block.resnets.0" and report.stage == "distill":
            raise StopHereError

    with pytest.raises(StopHereError):
        quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path, progress=stop)
    stages: set[str] = set()
    resumed = quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path, progress=lambda report: stages.add(report.stage))
    assert "scales" not in stages
    assert content_sha256(resumed) == content_sha256(quantize(tiny_denoiser(), **QUICK))


def test_diverged_scales_are_learned_on_at_a_lower_rate_behind_the_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = equivalent_scaling.learn_layer

    def broken(layer: Any, *rest: Any, **more: Any) -> Any:
        if layer.site.name == "mid_block.resnets.0.conv1":
            raise NonFiniteError(f"layer {layer.site.name}: the loss is nan")
        return whole(layer, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(equivalent_scaling, "learn_layer", broken)
        with pytest.raises(NonFiniteError, match=r"conv1: the loss is nan; the layers before it are kept in"):
            quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path)
    learned: list[str] = []
    watch = lambda report: learned.append(report.block) if report.stage == "scales" else None  # noqa: E731
    record = quantize(tiny_denoiser(), **QUICK, lr_equivalent=1e-3, resume_dir=tmp_path, progress=watch)
    assert learned[0] == "mid_block.resnets.0.conv1"
    assert "down_blocks.0.resnets.0.conv1" not in learned
    assert stage(record, "learned-scaling")["learning_rate"] == 1e-3
