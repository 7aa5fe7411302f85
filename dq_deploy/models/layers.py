"""What a denoiser is made of: its layers, their work, its blocks. Family modules fill these in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Protocol

from dq_deploy.errors import ModelError
from dq_deploy.numerics.geometry import Window

if TYPE_CHECKING:
    import torch

    from dq_deploy.record import Call


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoiser:
    """A float denoiser read from a folder.

    Attributes:
        family: one of `models.FAMILIES`.
        module: torch module, float32, eval mode, no gradients.
        config: the denoiser's diffusers configuration, JSON values.
        call: how it is called: as its pipeline was seen to do, or by its configuration.
        scheduler_config: the scheduler's, or None where the folder has none.
        source: the folder or the file as it was given.
        source_sha256: hash over the weights file, or files, then the bytes of config.json.
        variant: file variant that was asked for, or None.
        component: its name in the pipeline that was given; None where its own folder was.
        config_source: the folder that describes a single file, as it was given; None for a folder.
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
        role: its place between the inputs and the output, see `capture.dependence.roles_of`.
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
    role: str = "general"
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


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One symbolic forward pass: layers in execution order and the attention products' work."""

    sites: tuple[LayerSite, ...]
    attention_macs: int


class Family(Protocol):
    """What the module of a family provides; `dq_deploy.models` documents each function."""

    def build(self, config: Mapping[str, Any], *, device: str = "cpu") -> torch.nn.Module:
        """Denoiser with random weights; `device="meta"` makes none."""

    def quantizable_layers(self, module: torch.nn.Module, call: Call, *, batch: int = 1) -> list[LayerSite]:
        """Layers in execution order."""

    def macs_of(self, module: torch.nn.Module, call: Call) -> Macs:
        """Work of one sample."""

    def skip_splits(self, module: torch.nn.Module, call: Call) -> dict[str, int]:
        """Channels of the first half of concatenated inputs."""

    def middle_of(self, module: torch.nn.Module, call: Call) -> str:
        """Path of the middle attention."""

    def fold_sites(self, module: torch.nn.Module, call: Call) -> list[FoldSite]:
        """Legal folds."""

    def fold_refusals(self, module: torch.nn.Module, call: Call) -> dict[str, str]:
        """Reasons where there is none."""

    def blocks_of(self, module: torch.nn.Module, call: Call) -> list[Block]:
        """Reconstruction blocks."""


def first_line(error: Exception) -> str:
    """What a library's exception says, in one line; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_block_types(config: Mapping[str, Any], key: str, allowed: Sequence[str]) -> None:
    """Refuse blocks that no family computes.

    Raises:
        ModelError: one of another type, or no list of types.
    """
    names = config.get(key)
    if names is None:
        return
    if not isinstance(names, (list, tuple)):
        raise ModelError(f"config.json has {key} {short(names)}, expected a list of {', '.join(allowed)}")
    for name in names:
        if name not in allowed:
            raise ModelError(f"config.json has {key} with {short(name)}, expected only {', '.join(allowed)}")


def is_quantizable(module: torch.nn.Module) -> bool:
    """Whether a module is a layer this project turns into integers."""
    import torch

    if isinstance(module, torch.nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, torch.nn.Linear)


def window_of(layer: torch.nn.Conv2d) -> Window:
    """How a convolution with padding of a fixed size moves over its image."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = (int(size) for size in layer.padding)
    return Window(kernel=(kh, kw), stride=(sh, sw), padding=(ph, pw, ph, pw), dilation=(dh, dw))


