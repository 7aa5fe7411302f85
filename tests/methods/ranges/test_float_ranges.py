"""The largest output of every module is noted while ranges are calibrated."""

from __future__ import annotations

import pytest
import torch

from dq_deploy import load_record, quantize, save_record
from dq_deploy.errors import NonFiniteError
from dq_deploy.methods.ranges.float_ranges import watch_outputs
from tests.calibration.recorded_runs import recorded
from tests.tiny import tiny_denoiser


class Toy(torch.nn.Module):
    """A sum between two children, a list of modules, an output in a dict, one of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x)["sample"]


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.Identity()
        self.steps = torch.nn.ModuleList([torch.nn.ReLU(), torch.nn.Tanh()])
        self.index = Index()

    def forward(self, x):
        y = self.norm(x)
        self.index(x)
        y = self.steps[0](y + 100 * x)
        return {"sample": self.steps[1](y), "more": (x, [x - 1])}


class Index(torch.nn.Module):
    def forward(self, x):
        return x.argmax(), None


def test_outputs_and_what_is_handed_to_children_count():
    module, x = Toy(), torch.tensor([[-3.0, 2.0]])
    with watch_outputs(module) as ranges:
        module(x)
        module(x / 2)
    assert ranges == {
        "block.norm": 3.0,
        "block.steps.0": pytest.approx(202.0),
        "block.steps.1": 1.0,
        "block": pytest.approx(303.0),
    }


def test_nothing_is_left_behind_on_the_modules():
    module = Toy()
    with watch_outputs(module):
        pass
    assert not any(child._forward_hooks for child in module.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_its_module(value):
    module = Toy()

    def watched():
        with watch_outputs(module):
            module(torch.tensor([[1.0, value]]))
            module(torch.tensor([[1.0, 1.0]]))

    with pytest.raises(NonFiniteError, match=r"layer block(\.norm)? gives NaN or infinity"):
        watched()


@pytest.mark.parametrize("method", ["minmax", "dilatequant"])
def test_every_method_fills_them_and_they_survive_the_file(method, tmp_path):
    denoiser = tiny_denoiser()
    options = {"iterations": 1} if method == "dilatequant" else {}
    record = quantize(denoiser, method=method, steps=2, samples=2, **options)
    called = {
        name for name, child in denoiser.module.named_modules() if name and not isinstance(child, torch.nn.ModuleList)
    }
    ranges = record.float_ranges
    missing = {name for name in called - set(ranges) if "dropout" not in name}
    assert not missing
    assert set(ranges) <= called
    assert ranges["time_proj"] == pytest.approx(1.0, abs=0.01)
    for name in ("conv_in", "mid_block", "down_blocks.0.resnets.0", "mid_block.attentions.0.group_norm"):
        assert 0 < ranges[name] < 100
    # what a block hands to its layers counts for it
    assert ranges["mid_block.resnets.1"] >= ranges["mid_block.resnets.1.nonlinearity"]
    save_record(record, tmp_path / "m.pt")
    assert load_record(tmp_path / "m.pt").float_ranges == ranges


def test_they_are_the_maxima_over_all_calibration_inputs():
    """Against hooks of their own on the same inputs."""
    denoiser = tiny_denoiser()
    record = quantize(denoiser, method="minmax", steps=2, samples=3)
    drawn = recorded(denoiser, steps=2, samples=3)
    seen = {}
    names = ("conv_in", "mid_block", "conv_norm_out", "up_blocks.0.resnets.1.nonlinearity")
    for name in names:

        def note(_module, _args, output, name=name):
            seen[name] = max(seen.get(name, 0.0), float(output.abs().max()))

        denoiser.module.get_submodule(name).register_forward_hook(note)
    inputs = drawn.flat()
    with torch.inference_mode():
        denoiser.module(torch.from_numpy(inputs["sample"]), torch.from_numpy(inputs["timestep"]))
    for name in names:
        assert record.float_ranges[name] == pytest.approx(seen[name], rel=1e-5)
