"""Every op and shape class of the three UNets, read off the real configurations on modules without weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.unets.denoisers import CIFAR, SD15, SDXL

OPS = (
    *("quantize", "group_norm_silu_quantize", "layer_norm_quantize", "geglu_quantize"),
    *("int_linear", "int_conv2d"),
)
PRODUCTS = OPS[4:]
MODELS: Mapping[str, tuple[str, dict[str, Any], int]] = {
    "cifar": ("unet2d", CIFAR, 1),
    "sd15": ("unet2d_condition", SD15, 2),
    "sdxl": ("unet2d_condition", SDXL, 2),
}
"""Family, configuration and batch of each model: one image, and two samples for classifier-free guidance."""
STEPS = 20
"""Rows of the tables: every sample looks its step up."""


@dataclass(frozen=True)
class Shape:
    """One op at one shape.

    Attributes:
        op: of `OPS`.
        model: of `MODELS`.
        case: a Case of the op's cases.py; a product's has 4-bit weights, `with_bits` gives others.
        count: how often one step of the UNet runs it.
        outputs: how many consumers get codes of the same values.
    """

    op: str
    model: str
    case: Any
    count: int = 1
    outputs: int = 1

    @property
    def name(self) -> str:
        """Op, sizes and what else tells it apart; unique within a model."""
        return f"{self.case.name}{f' to {self.outputs}' if self.outputs > 1 else ''}"

    @property
    def operations(self) -> int:
        """Operations of one call, a product and a sum are two; 0 where memory is the limit."""
        return 2 * self.case.macs if self.op in PRODUCTS else 0

    @property
    def nbytes(self) -> int:
        """Bytes of one call between kernel and memory: what it must read and write once."""
        case = self.case
        if self.op == "int_linear":
            rows = case.batch * case.rows
            weights = case.channels * case.out_channels * (1 if case.weight_bits > 4 else 0.5)
            return int(rows * case.channels + weights + 4 * rows * case.out_channels)
        if self.op == "int_conv2d":
            taps = case.kernel[0] * case.kernel[1]
            weights = taps * case.channels * case.out_channels * (1 if case.weight_bits > 4 else 0.5)
            pixels = case.batch * case.out_size[0] * case.out_size[1]
            read = case.batch * case.height * case.width * case.channels
            return int(read + weights + 4 * pixels * case.out_channels)
        values = case.batch * case.rows * case.channels
        return values * (8 if self.op == "geglu_quantize" else 4) + values * self.outputs

    def inputs(self) -> dict[str, Any]:
        """Arguments of the op's reference, from the case's seed."""
        found = self.case.inputs()
        if self.op == "group_norm_silu_quantize":
            found["outputs"] = found["outputs"] * self.outputs
        return found

    def with_bits(self, weight_bits: int) -> Shape:
        """The same product with other weights."""
        return replace(self, case=replace(self.case, weight_bits=weight_bits))


@functools.cache
def meta_module(model: str) -> Any:
    """The model's module tree without weights."""
    from dq_deploy.models import build_denoiser

    family, config, _ = MODELS[model]
    return build_denoiser(family, config, device="meta")


def product_shapes(model: str) -> list[Shape]:
    """Convolutions and linear layers, one shape for each class, in order of first use."""
    from dq_kernels.int_conv2d.cases import Case as ConvCase
    from dq_kernels.int_linear.cases import Case as LinearCase

    from dq_deploy.models import default_call, quantizable_layers

    _, config, batch = MODELS[model]
    found: dict[Any, int] = {}
    for site in quantizable_layers(meta_module(model), default_call(config), batch=batch):
        common = {"channels": site.in_channels, "out_channels": site.out_channels, "model": model, "steps": STEPS}
        if site.kind == "linear":
            rows = 1
            for size in site.input_shape[1:-1]:
                rows *= size
            name = f"{batch}x{rows} {site.in_channels}->{site.out_channels}"
            key = ("int_linear", LinearCase(name=name, batch=site.input_shape[0], rows=rows, **common))
        else:
            _, _, height, width = site.input_shape
            window = f"{site.kernel[0]}x{site.kernel[1]}/{site.stride[0]}"
            padded = "" if site.padding in ((1, 1, 1, 1), (0, 0, 0, 0)) else f" pad {site.padding}"
            name = f"{batch}x{height}x{width} {window} {site.in_channels}->{site.out_channels}{padded}"
            size = {"batch": site.input_shape[0], "height": height, "width": width}
            form = {
                "kernel": site.kernel,
                "stride": site.stride,
                "padding": site.padding,
                "dilation": site.dilation,
            }
            key = ("int_conv2d", ConvCase(name=name, **size, **form, **common))
        found[key] = found.get(key, 0) + 1
    return [Shape(op=op, model=model, case=case, count=count) for (op, case), count in found.items()]


