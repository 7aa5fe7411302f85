"""Layers from their parts."""

from __future__ import annotations

import numpy as np

from dq_deploy.methods import options_for
from dq_deploy.methods.prepare.assembly import build_layer
from dq_deploy.methods.prepare.preparation import prepare
from tests.tiny import tiny_denoiser

TABLE = (np.ones(1, np.float32), np.zeros(1, np.int32))


def build(code: int, zero: int | None):
    layer = prepare(tiny_denoiser(), options_for(layer_bits={"conv_in": 8}, outputs=False)).layers["conv_in"]
    codes = np.full(layer.weight.shape, code, np.int8)
    scale = np.ones(len(codes), np.float32)
    zeros = None if zero is None else np.full(len(codes), zero, np.int32)
    return build_layer(layer, tables=[TABLE], weights=[(codes, scale, zeros)], bias=None, output=None, symmetric=False)


def test_weights_without_a_zero_point_get_zeros() -> None:
    assert (build(5, None).parts[0].w_zero_point == 0).all()
    assert (build(5, 3).parts[0].q_weight(0) == 2).all()


def test_weights_less_their_zero_point_may_leave_int8() -> None:
    part = build(100, -100).parts[0]
    assert (part.q_weight(0) == 200).all()
    assert not part.fits_int8
