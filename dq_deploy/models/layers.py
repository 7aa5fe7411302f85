"""What a denoiser is made of: its layers, their work, its blocks; `capture` finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dq_deploy.numerics.geometry import Window

if TYPE_CHECKING:
    import torch

    from dq_deploy.record import Call


EMBEDDING, MODULATION, CONDITION, FIRST, LAST, GENERAL = (
    "embedding",
    "modulation",
    "condition",
    "first",
    "last",
    "general",
)
"""Roles of a layer, as `capture.dependence.roles_of` finds them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoiser:
    """A float denoiser read from a folder.

    Attributes:
        family: `unet2d`, `unet2d_condition`, or the name of another class of diffusers.
        module: torch module, float32, eval mode, no gradients.
        config: the denoiser's diffusers configuration, JSON values.
        call: how it is called: as its pipeline was seen to do, or by its configuration.
        scheduler_config: the scheduler's, or None where the folder has none.
        source: the folder or the file as it was given.
        source_sha256: hash over the weights file, or files, then the bytes of config.json.
        variant: file variant that was asked for, or None.
        component: its name in the pipeline that was given; None where its own folder was.
        config_source: the folder that describes a single file, as it was given; None for a folder.
        loaded_weights: of `described.weights_sample` when it was loaded, by which a change is noticed; None where
            nothing was read from a file.
    """

    family: str
    module: torch.nn.Module
    config: dict[str, Any]
    call: Call
    scheduler_config: dict[str, Any] | None
    source: str
    source_sha256: str
    variant: str | None = None
    component: str | None = None
    config_source: str | None = None
    loaded_weights: str | None = None

    @property
    def scheduler_sha256(self) -> str | None:
        """Hash over the scheduler's configuration, which decides the trajectories; None where there is none."""
        if self.scheduler_config is None:
            return None
        return hashlib.sha256(json.dumps(self.scheduler_config, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class LayerSite:
    """A linear or 2-D convolution that can become an integer layer.

    Attributes:
        name: module path.
        kind: `linear` or `conv2d`.
        in_channels: input channels or features.
        out_channels: output channels or features.
        kernel: (kh, kw), () for linear.
        stride: (vertical, horizontal).
        padding: (top, left, bottom, right) done by the layer itself.
        dilation: (vertical, horizontal).
        groups: channel groups.
        macs: multiply-accumulates of one sample.
        input_shape: shape of what the layer receives, batch first.
        output_shape: shape of what it returns.
        role: its place between the inputs and the output, one of the roles above.
        float_reason: why it has to stay float, empty where it need not.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    role: str = GENERAL
    float_reason: str = ""

    @property
    def window(self) -> Window:
        """How a convolution moves over its image; a linear layer has none."""
        rows, columns = self.kernel
        return Window(kernel=(rows, columns), stride=self.stride, padding=self.padding, dilation=self.dilation)


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one sample at the configuration's sample size.

    Invariants::

        of_quantizable == sum(layers.values())
        of_all == of_quantizable + attention + other

    Attributes:
        of_all: every convolution, linear layer and attention product.
        of_quantizable: the layers that can become integer layers.
        attention: the products QK^T and PV.
        other: convolutions and products with the model's own numbers that have no integer form.
        layers: by layer name.
    """

    of_all: int
    of_quantizable: int
    attention: int
    layers: Mapping[str, int]
    other: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """A reconstruction block: its name in the module tree and its layers, both in execution order."""

    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FoldSite:
    """A producer that can take over `pre` of all its consumers.

    Attributes:
        producer: module path of the norm or linear layer.
        kind: what is divided by the factor: `group_norm` and `layer_norm`, weight and bias; `linear_rows`, all output
            rows and the bias; `value_rows`, the first half of them (the value of a GEGLU, not its gate).
        consumers: every layer that reads the tensor; legal only if all take the same `pre`.
    """

    producer: str
    kind: str
    consumers: tuple[str, ...]


def is_quantizable(module: torch.nn.Module) -> bool:
    """Whether a module is a layer this project turns into integers: no subclass with another forward."""
    import torch

    if isinstance(module, torch.nn.Conv2d):
        own = type(module).forward is not torch.nn.Conv2d.forward
        return not own and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward


def window_of(layer: torch.nn.Conv2d) -> Window:
    """How a convolution with padding of a fixed size moves over its image."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = (int(size) for size in layer.padding)
    return Window(kernel=(kh, kw), stride=(sh, sw), padding=(ph, pw, ph, pw), dilation=(dh, dw))