def _rows_and_channels(shape: tuple[int, ...], *, channels_first: bool) -> tuple[int, int]:
    middle = shape[2:] if channels_first else shape[1:-1]
    rows = 1
    for size in middle:
        rows *= size
    return rows, shape[1] if channels_first else shape[-1]


def norm_fed(name: str, family: str) -> bool:
    """Whether a layer's input comes out of a norm or a GEGLU, whose kernel writes its codes."""
    if family == "unet2d":
        ends = (".conv1", ".conv2", ".to_q", ".to_k", ".to_v")
    else:
        ends = (".conv1", ".conv2", ".proj_in", ".to_q", ".attn1.to_k", ".attn1.to_v", ".ff.net.0.proj", ".ff.net.2")
    return name == "conv_out" or name.endswith(ends)


def _code_shape(name: str, module: Any, size: tuple[int, ...], model: str) -> tuple[str, Any, int]:
    """Op, case and number of consumers of a norm or a GEGLU."""
    import torch
    from dq_kernels.geglu_quantize.cases import Case as GegluCase
    from dq_kernels.group_norm_silu_quantize.cases import Case as GroupCase
    from dq_kernels.layer_norm_quantize.cases import Case as LayerCase

    batch, common = size[0], {"steps": STEPS, "model": model}
    if isinstance(module, torch.nn.GroupNorm):
        of_attention = name.endswith(".group_norm")  # it gets [batch, channels, pixels]
        silu = not of_attention and ".attentions." not in name
        rows, channels = _rows_and_channels(size, channels_first=True)
        title = f"{batch}x{rows} {channels}{'' if silu else ' no silu'}"
        case = GroupCase(
            title, batch, rows, channels, module.num_groups, (channels,), silu=silu, eps=module.eps, **common
        )
        return "group_norm_silu_quantize", case, 3 if of_attention else 1
    if isinstance(module, torch.nn.LayerNorm):
        rows, channels = _rows_and_channels(size, channels_first=False)
        outputs = 3 if name.endswith(".norm1") else 1
        parts = ((0, channels),) * outputs
        case = LayerCase(f"{batch}x{rows} {channels}", batch, rows, channels, parts, steps=STEPS, model=model)
        return "layer_norm_quantize", case, outputs
    rows, _ = _rows_and_channels(size, channels_first=False)
    channels = module.proj.out_features // 2
    return "geglu_quantize", GegluCase(f"{batch}x{rows} {channels}", batch, rows, channels, **common), 1


def code_shapes(model: str) -> list[Shape]:
    """Norms, GEGLUs and plain quantizers, one shape for each class."""
    import torch
    from diffusers.models.activations import GEGLU
    from dq_kernels.quantize.cases import Case as QuantizeCase

    from dq_deploy.models import call_denoiser, default_call, input_specs, quantizable_layers
    from dq_deploy.models.sizes import sized

    family, config, batch = MODELS[model]
    module, found = meta_module(model), {}

    def count(key: Any) -> None:
        found[key] = found.get(key, 0) + 1

    def watch(name: str) -> Callable[..., None]:
        def hook(child: Any, inputs: Any) -> None:
            count(_code_shape(name, child, tuple(inputs[0].shape), model))

        return hook

    kinds = (torch.nn.GroupNorm, torch.nn.LayerNorm, GEGLU)
    watched = [(name, child) for name, child in module.named_modules() if isinstance(child, kinds)]
    handles = [child.register_forward_pre_hook(watch(name)) for name, child in watched]
    inputs = {
        spec.name: torch.empty(sized(spec.shape, batch, default_call(config).sizes), device="meta")
        for spec in input_specs(default_call(config))
    }
    call_denoiser(module, inputs)
    for handle in handles:
        handle.remove()
    for site in quantizable_layers(module, default_call(config), batch=batch):
        if not norm_fed(site.name, family):
            rows, channels = _rows_and_channels(site.input_shape, channels_first=site.kind == "conv2d")
            case = QuantizeCase(f"{batch}x{rows} {channels}", batch, rows, channels, steps=STEPS, model=model)
            count(("quantize", case, 1))
    return [Shape(op, model, case, times, outputs) for (op, case, outputs), times in found.items()]


def all_shapes(
    models: tuple[str, ...] = tuple(MODELS), ops: tuple[str, ...] = OPS, *, quick: bool = False
) -> list[Shape]:
    """Shapes of the models and ops; `quick` keeps the three that matter most of each op and model."""
    shapes = [shape for model in models for shape in (*code_shapes(model), *product_shapes(model)) if shape.op in ops]
    if not quick:
        return shapes
    kept: list[Shape] = []
    for model in models:
        for op in ops:
            own = [shape for shape in shapes if (shape.model, shape.op) == (model, op)]
            kept += sorted(own, key=lambda s: -s.count * (s.operations or s.nbytes))[:3]
    return kept
