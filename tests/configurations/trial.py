"""What is tried with a small form: quantize it in process, run it natively, hold every integer against the numerics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dq_deploy.calibration import CalibrationSource
from dq_deploy.engines.capabilities import LayerValues
from dq_deploy.methods import quantize
from dq_deploy.models import Denoiser, build_denoiser, default_call, example_inputs, family_of
from dq_deploy.models.default_calls.output_shapes import with_outputs
from dq_deploy.native.runner import RecordRunner
from dq_deploy.numerics import integer_layer, step_bucket
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import BATCH, Record
from tests.configurations.configuration import Configuration
from tests.tiny import SCHEDULER

TIMESTEPS = (0.01, 0.5)
"""Where it is calibrated, of the whole range."""


def small_denoiser(small: Configuration) -> Denoiser:
    """With seeded random weights; norms and zero-initialized layers have some too, which would hide mistakes."""
    torch.manual_seed(0)
    config = dict(small.config)
    family = family_of(config)
    module = build_denoiser(family, config)
    for name, parameter in module.named_parameters():
        if "norm" in name or not parameter.any():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return Denoiser(
        family=family,
        module=module,
        config=config,
        call=with_outputs(default_call(config, small.sizes), module),
        scheduler_config=dict(SCHEDULER),
        source=small.name,
        source_sha256="0" * 64,
    )


def quantized(denoiser: Denoiser, *, weight_bits: int = 4) -> Record:
    """By minmax, 8 bits in the activations, from random inputs at two steps."""
    count = 2 * len(TIMESTEPS)
    inputs = example_inputs(denoiser.call, count, 1)
    for item in denoiser.call.inputs:
        if item.shape[0] != BATCH:  # one for all samples, which a file of inputs holds once a row
            inputs[item.name] = np.repeat(inputs[item.name][None], count, 0)
    low, high = limits_of_timesteps(denoiser)
    inputs["timestep"] = np.repeat(np.array([low + part * (high - low) for part in TIMESTEPS], np.float32), 2)
    source = CalibrationSource(kind="latents", latents=inputs)
    options = {"weight_bits": weight_bits, "steps": len(TIMESTEPS), "samples": 2}
    return quantize(denoiser, method="minmax", calibration=source, **options)


def mixed_feeds(denoiser: Denoiser) -> dict[str, Array]:
    """Inputs of two samples that stand at different steps."""
    feeds = example_inputs(denoiser.call, 2, 2)
    low, high = limits_of_timesteps(denoiser)
    feeds["timestep"] = np.array([low + part * (high - low) for part in (0.003, 0.9)], np.float32)
    return feeds


def limits_of_timesteps(denoiser: Denoiser) -> tuple[float, float]:
    """Of the call, 0 to 1000 where it has none."""
    return next(item.limits for item in denoiser.call.inputs if item.name == "timestep") or (0, 1000)


def wrong_values(record: Record, runner: RecordRunner, feeds: Mapping[str, Array]) -> dict[str, int]:
    """By layer that ran, how many codes, accumulators and outputs are not the numerics' bit for bit."""
    _, layers = runner.observe(dict(feeds))
    step = step_bucket(feeds["timestep"], record.step_edges)
    return {name: _wrong(record, name, seen, step) for name, seen in layers.items()}


def _wrong(record: Record, name: str, seen: LayerValues, step: Array) -> int:
    layer = record.layers[name]
    x = np.concatenate(seen.inputs, axis=1 if layer.kind == "conv2d" else -1)
    want = integer_layer(layer, x, step)
    pairs = [*zip(want.codes, seen.codes, strict=True), *zip(want.accumulators, seen.accumulators, strict=True)]
    return sum(int((a != b).sum()) for a, b in (*pairs, (want.output, seen.output)))
