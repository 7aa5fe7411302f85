"""Channel-wise power-of-two scaling (DMQ, ICCV 2025) of the 1x1 skip convolutions, by voting.

Channel k is quantized with the step ``s m_k``, ``m_k = 2^-j_k``::

    c[k] = clamp(rne(x[k] / (s m_k)), q_min - z, q_max - z)
    y[n] = s s_w[n] sum_k m_k c[k] w_q[n, k]  =  (s s_w[n] / 2^J) sum_k c[k] (w_q[n, k] << (J - j_k))

In a record that is `pre` times 2^j_k, weights shifted left by J - j_k, and weight scales over 2^J. All are powers of
two, so nothing is rounded anew. Shifted columns need more bits than the others: such a layer is stored with 8-bit
weights, whatever bits it was given.

`pre` is one for all steps, and so is m_k: codes of one channel at two step sizes that change by step have no form in
the integer layer. Votes counted by group of steps therefore end in one m_k too; see `elected_exponents`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dq_deploy.methods.options import DmqOptions
from dq_deploy.methods.prepare.preparation import Prepared
from dq_deploy.methods.ranges.step_ranges import batches, first_of_every_step, model_inputs
from dq_deploy.models import call_denoiser
from dq_deploy.numerics import reciprocal, table_at
from dq_deploy.numerics.arrays import I64, Array
from dq_deploy.record import Layer, Part

MOST_SHIFT = 3
"""m_k is 1, 1/2, 1/4 or 1/8."""
INPUTS = 320
"""Calibration inputs that vote, steps in equal shares."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaledSkips:
    """All layers, those with power-of-two factors replaced, and what was decided (JSON values)."""

    layers: dict[str, Layer]
    history: dict[str, Any]


def is_skip_convolution(layer: Layer) -> bool:
    """Whether a layer is the 1x1 convolution beside a residual block."""
    return layer.name.rpartition(".")[2] == "conv_shortcut" and layer.kernel == (1, 1)


def scale_skips(
    prepared: Prepared,
    layers: Mapping[str, Layer],
    inputs: Mapping[str, Array],
    options: DmqOptions,
    *,
    steps: int,
    batch: int,
) -> ScaledSkips:
    """Let calibration inputs of the float model vote, and scale the channels that agree.

    Args:
        prepared: the float model.
        layers: integer layers by name; the skip convolutions among them are scaled.
        inputs: calibration inputs by name, with `step`.
        options: `agreement`, `power_of_two`, groups of steps.
        steps: number of step buckets.
        batch: inputs at a time in a float pass.
    """
    chosen = first_of_every_step(inputs["step"], steps, INPUTS)
    taken = {name: value[chosen] for name, value in inputs.items()}
    hooks = {name: _VoteHook(layer) for name, layer in layers.items() if is_skip_convolution(layer)}
    with ExitStack() as stack, torch.inference_mode():
        for name, hook in hooks.items():
            stack.callback(prepared.module.get_submodule(name).register_forward_hook(hook).remove)
        for piece in batches(len(chosen), batch) if hooks else ():
            for hook in hooks.values():
                hook.step = taken["step"][piece]
            call_denoiser(prepared.module, model_inputs(taken, piece, prepared.call))
    groups = np.zeros(len(chosen), np.int64)
    if options.power_of_two == "per-group":
        groups = options.groups_of_steps(steps)[taken["step"]]
    result, notes = dict(layers), {}
    for name, hook in hooks.items():
        votes, ceilings = hook.votes_and_ceilings()
        elected = [elected_exponents(v, groups, options.agreement) for v in votes]
        result[name] = shifted_layer(layers[name], [exponents for exponents, _ in elected])
        notes[name] = _note(layers[name], result[name], elected, hook.limits)
        notes[name]["channels_without_clipping"] = [
            np.bincount(of_part, minlength=MOST_SHIFT + 1).tolist() for of_part in ceilings
        ]
    return ScaledSkips(
        layers=result,
        history={"stage": "power-of-two", "votes": options.power_of_two, "inputs": len(chosen), "layers": notes},
    )


