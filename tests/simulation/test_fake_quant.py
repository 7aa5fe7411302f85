"""The torch simulation and the numpy reference agree bit for bit: codes, accumulators and outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq_deploy import numerics
from dq_deploy.errors import InputError
from dq_deploy.models import call_denoiser
from dq_deploy.record import Layer, Part
from dq_deploy.simulation.fake_quant import IntegerLayer, Simulation, StepContext

STEPS = 4


def random_part(
    rng: np.random.Generator, widths: tuple[int, ...], *, weight_bits: int, codes: tuple[int, int], groups: int
) -> Part:
    half = 2 ** (weight_bits - 1)
    q_min, q_max = codes
    zero = np.zeros(STEPS, np.int32) if q_min < 0 else rng.integers(q_min, q_max + 1, STEPS).astype(np.int32)
    return Part(
        pre=rng.uniform(0.3, 1.0, widths[1] * groups).astype(np.float32),
        scale=rng.uniform(0.003, 0.05, STEPS).astype(np.float32),
        zero_point=zero,
        w_code=rng.integers(-half, half, (1, *widths)).astype(np.int8),
        w_zero_point=np.zeros((1, widths[0]), np.int32),
        weight_scale=rng.uniform(0.001, 0.1, (1, widths[0])).astype(np.float32),
    )


def random_layer(
    seed: int,
    *,
    kind: str = "conv2d",
    bits: tuple[int, int] = (4, 8),
    parts: tuple[int, ...] = (12,),
    out: int = 10,
    groups: int = 1,
    symmetric: bool = False,
    **geometry: object,
) -> Layer:
    rng = np.random.default_rng(seed)
    half = 2 ** (bits[1] - 1)
    codes = (-half, half - 1) if symmetric else (0, 2 * half - 1)
    tail = () if kind == "linear" else geometry.pop("kernel", (3, 3))
    made = [
        random_part(rng, (out, width // groups, *tail), weight_bits=bits[0], codes=codes, groups=groups)
        for width in parts
    ]
    return Layer(
        name="layer",
        kind=kind,
        groups=groups,
        weight_bits=bits[0],
        activation_bits=bits[1],
        q_min=codes[0],
        q_max=codes[1],
        parts=tuple(made),
        bias=rng.standard_normal(out).astype(np.float32),
        **geometry,  # type: ignore[arg-type]
    )


def with_ties(layer: Layer, x: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Put exact ties and huge values into some inputs."""
    x = x.copy()
    flat = x.reshape(len(x), -1)
    for i in range(len(x)):
        s = numerics.table_at(layer.parts[0].scale, step)[i]
        flat[i, ::7] = (np.round(flat[i, ::7] / s) + 0.5) * s
        flat[i, 3::50] = 1e30
        flat[i, 4::50] = -1e30
    return x


CASES = {
    "conv w4a8": {"padding": (1, 1, 1, 1)},
    "conv w8a8 past 2^24": {"bits": (8, 8), "parts": (80,), "padding": (1, 1, 1, 1)},
    "conv stride, uneven padding": {"stride": (2, 1), "padding": (0, 1, 1, 0)},
    "conv dilation": {"dilation": (2, 1), "padding": (2, 1, 2, 1)},
    "conv groups": {"groups": 2, "bits": (6, 6), "padding": (1, 1, 1, 1)},
    "conv two parts": {"parts": (12, 5), "padding": (1, 1, 1, 1), "bits": (4, 4)},
    "conv 1x1 symmetric": {"kernel": (1, 1), "symmetric": True},
    "linear": {"kind": "linear"},
    "linear w8a8 past 2^24": {"kind": "linear", "bits": (8, 8), "parts": (700,)},
    "linear two parts": {"kind": "linear", "parts": (8, 9), "bits": (2, 3)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 17])
