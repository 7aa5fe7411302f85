"""Rows are what the integer product multiplies: windows of a convolution, channel groups, codes times their scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy.methods.layer_bits import LayerBits
from dq_deploy.methods.prepare.preparation import PreparedLayer
from dq_deploy.methods.second_order.statistics import (
    DequantizedInput,
    LayerStatistics,
    columns_of,
    rows_of_input,
)
from dq_deploy.models import LayerSite
from dq_deploy.record import Layer, Part
from dq_deploy.simulation.fake_quant import StepContext


def convolution(groups: int = 1) -> PreparedLayer:
    site = LayerSite(
        name="conv",
        kind="conv2d",
        in_channels=4,
        out_channels=6,
        kernel=(3, 2),
        stride=(2, 1),
        padding=(1, 0, 2, 1),
        dilation=(1, 2),
        groups=groups,
        macs=0,
        input_shape=(1, 4, 7, 8),
        output_shape=(1, 6, 4, 7),
    )
    weight = np.random.default_rng(0).standard_normal((6, 4 // groups, 3, 2)).astype(np.float32)
    bits = LayerBits(name="conv", weight_bits=4, activation_bits=8, reason="")
    return PreparedLayer(
        site=site, bits=bits, widths=(4,), pre=np.ones(4, np.float32), weight=weight, bias=None, fold=""
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_the_sums_are_those_of_the_products_that_the_convolution_adds(groups: int) -> None:
    prepared = convolution(groups)
    x = torch.randn(5, 4, 7, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (0, 1, 1, 2))
    weight = torch.from_numpy(prepared.weight)
    y = torch.nn.functional.conv2d(padded, weight, stride=(2, 1), dilation=(1, 2), groups=groups)
    seen = LayerStatistics(prepared, share=1, seed=0, outputs=True)
    for chunk in (slice(0, 3), slice(3, 5)):
        seen.add(x[chunk], y[chunk])
    seen.finish()
    assert seen.rows == 5 * rows_of_input(prepared.site) == 5 * y[0, 0].numel()
    assert seen.square.shape == (groups, columns_of(prepared), columns_of(prepared))
    torch.testing.assert_close(seen.square, seen.square.transpose(1, 2))
    # y is linear in x: sums of y^T x are the weight times those of x^T x
    rows = weight.double().reshape(groups, 6 // groups, -1)
    torch.testing.assert_close(seen.cross, rows @ seen.square, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(seen.sum_y, (rows @ seen.sum_x[:, :, None])[:, :, 0], rtol=1e-5, atol=1e-4)


def test_a_share_of_the_rows_is_drawn_by_the_seed() -> None:
    prepared = convolution()
    x = torch.randn(50, 4, 7, 8, generator=torch.Generator().manual_seed(2))
    squares = []
    for seed in (0, 0, 1):
        seen = LayerStatistics(prepared, share=0.5, seed=seed, outputs=False)
        seen.add(x, None)
        seen.finish()
        assert seen.rows == 50 * 28 // 2
        squares.append(seen.square)
    assert torch.equal(squares[0], squares[1])
    assert not torch.equal(squares[0], squares[2])
    whole = LayerStatistics(prepared, share=1, seed=0, outputs=False)
    whole.add(x, None)
    whole.finish()
    torch.testing.assert_close(
        squares[0].diagonal(dim1=1, dim2=2), whole.square.diagonal(dim1=1, dim2=2) / 2, rtol=0.2, atol=0
    )


def test_what_is_multiplied_is_the_codes_times_the_scale_of_their_step() -> None:
    parts = tuple(
        Part(
            pre=np.array(pre, np.float32),
            scale=np.array(scale, np.float32),
            zero_point=np.array(zero, np.int32),
            w_code=np.ones((1, 3, len(pre)), np.int8),
            w_zero_point=np.zeros((1, 3), np.int32),
            weight_scale=np.ones((1, 3), np.float32),
        )
        for pre, scale, zero in (([1, 0.5], [0.1, 0.25], [0, 7]), ([2.0], [0.5, 1.0], [3, 0]))
    )
    layer = Layer(name="l", kind="linear", weight_bits=4, activation_bits=4, q_min=0, q_max=15, parts=parts)
    context = StepContext()
    context.step = torch.tensor([0, 1])
    stand_in = DequantizedInput(layer, context)
    x = torch.tensor([[0.31, 0.5, -9.0], [5.0, -1.0, 40.0]])
    # [0] 3 and 2.5 to even, -18 cut at -3; [1] 20 cut at 15 - 7, -2, 80 cut at 15
    expected = [[0.3, 0.2, -1.5], [2.0, -0.5, 15.0]]
    np.testing.assert_allclose(stand_in.of(x).numpy(), expected, rtol=1e-6)