class _VoteHook:
    """Forward hook of one skip convolution: each input's vote on each channel."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.limits = [most_shift(part) for part in layer.parts]
        self.step: I64 = np.zeros(0, np.int64)
        self.votes: list[list[tuple[I64, I64]]] = []

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        pieces = torch.split(args[0].cpu(), [len(part.pre) for part in self.layer.parts], dim=1)
        codes = (self.layer.q_min, self.layer.q_max)
        self.votes.append(
            [
                votes_of(piece, part, codes, self.step, most)
                for piece, part, most in zip(pieces, self.layer.parts, self.limits, strict=True)
            ]
        )

    def votes_and_ceilings(self) -> tuple[list[I64], list[I64]]:
        """Of each part, the votes [M, C] and the greatest exponents [C] that none of the inputs is clipped at."""
        found = []
        for of_part in zip(*self.votes, strict=True):
            votes, whole = (np.concatenate(arrays) for arrays in zip(*of_part, strict=True))
            found.append(votes_within(votes, whole))
        return [votes for votes, _ in found], [ceiling for _, ceiling in found]


def most_shift(part: Part) -> int:
    """The greatest J <= 3 at which every weight shifted left by J fits int8."""
    low, high = part.q_weight_span
    return max(j for j in range(MOST_SHIFT + 1) if low << j >= -128 and high << j <= 127)


def votes_of(
    x: torch.Tensor, part: Part, codes: tuple[int, int], step: NDArray[np.integer], most: int
) -> tuple[I64, I64]:
    """How each input votes on each channel, and up to which exponent it has nothing that is clipped for the factor.

    A vote is the exponent with the least squared error, the lesser of equal ones. A factor that clips values makes the
    error of most inputs smaller and that of a few much larger, always towards zero: such an error is the same at
    neighbouring steps and adds up in the picture. So what is elected is a factor at which no input is clipped.

    Args:
        x: [B, C, H, W] input of the part, before `pre`.
        part: quantizers of the part.
        codes: (q_min, q_max).
        step: [B] step bucket of each input.
        most: greatest exponent.

    Returns:
        Votes [B, C, most + 1], the last axis by the greatest exponent that may be voted for, and [B, C] the greatest
        exponent at which no more values are clipped than at 0.
    """
    zero = torch.from_numpy(table_at(part.zero_point, step).astype(np.float32)).reshape(-1, 1, 1, 1)
    inverse = table_at(reciprocal(part.scale), step)
    m = torch.from_numpy((inverse[:, None] * part.pre[None, :]).astype(np.float32))[:, :, None, None]
    scaled = x * m
    best = torch.full(x.shape[:2], torch.inf)
    vote, whole = torch.zeros(x.shape[:2], dtype=torch.int64), torch.zeros(x.shape[:2], dtype=torch.int64)
    clipped_unscaled = torch.zeros(x.shape[:2], dtype=torch.int64)
    votes = []
    for j in range(most + 1):
        codes_before = (scaled * 2**j).round_()
        rounded = torch.minimum(torch.maximum(codes_before, codes[0] - zero), codes[1] - zero)
        clipped = (rounded != codes_before).sum((2, 3))
        clipped_unscaled = clipped if j == 0 else clipped_unscaled
        whole = torch.where(clipped <= clipped_unscaled, j, whole)
        error = (rounded.mul_(2.0**-j) - scaled).square_().mean((2, 3))
        better = error < best
        best, vote = torch.where(better, error, best), torch.where(better, j, vote)
        votes.append(vote)
    return torch.stack(votes, 2).numpy(), whole.numpy()


def votes_within(votes: I64, whole: I64) -> tuple[I64, I64]:
    """Votes [M, C] among the exponents at which no input is clipped, and those [C].

    Args:
        votes: [M, C, most + 1] of `votes_of`.
        whole: [M, C] likewise.
    """
    ceiling: I64 = whole.min(0)
    found: I64 = np.take_along_axis(votes, ceiling[None, :, None], 2)[..., 0]
    return found, ceiling


def elected_exponents(votes: I64, groups: I64, agreement: float) -> tuple[I64, int]:
    """[C] exponent of each channel, and how many channels the groups of inputs elect differently.

    In each group the most frequent vote wins, 0 where fewer than `agreement` of the group's inputs gave it. A channel
    keeps what all groups elect, and 0 where they do not elect the same.

    Args:
        votes: [M, C] exponents.
        groups: [M] group of each input; all 0 for one vote.
        agreement: 0 to 1.
    """
    elected = []
    for g in np.unique(groups):
        mine = votes[groups == g]
        counts = np.stack([(mine == j).sum(axis=0) for j in range(MOST_SHIFT + 1)])
        winner = counts.argmax(axis=0)
        elected.append(np.where(counts.max(axis=0) >= agreement * len(mine), winner, 0))
    same = np.all([e == elected[0] for e in elected], axis=0)
    return np.where(same, elected[0], 0), int((~same).sum())


def shifted_layer(layer: Layer, exponents: Sequence[I64]) -> Layer:
    """The layer with channel k's activation step over 2^j_k; the same layer where every exponent is 0.

    Args:
        layer: 1x1 convolution.
        exponents: per part, [C] exponents; the greatest at most `most_shift` of the part.
    """
    if not any(e.any() for e in exponents):
        return layer
    parts = tuple(_shifted_part(part, e) for part, e in zip(layer.parts, exponents, strict=True))
    return replace(layer, parts=parts, weight_bits=8)


def _shifted_part(part: Part, exponents: I64) -> Part:
    most = int(exponents.max())
    if not most:
        return part
    q = np.stack([part.q_weight(g) for g in range(len(part.w_code))])
    shift = (most - exponents).astype(np.int16).reshape(1, 1, -1, *(1,) * (q.ndim - 3))
    return replace(
        part,
        pre=np.ldexp(part.pre, exponents).astype(np.float32),
        w_code=np.left_shift(q, shift).astype(np.int8),
        w_zero_point=np.zeros_like(part.w_zero_point),
        weight_scale=np.ldexp(part.weight_scale, -most).astype(np.float32),
    )


def _note(before: Layer, after: Layer, elected: Sequence[tuple[I64, int]], limits: Sequence[int]) -> dict[str, Any]:
    note: dict[str, Any] = {
        "channels": [np.bincount(e, minlength=MOST_SHIFT + 1).tolist() for e, _ in elected],
        "groups_disagree": sum(count for _, count in elected),
    }
    if after is not before:
        note["stored"] = f"8-bit weights instead of {before.weight_bits}, because columns are shifted"
    if min(limits) < MOST_SHIFT:
        note["limit"] = (
            f"factors down to 2^-{min(limits)}: shifted further, {before.weight_bits}-bit weights leave int8"
        )
    return note
