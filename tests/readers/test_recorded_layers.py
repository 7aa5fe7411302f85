"""Single layers of real files: weights and codes as the sources' own code recorded them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dq_deploy.numerics import quantize_centred, step_bucket
from tests.readers.recorded_files import FILES, recorded


def test_there_is_a_layer_of_every_source():
    assert {path.stem for path in FILES} == {"q_diffusion", "dmq", "quest", "cachequant", "eda_dm"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dequantized_weights_have_the_recorded_hash(path):
    read = recorded(path)
    tensors, meta, layers = read.tensors, read.meta, read.layers
    weight = np.zeros_like(tensors[f"float/{meta['path']}.weight"])
    for target in read.targets:
        pieces = []
        for part in layers[target.name].parts:
            column = (-1,) + (1,) * (part.w_code.ndim - 2)
            pieces.append(part.q_weight(0).astype(np.float32) * part.weight_scale[0].reshape(column))
        rows = slice(None) if target.rows is None else target.rows
        weight[rows] = np.concatenate(pieces, axis=1).reshape(-1, *weight.shape[1:])
    assert hashlib.sha256(weight.astype("<f4").tobytes()).hexdigest() == meta["sha256"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_activation_codes_are_the_recorded_ones(path):
    read = recorded(path)
    tensors, meta = read.tensors, read.meta
    layer, x = read.layers[read.targets[0].name], tensors["input"]
    step = step_bucket(np.full(len(x), float(meta["timestep"])), read.model.step_edges)
    ends = np.cumsum([len(part.pre) for part in layer.parts])[:-1]
    for part, mine, recorded_q in zip(
        layer.parts, np.split(x, ends, axis=1), np.split(tensors["input_q"], ends, axis=1), strict=True
    ):
        code = quantize_centred(
            mine,
            pre=part.pre,
            scale=part.scale,
            zero_point=part.zero_point,
            q_min=layer.q_min,
            q_max=layer.q_max,
            step=step,
        )
        scale = part.scale[step if len(part.scale) > 1 else 0 * step].reshape(-1, *(1,) * (x.ndim - 1))
        assert np.array_equal(code.astype(np.float32) * scale, recorded_q)  # none of these lies at a tie
