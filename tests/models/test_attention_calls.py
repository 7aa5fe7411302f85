"""Calls of attention by the path of their module, and what stands in their place."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dq_deploy.models.attention_calls import attention_calls


class Inner(torch.nn.Module):
    def forward(self, x, **more):
        return F.scaled_dot_product_attention(x, x, x, **more)


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Inner(), torch.nn.ModuleList([Inner()])

    def forward(self, x):
        mask = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool)
        return self.first(x, scale=0.3) + self.second[0](x, attn_mask=mask) + F.scaled_dot_product_attention(x, x, x)


def test_each_call_is_named_by_the_innermost_module_and_masks_are_told():
    seen = []
    module, x = Outer(), torch.randn(2, 3, 5, 4)
    want = module(x)
    with attention_calls(module, lambda call: seen.append((call.name, call.scale, call.plain))):
        assert torch.equal(module(x), want)
    assert seen == [("first", 0.3, True), ("second.0", 0.5, False)]  # the third call is of no submodule
    assert torch.equal(module(x), want)
    assert not module.first._forward_hooks


def test_what_is_returned_takes_the_place_of_the_call():
    module, x = Outer(), torch.randn(2, 3, 5, 4)
    with attention_calls(module, lambda call: torch.zeros_like(call.q)):
        assert torch.equal(module(x), F.scaled_dot_product_attention(x, x, x))


def test_a_module_that_fails_leaves_no_trace():
    module = Outer()
    with attention_calls(module, lambda _call: None):
        with pytest.raises(RuntimeError):
            module(torch.randn(2, 3, 5, 4).to(torch.int64))
        seen = []
    with attention_calls(module, lambda call: seen.append(call.name)):
        module(torch.randn(2, 3, 5, 4))
    assert seen == ["first", "second.0"]
