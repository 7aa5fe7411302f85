"""minmax and DilateQuant on a tiny denoiser: records, determinism, errors, resuming."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy import numerics
from dq_deploy.errors import FileProblemError, NonFiniteError, OptionError
from dq_deploy.methods import Progress, quantize
from dq_deploy.methods.training.resume import discard_state
from dq_deploy.record import Record, content_sha256
from dq_deploy.simulation.fake_quant import IntegerLayer, simulate
from tests.calibration.recorded_runs import recorded
from tests.forked import Forked
from tests.methods.resumable import RESUMABLE
from tests.tiny import tiny_denoiser

QUICK: dict[str, Any] = {"steps": 4, "samples": 4, "iterations": 3, "batch": 4}


def minmax(**options: Any) -> Record:
    return quantize(tiny_denoiser(classes=3), method="minmax", steps=4, samples=4, **options)


@pytest.fixture(scope="module")
def trained() -> Record:
    return quantize(tiny_denoiser(classes=3), **QUICK)


def test_minmax_has_one_table_entry_a_step_or_one_in_all() -> None:
    per_step, static = minmax(), minmax(static=True)
    for record, count in ((per_step, 4), (static, 1)):
        assert record.steps == 4
        for layer in record.layers.values():
            assert layer.out_scale is not None
            assert len(layer.out_scale) == count
            assert all(part.steps == count for part in layer.parts)
            assert all((part.pre == 1).all() for part in layer.parts)


def test_symmetric_activations_have_no_zero_points() -> None:
    for layer in minmax(symmetric_activations=True).layers.values():
        assert (layer.q_min, layer.q_max) == (-128, 127)
        assert all((part.zero_point == 0).all() for part in layer.parts)


def test_split_skips_gives_two_parts_with_their_own_ranges() -> None:
    record = minmax(split_skips=True)
    split = [layer for layer in record.layers.values() if len(layer.parts) == 2]
    assert {layer.name.split(".")[0] for layer in split} == {"up_blocks"}
    assert all(not np.array_equal(*(part.scale for part in layer.parts)) for layer in split)


def test_no_output_tables_where_they_are_not_wanted() -> None:
    assert all(layer.out_scale is None for layer in minmax(outputs=False).layers.values())


def test_the_provenance_says_what_was_done() -> None:
    provenance = minmax().provenance
    assert provenance["method"] == "minmax"
    assert provenance["options"]["weight_bits"] == 4
    assert provenance["source_sha256"] == tiny_denoiser(classes=3).source_sha256
    assert set(provenance["versions"]) == {"dq_deploy", "torch", "diffusers", "numpy"}


def test_more_bits_are_closer_to_the_float_model() -> None:
    denoiser = tiny_denoiser()
    drawn = recorded(denoiser, steps=4, samples=8, seed=9)
    inputs = {name: torch.from_numpy(value) for name, value in drawn.flat().items()}
    x, timestep = inputs["sample"], inputs["timestep"]
    with torch.no_grad():
        expected = denoiser.module(x, timestep, return_dict=False)[0]
    errors = []
    for bits in (2, 4, 8):
        record = quantize(
            denoiser, method="minmax", steps=4, samples=32, weight_bits=bits, activation_bits=bits, keep=("conv_in",)
        )
        errors.append(float((simulate(record)(x, timestep) - expected).square().mean()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_every_layer_of_the_simulation_equals_numerics_on_what_it_receives(trained: Record) -> None:
    simulation = simulate(trained)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in trained.layers:
        layer = simulation.denoiser.get_submodule(name)
        assert isinstance(layer, IntegerLayer)

        def hook(_module: Any, args: Any, output: torch.Tensor, name: str = name) -> None:
            seen[name] = (args[0].clone(), output.clone())

        layer.register_forward_hook(hook)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([0.0, 250, 500, 750, 400, 100])
    simulation(x, timestep, torch.arange(6) % 3)
    step = numerics.step_bucket(timestep.numpy(), trained.step_edges)
    assert step.tolist() == simulation.context.step.tolist()
    assert set(seen) == set(trained.layers)
    for name, (given, output) in seen.items():
        expected = numerics.integer_layer(trained.layers[name], given.numpy(), step)
        np.testing.assert_array_equal(output.numpy(), expected.output, err_msg=name)


def test_training_keeps_zero_points_in_range_and_dilation_at_most_one(trained: Record) -> None:
    for layer in trained.layers.values():
        for part in layer.parts:
            assert part.zero_point.min() >= layer.q_min
            assert part.zero_point.max() <= layer.q_max
            assert part.pre.max() <= 1
            assert part.steps == 4
    assert any((layer.parts[0].pre < 1).any() for layer in trained.layers.values())


def test_training_lowers_the_error_of_every_large_block() -> None:
    options = {**QUICK, "weight_bits": 4, "activation_bits": 4, "batch": 8}
    errors = []
    for iterations in (0, 30):
        record = quantize(tiny_denoiser(), **{**options, "iterations": iterations})
        history = record.provenance["history"]
        errors.append({h["block"]: h["relative_error"] for h in history if "block" in h})
    assert errors[0].keys() == errors[1].keys()
    assert errors[1]["conv_out"] < 0.8 * errors[0]["conv_out"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(trained: Record) -> None:
    again = quantize(tiny_denoiser(classes=3), **QUICK)
    other = quantize(tiny_denoiser(classes=3), **QUICK, seed=1)
    assert content_sha256(again) == content_sha256(trained)
    assert content_sha256(other) != content_sha256(trained)


@pytest.mark.parametrize("ablation", ["weight-dilation", "temporal-quantizer", "distillation"])
def test_each_ablation_leaves_its_part_out(ablation: str) -> None:
    record = quantize(tiny_denoiser(), **{**QUICK, "iterations": 1}, without=(ablation,))
    parts = [part for layer in record.layers.values() for part in layer.parts]
    assert all((part.pre == 1).all() for part in parts) == (ablation == "weight-dilation")
    assert all(part.steps == 1 for part in parts) == (ablation == "temporal-quantizer")
    trained = any("block" in h for h in record.provenance["history"])
    assert trained == (ablation != "distillation")


def test_inputs_of_blocks_beyond_the_memory_are_on_the_disk_and_it_is_said() -> None:
    notes: list[str] = []

    def watch(report: Progress) -> None:
        notes.append(report.note)

    quantize(tiny_denoiser(), **{**QUICK, "iterations": 1, "samples": 32}, memory_gib=0.001, progress=watch)
    assert any("is kept in" in note for note in notes)


def test_a_loss_that_is_not_finite_stops_and_names_the_block() -> None:
    denoiser = tiny_denoiser()
    denoiser.module.get_submodule("mid_block.resnets.0.norm1").bias.data[:] = 3e38  # type: ignore[union-attr, operator, index]
    with pytest.raises(NonFiniteError, match=r"mid_block\.resnets\.0|float model"):
        quantize(denoiser, **QUICK)


class StopHereError(Exception):
    """Ends a run from its progress callback."""


def stopper(block: str) -> Any:
    def watch(report: Progress) -> None:
        if report.block == block:
            raise StopHereError

    return watch


def test_a_stopped_run_goes_on_to_the_same_bytes(trained: Record, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with pytest.raises(StopHereError):
        quantize(tiny_denoiser(classes=3), **QUICK, resume_dir=folder, progress=stopper("mid_block.attentions.0"))
    finished = sorted(path.name for path in folder.glob("block-*"))
    assert finished
    seen: list[str] = []
    record = quantize(
        tiny_denoiser(classes=3), **QUICK, resume_dir=folder, progress=lambda report: seen.append(report.block)
    )
    assert content_sha256(record) == content_sha256(trained)
    assert "conv_in" not in seen
    assert "mid_block.attentions.0" in seen
    discard_state(folder)
    assert not folder.exists()


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StopHereError):
        quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path, progress=stopper("down_blocks.0.resnets.0"))
    with pytest.raises(OptionError, match="its option seed is 0, asked for is 1"):
        quantize(tiny_denoiser(), **QUICK, seed=1, resume_dir=tmp_path)


@pytest.mark.parametrize("victim", ["state.json", "trajectory.safetensors", "block-001.safetensors"])
def test_a_damaged_state_is_named(victim: str, tmp_path: Path) -> None:
    with pytest.raises(StopHereError):
        quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path, progress=stopper("down_blocks.1.resnets.0"))
    path = tmp_path / victim
    if not path.exists():
        path = sorted(tmp_path.glob("block-*"))[0]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(FileProblemError, match="remove"):
        quantize(tiny_denoiser(), **QUICK, resume_dir=tmp_path)


def test_a_killed_process_loses_at_most_one_block(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    command = ("tests.methods.resumable", folder, torch.get_num_threads())
    process = Forked(*command)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("block-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.ended().returncode == -signal.SIGKILL
    kept = len(list(folder.glob("block-*")))
    assert kept >= 4
    resumed = Forked(*command).ended()
    assert resumed.returncode == 0, resumed.stderr
    whole = quantize(tiny_denoiser(), **RESUMABLE)
    assert resumed.stdout.strip() == content_sha256(whole)
