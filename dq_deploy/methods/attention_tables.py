"""Quantizers of attention's two products, at the end of any method: ranges by step in the quantized model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from dq_deploy.errors import NonFiniteError, OptionError
from dq_deploy.methods.options import SharedOptions
from dq_deploy.methods.prepare.calibration_inputs import batch_of, collect_inputs
from dq_deploy.methods.ranges.step_ranges import model_inputs
from dq_deploy.methods.run import Run
from dq_deploy.models import call_denoiser, call_of_record
from dq_deploy.models.attention_calls import AttentionCall, attention_calls
from dq_deploy.numerics import row_steps, step_bucket
from dq_deploy.numerics.arrays import F32, Array
from dq_deploy.record import AttentionQuantizers, CodeTable, Record
from dq_deploy.simulation.fake_quant import simulate

BITS = 8
SAMPLES = 8
"""Trajectories that are looked at, where the options do not ask for fewer."""
BATCH = 8


@dataclass(kw_only=True)
class _Ranges:
    """What was seen of attention so far.

    Attributes:
        steps: T, step buckets.
        buckets: of the samples that are running.
        largest: [T] largest magnitude, by module path and role.
        calls: of the pass in flight, by module path.
        left_out: why a module's attention has no codes, by its path.
    """

    steps: int
    buckets: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    largest: dict[str, dict[str, F32]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def see(self, call: AttentionCall) -> None:
        """Widen the ranges of one call."""
        self.calls[call.name] = self.calls.get(call.name, 0) + 1
        if self.calls[call.name] > 1:
            self.left_out[call.name] = "it is called several times in one step"
        if not call.plain:
            self.left_out[call.name] = "it has a mask, or fewer heads of keys than of queries"
        own = self.largest.setdefault(call.name, {role: np.zeros(self.steps, np.float32) for role in "qkv"})
        for role, tensor in (("q", call.q), ("k", call.k), ("v", call.v)):
            magnitude = tensor.detach().abs().flatten(1).amax(1).float().cpu().numpy()
            if not np.isfinite(magnitude).all():
                raise NonFiniteError(f"attention {call.name} reads NaN or infinity, expected finite values")
            np.maximum.at(own[role], row_steps(self.buckets, len(magnitude)), magnitude)


def with_attention_tables(run: Run, options: SharedOptions, record: Record) -> Record:
    """The record with 8-bit quantizers of q, k, v and the softmax of every attention that can have them.

    q, k and v are symmetric, per tensor and step: scale = largest magnitude / 127 (2^-60 at least). Of the softmax the
    numerators exp(s - max) are coded, whose largest in a row is 1: scale = 1 / 255. See docs/decisions/0026.

    Args:
        run: the float model and where inputs come from.
        options: of the method.
        record: what the method made.

    Raises:
        OptionError: the model has no such attention.
        NonFiniteError: the quantized model gives NaN or infinity.
    """
    fewer = replace(options, samples=min(options.samples, SAMPLES))
    inputs = collect_inputs(run.denoiser, fewer, run.source, run.progress).inputs
    ranges = _Ranges(steps=record.steps)
    module, size = simulate(record).to(options.device), batch_of(run.denoiser, BATCH)
    count = len(inputs["step"])
    with torch.no_grad(), attention_calls(module.denoiser, ranges.see):
        for first in range(0, count, size):
            chosen = slice(first, first + size)
            ranges.buckets, ranges.calls = step_bucket(inputs["timestep"][chosen], record.step_edges), {}
            call_denoiser(module, model_inputs(inputs, chosen, call_of_record(record)))
            run.tell("attention ranges", min(first + size, count), count)
    found = [name for name in ranges.largest if name not in ranges.left_out]
    if not found:
        why = next(iter(ranges.left_out.items()), None)
        text = "no attention" if why is None else f"none that codes can run: {why[0]}, {why[1]}"
        raise OptionError(f"attention is {options.attention!r}, but the model has {text}; leave it out")
    return replace(record, attention={name: _quantizers(name, ranges.largest[name]) for name in found})


def _quantizers(name: str, largest: Mapping[str, F32]) -> AttentionQuantizers:
    half = 2 ** (BITS - 1)
    tables = {}
    for role, seen in largest.items():
        # a bucket without inputs takes the widest range
        reach = np.where(seen > 0, seen, seen.max())
        scale = np.maximum(reach / np.float32(half - 1), np.float32(2.0**-60)).astype(np.float32)
        zero = np.zeros(len(scale), np.int32)
        tables[role] = CodeTable(bits=BITS, q_min=-half, q_max=half - 1, scale=scale, zero_point=zero)
    share = np.full(1, 1 / (2 * half - 1), np.float32)
    tables["e"] = CodeTable(bits=BITS, q_min=0, q_max=2 * half - 1, scale=share, zero_point=np.zeros(1, np.int32))
    return AttentionQuantizers(name=name, tables=tables)
