"""Between the layers no more is believed to be rounding than a thousandth, or what float32 itself is seen to lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy.models import call_of_record, denoiser_from_record, denoiser_outputs
from dq_deploy.verify.inputs import batch_at
from dq_deploy.verify.output.float_replay import FloatPathCheck
from tests.configurations.published import small_forms
from tests.configurations.trial import quantized, small_denoiser

AFTER_ROTATIONS = "transformer_blocks.0.attn1.to_out.0"


@pytest.fixture(scope="module")
def record():
    """LTX-Video's form, which rotates by angles of 10^4."""
    return quantized(small_denoiser(small_forms()["LTX-Video"]), weight_bits=8)


def test_what_float32_loses_itself_is_no_fault_and_twenty_times_that_is(record):
    batch = batch_at(record, [0, 1], seed=0, kind="mixed")
    module, values = denoiser_from_record(record), {}
    for name in record.layers:
        hook = lambda _module, args, y, name=name: values.update({name: (args[0].numpy(), y.numpy())})  # noqa: E731
        module.get_submodule(name).register_forward_hook(hook)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in batch.feeds.items()}
    with torch.no_grad():
        results = denoiser_outputs(module, tensors, call_of_record(record).constants)
    finals = tuple(value.numpy() for value in results)

    def problem_with(x):
        check = FloatPathCheck(record=record, layers=list(record.layers))
        check.add(batch, values | {AFTER_ROTATIONS: (x, values[AFTER_ROTATIONS][1])}, finals)
        return check.result().problem

    right = values[AFTER_ROTATIONS][0]
    assert problem_with(right) == ""
    assert f"the input of layer {AFTER_ROTATIONS} is off by" in problem_with(right + 0.02 * np.abs(right).max())
