"""What the methods train block by block, and on which loss: the settings of the one reconstruction engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from dq_deploy.methods.options import AdaRoundOptions, DilateQuantOptions, EdaDmOptions, TrainingOptions
from dq_deploy.methods.second_order.rounding import SecondOrder

SampleWeights = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(step bucket [B], relative loss [B] without gradients) to the weight [B] of each sample in the batch's mean."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How blocks are trained; each learns to give behind the quantized prefix what it gives in the float model.

    The loss of a batch, each error a mean square relative to the float block's output::

        error(block) + layer_loss * sum of error(layer) + rounding_penalty * mean of (1 - |2 h - 1|^beta)

    Attributes:
        iterations: of Adam a block, with cosine decay of every rate.
        batch: inputs an iteration, steps mixed.
        weights: one of `trainable.WEIGHTS`.
        rates: learning rate by kind of `trainable.KINDS`; other kinds are frozen.
        layer_loss: weight of the errors of the block's layers but the last, against the float layers'.
        activation_drop: share of activation values that pass unquantized while training.
        input_mix: share of the block's input values that are taken from the float prefix.
        rounding_penalty: weight of AdaRound's pull towards whole codes.
        sample_weights: weights of the samples of a batch, None for equal ones.
        start: how weights are rounded before they are trained; None leaves the nearest codes.
        worse_allowed: a block whose error ends above this multiple of the untrained one's is left untrained.
    """

    iterations: int
    batch: int
    weights: str
    rates: Mapping[str, float]
    layer_loss: float = 0.0
    activation_drop: float = 0.0
    input_mix: float = 0.0
    rounding_penalty: float = 0.0
    sample_weights: SampleWeights | None = None
    start: SecondOrder | None = None
    worse_allowed: float = 1.0

    @property
    def needs_float_inputs(self) -> bool:
        """Whether the inputs behind the float prefix are kept beside those behind the quantized one."""
        return self.layer_loss > 0 or self.input_mix > 0 or self.start is not None


START = SecondOrder(float_targets=False)
"""How weights are rounded where `second_order_start` is given; see docs/decisions/0029."""


def _start(options: TrainingOptions) -> SecondOrder | None:
    return START if options.second_order_start else None


def bkd_settings(options: DilateQuantOptions) -> Reconstruction:
    """Block-wise knowledge distillation (DilateQuant): everything is trained, on the block's output alone."""
    return Reconstruction(
        iterations=options.iterations,
        batch=options.batch,
        weights="straight-through",
        rates=MappingProxyType(
            {
                "weight": options.lr_weight,
                "weight_scale": options.lr_weight_scale,
                "scale": options.lr_scale,
                "zero_point": options.lr_zero_point,
                "bias": options.lr_bias,
            }
        ),
        start=_start(options),
        worse_allowed=10.0,
    )


def fbr_settings(options: EdaDmOptions) -> Reconstruction:
    """Fine-grained block reconstruction (EDA-DM): rounding and activation scales, on block and layer outputs.

    Errors of layers are as large as they are and not relative to each layer's own output, so that a layer of small
    values, which hardly moves the block's output, hardly counts. The paper leaves the rounding penalty out, which with
    few iterations leaves most weights undecided between two codes. It drops half of the activation quantization and
    mixes half of the block's input with the float one; `activation_drop` is the share of both.
    """
    drop = options.activation_drop if options.uses("activation-drop") else 0.0
    return Reconstruction(
        iterations=options.iterations,
        batch=options.batch,
        weights="adaround",
        rates=MappingProxyType({"rounding": options.lr_rounding, "scale": options.lr_scale}),
        layer_loss=options.layer_loss if options.uses("fine-grained-loss") else 0.0,
        activation_drop=drop,
        input_mix=drop,
        rounding_penalty=options.rounding_penalty,
        start=_start(options),
    )


def adaround_settings(options: AdaRoundOptions) -> Reconstruction:
    """Block reconstruction by AdaRound alone (BRECQ, Q-Diffusion): rounding, on the block's output and the penalty."""
    return Reconstruction(
        iterations=options.iterations,
        batch=options.batch,
        weights="adaround",
        rates=MappingProxyType({"rounding": options.lr_rounding}),
        rounding_penalty=options.rounding_penalty,
        start=_start(options),
    )
