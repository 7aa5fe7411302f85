"""Small records that have everything a record can have."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dq_deploy.record import Layer, Part, Record, WeightOnlyLayer, edges_from_timesteps


def make_part(rng, shape, *, weight_bits, steps, sets=1, groups=1):
    low, high = -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1)
    return Part(
        pre=rng.uniform(0.5, 2, shape[1] * groups).astype(np.float32),
        scale=rng.uniform(0.01, 0.1, steps).astype(np.float32),
        zero_point=rng.integers(0, 200, steps).astype(np.int32),
        w_code=rng.integers(low, high, (sets, *shape)).astype(np.int8),
        w_zero_point=np.zeros((sets, shape[0]), np.int32),
        weight_scale=rng.uniform(0.001, 0.1, (sets, shape[0])).astype(np.float32),
        group_of_step=(np.arange(steps) % sets).astype(np.int32) if sets > 1 else np.zeros(1, np.int32),
    )


def make_layer(rng, name, shape, *, weight_bits=4, steps=3, parts=1, **more):
    sets = more.pop("sets", 1)
    made = tuple(
        make_part(rng, shape, weight_bits=weight_bits, steps=steps, sets=sets, groups=more.get("groups", 1))
        for _ in range(parts)
    )
    return Layer(
        name=name,
        kind="linear" if len(shape) == 2 else "conv2d",
        weight_bits=weight_bits,
        activation_bits=8,
        q_min=0,
        q_max=255,
        parts=made,
        **more,
    )


@pytest.fixture
def record():
    """Four layers: packed and not, split, grouped, two weight sets, static, with bias and with output."""
    rng = np.random.default_rng(0)
    layers = (
        make_layer(rng, "a.conv", (3, 3, 3, 3), padding=(1, 1, 1, 1), bias=np.ones(3, np.float32), sets=2),
        make_layer(rng, "a.linear", (5, 3), weight_bits=8, steps=1, fold="folded into a.norm"),
        make_layer(
            rng,
            "b.split",
            (4, 2, 1, 1),
            weight_bits=3,
            parts=2,
            out_scale=np.array([0.1, 0.2, 0.3], np.float32),
            out_zero_point=np.array([0, 128, 255], np.int32),
        ),
        make_layer(rng, "b.grouped", (4, 2, 3, 3), weight_bits=5, groups=2, stride=(2, 1), dilation=(1, 2)),
    )
    timesteps = np.array([1, 251, 751], np.float32)
    return Record(
        family="unet2d",
        layers={layer.name: layer for layer in layers},
        timesteps=timesteps,
        step_edges=edges_from_timesteps(timesteps),
        float_parameters={
            "norm.weight": np.array([1, 2, 3], np.float32),
            "half": np.array([[1.5]], np.float16),
            "count": np.array(7, np.int64),
        },
        model_config={"_class_name": "UNet2DModel", "block_out_channels": (32, 64), "é": "ü"},
        scheduler_config={"_class_name": "DDIMScheduler"},
        provenance={"method": "minmax", "options": {"seed": 0}},
    )


def make_weight_only(rng, name, shape=(6, 8), *, weight_bits=4, block_size=4, bias=True):
    half = 2 ** (weight_bits - 1)
    return WeightOnlyLayer(
        name=name,
        weight_bits=weight_bits,
        block_size=block_size,
        w_code=rng.integers(-half, half, shape).astype(np.int8),
        scale=rng.uniform(0.001, 0.1, (shape[0], shape[1] // block_size)).astype(np.float32),
        bias=rng.standard_normal(shape[0]).astype(np.float32) if bias else None,
    )


@pytest.fixture
def record_v2(record):
    """The record with two weight-only layers, packed with bias and not packed without, and float ranges."""
    rng = np.random.default_rng(1)
    light = [make_weight_only(rng, "c.q"), make_weight_only(rng, "c.k", weight_bits=6, block_size=2, bias=False)]
    return dataclasses.replace(
        record, weight_only={layer.name: layer for layer in light}, float_ranges={"b.norm": 3.5, "a": 0.0}
    )