def check_layers_supported(module: torch.nn.Module, allowed_parameters: tuple[type, ...]) -> None:
    """Refuse modules with weights of a type this project does not compute.

    Raises:
        ModelError: names the first unsupported module and its type.
    """
    import torch

    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    known = (torch.nn.Conv2d, torch.nn.Linear, *norms, torch.nn.Embedding, *allowed_parameters)
    for name, child in module.named_modules():
        has_own = next(child.parameters(recurse=False), None) is not None
        if has_own and not isinstance(child, known):
            raise ModelError(
                f"layer {name or '(root)'} is a {type(child).__name__}, which is not supported; "
                "expected Conv2d, Linear, GroupNorm, LayerNorm or Embedding"
            )
        if isinstance(child, torch.nn.Conv2d) and (child.padding_mode != "zeros" or isinstance(child.padding, str)):
            raise ModelError(
                f"layer {name} pads with mode {child.padding_mode!r} and size {child.padding!r}, "
                "expected zeros of a fixed size; this padding is not supported"
            )


def _site(name: str, layer: torch.nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> LayerSite:
    import torch

    if isinstance(layer, torch.nn.Linear):
        work = 1
        for size in output_shape[1:]:
            work *= size
        return LayerSite(
            name=name,
            kind="linear",
            in_channels=layer.in_features,
            out_channels=layer.out_features,
            kernel=(),
            stride=(1, 1),
            padding=(0, 0, 0, 0),
            dilation=(1, 1),
            groups=1,
            macs=work * layer.in_features,
            input_shape=input_shape,
            output_shape=output_shape,
        )
    assert isinstance(layer, torch.nn.Conv2d)
    kh, kw = layer.kernel_size
    ph, pw = int(layer.padding[0]), int(layer.padding[1])
    _, channels, height, width = output_shape
    return LayerSite(
        name=name,
        kind="conv2d",
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel=(kh, kw),
        stride=(layer.stride[0], layer.stride[1]),
        padding=(ph, pw, ph, pw),
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        macs=channels * height * width * (layer.in_channels // layer.groups) * kh * kw,
        input_shape=input_shape,
        output_shape=output_shape,
    )


def walk(module: torch.nn.Module, call: Call, batch: int, attention_type: type[torch.nn.Module]) -> Walk:
    """Run a module on meta tensors (shapes only, no arithmetic) and list what it calls, in order.

    Args:
        module: the denoiser; its weights are neither copied nor changed.
        call: its inputs and their sizes.
        batch: samples.
        attention_type: class whose calls cost two products of [tokens, tokens of the keys, inner channels].
    """
    import torch

    from dq_deploy.models.call import call_arguments, input_specs
    from dq_deploy.models.sizes import sized

    sites: dict[str, LayerSite] = {}
    attention = 0
    handles: list[Any] = []

    def layer_hook(name: str) -> Any:
        def hook(layer: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            sites.setdefault(name, _site(name, layer, tuple(args[0].shape), tuple(output.shape)))

        return hook

    def attention_hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        nonlocal attention
        x, text = args[0], kwargs.get("encoder_hidden_states")
        tokens = x.shape[1] if x.ndim == 3 else x.shape[2] * x.shape[3]
        keys = tokens if text is None else text.shape[1]
        attention += 2 * tokens * keys * layer.to_q.out_features

    for name, child in module.named_modules():
        if is_quantizable(child):
            handles.append(child.register_forward_hook(layer_hook(name)))
        elif isinstance(child, attention_type):
            handles.append(child.register_forward_hook(attention_hook, with_kwargs=True))
    try:
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        meta = {name: value.detach().to("meta") for name, value in state.items()}
        arguments = {
            spec.name: torch.empty(
                sized(spec.shape, batch, call.sizes), dtype=getattr(torch, spec.dtype), device="meta"
            )
            for spec in input_specs(call)
        }
        with torch.no_grad():
            torch.func.functional_call(module, meta, kwargs=call_arguments(arguments, call.constants))
    finally:
        for handle in handles:
            handle.remove()
    return Walk(sites=tuple(sites.values()), attention_macs=attention)


def macs_of_walk(found: Walk) -> Macs:
    """Work of one sample, by a walk with a batch of one."""
    layers = {site.name: site.macs for site in found.sites}
    total = sum(layers.values())
    return Macs(
        of_all=total + found.attention_macs,
        of_quantizable=total,
        attention=found.attention_macs,
        layers=layers,
    )
