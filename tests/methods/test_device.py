"""Where methods run: refused without a GPU, and no tensor stays behind on the CPU where others are elsewhere.

Without a GPU the device `meta` stands for one: torch refuses an operation of tensors on it and on the CPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.calibration.recording.placing import placed
from dq_deploy.errors import OptionError
from dq_deploy.methods import options_for, quantize
from dq_deploy.methods.blocks.prefix import call_block
from dq_deploy.methods.blocks.storage import BlockStore
from dq_deploy.methods.blocks.walk import QuantizedBlock
from dq_deploy.methods.second_order.statistics import DequantizedInput, LayerStatistics
from dq_deploy.methods.training.trainable import TrainableLayer
from dq_deploy.models import call_denoiser
from dq_deploy.simulation.fake_quant import StepContext, simulate
from tests.methods.training.test_block_reconstruction import FIRST, beginning
from tests.tiny import ONE_LEVEL, tiny_denoiser


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_runs() -> None:
    with pytest.raises(OptionError, match=r"device is cuda, but torch .* sees no GPU .*use `device=\"cpu\"`"):
        quantize(tiny_denoiser(), method="minmax", device="cuda")
    with pytest.raises(OptionError, match="device is 'tpu', expected one of cpu, cuda"):
        options_for(device="tpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["minmax", "gptq", "dilatequant", "dmq", "eda-dm", "quest"])
def test_every_method_runs_on_a_gpu_and_gives_about_the_same_record(method: str) -> None:
    few: dict[str, Any] = {"steps": 2, "samples": 4, "iterations": 2, "scaling_iterations": 2, "finetune_iterations": 2}
    here, there = (quantize(tiny_denoiser(), method=method, device=device, **few) for device in ("cpu", "cuda"))
    for name, layer in here.layers.items():
        np.testing.assert_allclose(there.layers[name].parts[0].scale, layer.parts[0].scale, rtol=1e-2)


@pytest.mark.parametrize("weights", ["straight-through", "adaround", "fixed"])
@pytest.mark.parametrize("again", [False, True])
def test_a_trainable_layer_goes_whole(weights: str, again: bool) -> None:
    prepared, start, _, _ = beginning()
    name = f"{FIRST}.conv1"
    context = StepContext()
    context.step = torch.tensor([0, 1, 1])
    groups = np.array([0, 0])
    layer = TrainableLayer(
        prepared.layers[name],
        start[name],
        1.0,
        context,
        weights=weights,
        groups=groups,
        drop=0.5,
        generator=torch.Generator(),
    ).to("meta")
    layer.again = again
    layer.parameter_groups({"weight": 1.0, "rounding": 1.0, "scale": 1.0, "zero_point": 1.0, "bias": 1.0})
    y = layer(torch.zeros((3, *prepared.layers[name].site.input_shape[1:]), device="meta"))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in layer.parameters() if p.requires_grad)


def test_an_integer_block_and_the_statistics_of_its_layers_go_whole() -> None:
    prepared, start, _, _ = beginning()
    block = QuantizedBlock(prepared.module, FIRST, "meta")
    block.root.to("meta")
    context = StepContext()
    context.step = torch.tensor([0, 1])
    block.place({name: layer for name, layer in start.items() if name.startswith(FIRST)}, context)
    x = torch.zeros((2, 16, 4, 4), device="meta")
    assert call_block(block.module, ((x, torch.zeros((2, 32), device="meta")), {})).is_meta
    name = f"{FIRST}.conv1"
    given = DequantizedInput(start[name], context).to("meta").of(x)
    seen = LayerStatistics(prepared.layers[name], share=0.5, seed=0, outputs=True, device="meta")
    seen.add(given, x)
    seen.finish()
    assert seen.square.is_meta
    assert seen.rows == 16


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_blocks_give_is_kept_here_and_taken_there(on_disk: bool) -> None:
    room = BlockStore(on_disk=on_disk, device="meta").room((4, 2), torch.zeros(1, device="meta"))
    assert room.values.device.type == "cpu"
    assert room.take(slice(0, 2)).is_meta
    assert room.take(torch.tensor([1])).is_meta


def test_inputs_are_given_where_the_denoiser_is() -> None:
    module = tiny_denoiser(**ONE_LEVEL).module
    inputs = {"sample": torch.zeros(2, 1, 8, 8), "timestep": torch.zeros(2)}
    assert call_denoiser(module.to(torch.float32), inputs).device.type == "cpu"
    record = quantize(tiny_denoiser(**ONE_LEVEL), method="minmax", steps=2, samples=2)
    assert call_denoiser(simulate(record).to("cpu"), inputs).shape == (2, 1, 8, 8)


def test_a_pipeline_that_drew_elsewhere_has_its_own_tensors_again() -> None:
    module, text = tiny_denoiser(**ONE_LEVEL).module, torch.nn.BatchNorm1d(3)
    pipeline = SimpleNamespace(components={"denoiser": module, "text": text, "name": "mine"})
    places = [value.data_ptr() for value in (*module.parameters(), *text.buffers())]
    with placed(pipeline, module, "meta"):
        assert all(value.is_meta for part in (module, text) for value in part.state_dict().values())
    assert [value.data_ptr() for value in (*module.parameters(), *text.buffers())] == places
    with placed(pipeline, module, "cpu"):
        assert [value.data_ptr() for value in module.parameters()] == places[: len(list(module.parameters()))]
