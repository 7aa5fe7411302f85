"""Sizes are told apart by how they go together; what no record can hold is refused by its name."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from dq_deploy.calibration.recording import derive_call
from dq_deploy.calibration.recording.calls import SeenCall, one_a_sample, seen_call, watch_calls
from dq_deploy.calibration.recording.derived_call import Observation
from dq_deploy.calibration.recording.second_calls import grown_size
from dq_deploy.errors import InputError


class Forward(torch.nn.Module):
    def forward(self, sample, timestep, text=None, added: Any = None, scale=1.0, flag=None, return_dict=True):
        return (sample,)


def seen(*args: Any, **kwargs: Any) -> SeenCall:
    signature = inspect.signature(Forward.forward)
    return seen_call(signature.bind(None, *args, **kwargs), signature)


def observed(batch: int, height: int, width: int, tokens: int, **more: Any) -> Observation:
    call = seen(
        torch.zeros(batch, 4, height, width),
        5,
        torch.zeros(batch, tokens, 3),
        {
            "half": [torch.zeros(batch, height // 2, width // 2)],
            "ids": torch.zeros(tokens, 3),
            "odd": torch.zeros(height + 1),
        },
        **more,
    )
    return Observation(call=call, outputs={"output": (batch, 8, height, width)})


def test_names_go_with_what_varies_together() -> None:
    found = derive_call([observed(2, 8, 8, 7), observed(4, 8, 8, 7), observed(2, 12, 16, 7), observed(2, 8, 8, 9)], {})
    assert {item.name: item.shape for item in found.inputs} == {
        "sample": ("B", 4, "height", "width"),
        "timestep": ("B",),
        "text": ("B", "text_1", 3),
        "added.half.0": ("B", "height_2", "width_2"),
        "added.ids": ("text_1", 3),
        "added.odd": ("added_odd_0",),
    }
    assert found.outputs == {"output": ("B", 8, "height", "width")}
    assert found.sizes == {"height": 8, "width": 8, "text_1": 7, "height_2": 4, "width_2": 4, "added_odd_0": 9}


def test_a_mask_may_hold_0_and_1_though_the_first_text_filled_it() -> None:
    call = seen(torch.zeros(1, 4, 8, 8), 5, added={"mask": torch.ones(1, 7, dtype=torch.int64)})
    found = derive_call([Observation(call=call, outputs={"output": (1, 4, 8, 8)})], {})
    assert found.inputs[-1].limits == (0, 1)


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (64, 32), (16, 64), (24, 48), (96, 160)])
def test_a_second_size_is_never_in_proportion(size: tuple[int, int]) -> None:
    height, width = grown_size(*size, 16)
    assert height > size[0]
    assert width > size[1]
    assert height * size[1] != width * size[0]
    found = derive_call([observed(1, *size, 7), observed(1, height, width, 7)], {})
    assert found.inputs[3].shape[-2:] == ("height_2", "width_2")


def test_one_call_alone_fixes_everything_but_the_batch() -> None:
    found = derive_call([observed(2, 8, 8, 7)], {})
    assert found.inputs[0].shape == ("B", 4, 8, 8)
    assert found.sizes == {}


def test_plain_values_that_are_no_defaults_are_constants() -> None:
    call = seen(torch.zeros(1, 4), 5, None, {"a": None, "b": torch.zeros(1)}, scale=0.5, flag={})
    assert call.plain == {"added.a": None, "scale": 0.5}
    assert list(call.tensors) == ["sample", "timestep", "added.b"]
    assert seen(torch.zeros(1, 4), 5, None, {"a": 1, "b": [2, 3]}, scale=1.0).plain == {"added": {"a": 1, "b": [2, 3]}}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"scale": 0.5}, "gives the denoiser scale None in one call and 0.5 in another"),
        ({"flag": torch.zeros(1)}, "gives the denoiser flag in some calls and not in others"),
    ],
)
def test_what_changes_from_call_to_call_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        derive_call([observed(2, 8, 8, 7), observed(4, 8, 8, 7, **other)], {})


def test_what_is_neither_a_tensor_nor_plain_is_refused() -> None:
    with pytest.raises(InputError, match=r"gives the denoiser added\.made, a object, expected"):
        seen(torch.zeros(1, 4), 5, None, {"made": object()})
    with pytest.raises(InputError, match="called without sample and hidden_states"):
        seen(None, 5)


def test_timesteps_are_one_a_sample_of_any_finite_value() -> None:
    sample = torch.zeros(3, 2)
    for value in (-2.5, torch.tensor(-2.5), torch.tensor([-2.5]), torch.full((3,), -2.5), torch.full((3, 1), -2.5)):
        assert one_a_sample(value, sample).tolist() == [-2.5] * 3
    assert one_a_sample(torch.tensor([1, 2, 3]), sample).dtype == torch.float32
    with pytest.raises(InputError, match=r"timestep has shape .* differs within a sample"):
        one_a_sample(torch.zeros(3, 2), sample)


def test_a_call_is_seen_before_it_is_computed_and_the_module_stays_itself() -> None:
    module = Forward()
    calls: list[SeenCall] = []
    with watch_calls(module, calls.append):
        module(torch.ones(2, 3, 4, 4), timestep=7, return_dict=False)
    module(torch.ones(1, 3, 4, 4), 1)
    assert [call.batch for call in calls] == [2]
    assert calls[0].plain == {}
    assert replace(calls[0], sample="sample").tensors["timestep"].tolist() == [7, 7]