def test_codes_accumulators_and_output_equal_the_reference(case: str, batch: int) -> None:
    layer = random_layer(len(case), **CASES[case])  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    shape = (batch, layer.in_channels, 9, 7) if layer.kind == "conv2d" else (batch, 6, layer.in_channels)
    step = rng.integers(0, STEPS, batch)
    x = with_ties(layer, rng.standard_normal(shape).astype(np.float32), step)
    context = StepContext()
    context.step = torch.from_numpy(step)
    got = IntegerLayer(layer, context).evaluate(torch.from_numpy(x))
    expected = numerics.integer_layer(layer, x, step)
    for mine, reference in zip(got.codes, expected.codes, strict=True):
        np.testing.assert_array_equal(mine.numpy(), reference)
    for mine, reference in zip(got.accumulators, expected.accumulators, strict=True):
        np.testing.assert_array_equal(mine.double().numpy(), reference.astype(np.float64))
    np.testing.assert_array_equal(got.output.numpy(), expected.output)


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_reduced_precision_settings_do_not_reach_the_codes(precision: str) -> None:
    layer = random_layer(5, padding=(1, 1, 1, 1))
    x = np.random.default_rng(2).standard_normal((16, 12, 9, 9)).astype(np.float32)
    step = np.zeros(16, np.int64)
    context = StepContext()
    context.step = torch.from_numpy(step)
    conv = torch.backends.mkldnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = precision
        got = IntegerLayer(layer, context).evaluate(torch.from_numpy(x))
        assert conv.fp32_precision == precision
    finally:
        conv.fp32_precision = before
    np.testing.assert_array_equal(got.output.numpy(), numerics.integer_layer(layer, x, step).output)


def test_a_weight_set_by_step_is_the_one_used() -> None:
    layer = random_layer(6, padding=(1, 1, 1, 1))
    part = layer.parts[0]
    groups = Part(
        pre=part.pre,
        scale=part.scale,
        zero_point=part.zero_point,
        w_code=np.concatenate([part.w_code, part.w_code[:, ::-1]]),
        w_zero_point=np.zeros((2, 10), np.int32),
        weight_scale=np.concatenate([part.weight_scale, part.weight_scale * 2]),
        group_of_step=np.array([0, 1, 1, 0], np.int32),
    )
    layer = random_layer(6, padding=(1, 1, 1, 1))
    object.__setattr__(layer, "parts", (groups,))
    x = np.random.default_rng(3).standard_normal((4, 12, 5, 5)).astype(np.float32)
    step = np.arange(4)
    context = StepContext()
    context.step = torch.from_numpy(step)
    got = IntegerLayer(layer, context).evaluate(torch.from_numpy(x))
    expected = numerics.integer_layer(layer, x, step)
    np.testing.assert_array_equal(got.accumulators[0].numpy(), expected.accumulators[0].astype(np.float32))
    np.testing.assert_array_equal(got.output.numpy(), expected.output)


def test_entries_folded_into_the_batch_take_their_samples_step() -> None:
    layer = random_layer(7, kind="linear")
    object.__setattr__(layer, "bias", np.random.default_rng(8).standard_normal((STEPS, 10)).astype(np.float32))
    x = np.random.default_rng(9).standard_normal((6, 12)).astype(np.float32)
    step = np.array([3, 1])
    context = StepContext()
    context.step = torch.from_numpy(step)
    got = IntegerLayer(layer, context)
    np.testing.assert_array_equal(got(torch.from_numpy(x)).numpy(), numerics.integer_layer(layer, x, step).output)
    with pytest.raises(InputError, match="layer layer reads 5 entries for 2 samples"):
        got(torch.from_numpy(x[:5]))


def test_constants_inside_a_dict_stand_beside_what_is_given_there() -> None:
    class Scaled(torch.nn.Module):
        def forward(self, sample, timestep, added, *, factor=1.0, return_dict=True):
            return (sample * added["gain"] * added["bias"] * factor,)

    constants = {"added.gain": 3.0, "factor": 2.0}
    simulation = Simulation(Scaled(), StepContext(), torch.zeros(0), constants)
    found = call_denoiser(
        simulation, {"sample": torch.ones(1), "timestep": torch.zeros(1), "added.bias": torch.ones(1)}
    )
    assert found.tolist() == [6.0]
