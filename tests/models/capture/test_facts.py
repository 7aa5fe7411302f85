"""What has no integer form is named, and what cannot run is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dq_deploy import models
from dq_deploy.errors import ModelError
from dq_deploy.models.capture.captured import captured
from dq_deploy.record import Call, CallInput
from tests.models.capture.small import DIT, FLUX, small

CALL = Call(
    inputs=(
        CallInput(name="sample", dtype="float32", shape=("B", 4, 8, 8)),
        CallInput(name="timestep", dtype="float32", shape=("B",)),
    ),
    outputs={"output": ("B", 4, 8, 8)},
)


class Doubled(torch.nn.Linear):
    """A layer with another forward than torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Odd(torch.nn.Module):
    """Layers that can be integers, and one of each kind that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.circular = torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.up = torch.nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.line = torch.nn.Conv1d(4, 4, 1)
        self.heads = torch.nn.MultiheadAttention(4, 2, batch_first=True)
        self.shared = torch.nn.Linear(4, 4)
        self.twice = torch.nn.Linear(4, 4)
        self.unused = torch.nn.Linear(4, 4)
        self.doubled = Doubled(4, 4)
        self.places = torch.nn.Linear(4, 4)
        self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        x = torch.nn.functional.avg_pool2d(self.up(self.circular(self.plain(sample))), 2)
        tokens = self.line(x.flatten(2)).transpose(1, 2) * self.scale
        tokens = self.heads(tokens, tokens, tokens)[0] + self.shared(tokens) @ self.shared.weight
        tokens += (
            self.doubled(tokens)
            + self.twice(self.twice(tokens))
            + self.places(torch.zeros(64, 4, device=sample.device))
        )
        return ((tokens + timestep[:, None, None]).transpose(1, 2).reshape(sample.shape),)


def test_layers_without_an_integer_form_are_named_with_the_reason() -> None:
    module = Odd()
    sites = {site.name: site.float_reason for site in models.quantizable_layers(module, CALL)}
    assert sites["plain"] == ""
    assert sites["twice"] == "it runs 2 times in a step, and ranges are of one run"
    assert sites["shared"] == "its weight is read outside of the layer too"
    assert sites["places"] == "the leading axis of its input does not hold the samples, which have a step each"
    others = models.other_layers(module, CALL)
    assert others["circular"].startswith("it pads with mode 'circular'")
    assert others["up"] == "it is a ConvTranspose2d, which has no integer form"
    assert others["line"] == "it is a Conv1d, which has no integer form"
    assert others["heads"] == "it is a MultiheadAttention, which has no integer form"
    assert others["doubled"] == "it is a Doubled, which has no integer form"
    assert others["unused"] == "it does not run when the denoiser is called so"
    assert set(sites) | set(others) == {
        name for name, child in module.named_modules() if next(child.parameters(recurse=False), None) is not None
    } - {""}


def test_work_without_an_integer_form_counts_in_the_whole() -> None:
    macs = models.macs_of(Odd(), CALL)
    assert macs.of_all == macs.of_quantizable + macs.attention + macs.other
    up, line, circular = 64 * 4 * 4 * 4, 64 * 4 * 4, 64 * 4 * 4 * 9
    projections, shared = 64 * 4 * (12 + 4 + 4), 64 * 4 * 4
    assert macs.other == up + line + circular + projections + shared
    assert macs.attention == 2 * 64 * 64 * 4


def test_a_tensor_written_in_place_leaves_what_was_read_before_as_it_was() -> None:
    class InPlace(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x = self.norm(sample)
            y = self.one(x)
            x[..., 0].add_(1)
            return y + self.two(x) + timestep[:, None, None, None]

    call = replace(CALL, inputs=(replace(CALL.inputs[0], shape=("B", 2, 3, 4)), CALL.inputs[1]), outputs={})
    assert models.fold_sites(InPlace(), call) == []  # the second reader's tensor is another one
    assert "two" in models.fold_refusals(InPlace(), call)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"timestep": ("B", 16)}, r"timesteps of shape \['B', 16\], expected one a sample"),
        ({"hidden_states": ("B", 3, 8, 8)}, r"cannot run as it is called: .*\(in layer pos_embed\.proj\)"),
    ],
)
def test_a_call_that_cannot_be_is_refused_in_one_line(inputs: dict[str, Any], message: str) -> None:
    module, call = small(DIT)
    changed = tuple(replace(item, shape=inputs.get(item.name, item.shape)) for item in call.inputs)
    with pytest.raises(ModelError, match=message) as caught:
        models.quantizable_layers(module, replace(call, inputs=changed))
    assert "\n" not in str(caught.value)


def test_facts_are_found_once_and_at_any_batch() -> None:
    module, call = small(FLUX)
    assert captured(module, call) is captured(small(FLUX)[0], call)
    shapes = {site.name: site.input_shape for site in models.quantizable_layers(module, call, batch=2)}
    tokens = call.sizes["image_tokens"]
    assert shapes["x_embedder"] == (2, tokens, module.get_submodule("x_embedder").in_features)


def test_layers_keep_their_hooks_and_values_when_they_are_listed() -> None:
    module, call = small(DIT, device="cpu")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    models.quantizable_layers(module, call)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(child._forward_pre_hooks or "forward" in vars(child) for child in module.modules())
