"""The six ops on torch tensors of a CUDA device: checked, configured by table, launched without a host wait.

Nothing here reads device memory from the host: the step buckets, and with them scales and zero points, are looked up
by the kernels. So every function can be captured into a CUDA graph once it has been called before (the first call of
a kind compiles). Under Triton's interpreter (TRITON_INTERPRET=1 before the first import) tensors are on the CPU.

With the environment variable DQ_KERNELS_CUBINS every kernel comes from that folder, compiled ahead of time by
`dq_kernels.gpu.ahead_of_time`: nothing is compiled here, triton is not imported, and a call that the folder lacks is
refused. `collecting` lists the calls of a program without running them.

Never run on a GPU; see `dq_kernels.gpu`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dq_kernels.cpu.library import KernelInputError, KernelsMissingError
from dq_kernels.gpu.ahead_of_time.cubins import CubinStore
from dq_kernels.gpu.launch.calls import KERNELS, KernelCall
from dq_kernels.gpu.launch.float_calls import (
    CodeOutput,
    geglu_quantize_calls,
    group_norm_silu_quantize_calls,
    layer_norm_quantize_calls,
    quantize_calls,
)
from dq_kernels.gpu.launch.product_calls import Epilogue, Window, int_conv2d_calls, int_linear_calls
from dq_kernels.gpu.launch.weights import Quantizer, Weights
from dq_kernels.gpu.tune.configurations import BlockConfiguration, ProductConfiguration, Table, architecture_of, choose

INTERPRETED_ARCHITECTURE = 80
"""Whose configurations the interpreter gets."""
CUBINS_VARIABLE = "DQ_KERNELS_CUBINS"
"""Environment variable: folder of compiled kernels."""

_collected: ContextVar[tuple[int, list[KernelCall]] | None] = ContextVar("collected", default=None)


@contextlib.contextmanager
def collecting(architecture: int) -> Iterator[list[KernelCall]]:
    """Calls made within the block are listed, as for a GPU of this architecture, and none is launched.

    Tensors may be anywhere, on the device `meta` too.

    Args:
        architecture: of `ARCHITECTURES`.
    """
    calls: list[KernelCall] = []
    before = _collected.set((architecture, calls))
    try:
        yield calls
    finally:
        _collected.reset(before)


def interpreted() -> bool:
    """Whether the kernels of this process run in Triton's interpreter.

    Raises:
        KernelsMissingError: triton is not installed.
    """
    try:
        import triton
    except ImportError as error:
        raise KernelsMissingError(
            f"triton cannot be imported ({error}); install it: pip install 'dq-deploy[gpu-kernels]'"
        ) from error
    return bool(triton.knobs.runtime.interpret)


def architecture_for(tensor: torch.Tensor) -> int:
    """Row of the tables for a tensor's device.

    Raises:
        KernelInputError: not on a GPU, or on one below compute capability 8.0.
        KernelsMissingError: triton is not installed.
    """
    collected = _collected.get()
    if collected is not None:
        return collected[0]
    if tensor.is_cuda:
        return _architecture(tensor.device)
    if interpreted():
        return INTERPRETED_ARCHITECTURE
    raise KernelInputError(f"a tensor is on {tensor.device}, expected a CUDA device; move it there")


@functools.lru_cache
def _architecture(device: torch.device) -> int:
    return architecture_of(torch.cuda.get_device_capability(device))


@functools.lru_cache
def kernel_of(name: str) -> Any:
    """The kernel of a name."""
    return getattr(importlib.import_module(KERNELS[name]), name)


def start(calls: Sequence[KernelCall], device: torch.device) -> None:
    """Launch on the current stream of a device; kernels come from triton, or from the folder of compiled ones.

    Raises:
        KernelInputError: an array is on another device, or the folder lacks a kernel.
    """
    collected = _collected.get()
    if collected is not None:
        collected[1].extend(calls)
        return
    for call in calls:
        for name, value in call.arguments.items():
            if isinstance(value, torch.Tensor) and value.device != device:
                raise KernelInputError(f"{name} is on {value.device}, expected {device}; move it there")
    folder = os.environ.get(CUBINS_VARIABLE) if device.type == "cuda" else None
    with torch.cuda.device(device if device.type == "cuda" else -1):
        if folder:
            store, stream = cubins_of(folder, device), torch.cuda.current_stream(device).cuda_stream
            for call in calls:
                store.launch(call, stream)
            return
        for call in calls:
            kernel_of(call.kernel)[call.grid](
                **call.arguments,
                **call.constants,
                num_warps=call.warps,
                num_stages=call.stages,
                enable_fp_fusion=False,
            )


@functools.lru_cache
def cubins_of(folder: str, device: torch.device) -> CubinStore:
    """Compiled kernels of a folder for a device; loaded once a process, which a captured graph relies on.

    Raises:
        KernelInputError: the folder has no index.
    """
    return CubinStore(Path(folder), _architecture(device))


def to_device(value: Any, device: torch.device | str) -> Any:
    """A `Quantizer` or `Weights` of numpy arrays as one of tensors."""
    moved = {name: torch.from_numpy(array.copy()).to(device) for name, array in value.arrays.items()}
    return replace(value, **moved)


def quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    quantizer: Quantizer,
    *,
    codes: torch.Tensor | None = None,
    nan_seen: torch.Tensor | None = None,
    configuration: BlockConfiguration | None = None,
    table: Table | None = None,
) -> torch.Tensor:
    """int8 codes of the quantizer's channels of x [batch, rows, pitch].

    Args:
        x: float16, bfloat16 or float32.
        step: int32 [batch], step bucket of each sample, on the device.
        quantizer: tables on the device.
        codes: where they go, int8 [batch, rows, pitch]; by default a new tensor without a pitch.
        nan_seen: int32 [1], set to 1 where a product is NaN.
        configuration: instead of the table's.
        table: rules in front of the default ones.

    Raises:
        KernelInputError: an array is of another kind, or the device cannot run the kernels.
    """
    output = _output(x, quantizer, codes)
    given = configuration or choose("quantize", architecture_for(x), {}, table)
    assert isinstance(given, BlockConfiguration)
    start(quantize_calls(x, step, output, nan_seen=nan_seen, configuration=given), x.device)
    return output.codes


def geglu_quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    output: CodeOutput | None,
    *,
    channels: int,
    y: torch.Tensor | None = None,
    nan_seen: torch.Tensor | None = None,
    configuration: BlockConfiguration | None = None,
    table: Table | None = None,
) -> None:
    """Write y = value * gelu(gate) of x [batch, rows, 2 * channels] and its codes; see `quantize`."""
    given = configuration or choose("geglu_quantize", architecture_for(x), {}, table)
    assert isinstance(given, BlockConfiguration)
    calls = geglu_quantize_calls(x, step, output, channels=channels, y=y, nan_seen=nan_seen, configuration=given)
    start(calls, x.device)


def layer_norm_quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    outputs: Sequence[CodeOutput],
    *,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    eps: float,
    y: torch.Tensor | None = None,
    nan_seen: torch.Tensor | None = None,
    configuration: BlockConfiguration | None = None,
    table: Table | None = None,
) -> None:
    """Write y = layer_norm(x) and the codes of up to three parts; see `quantize`."""
    given = configuration or choose("layer_norm_quantize", architecture_for(x), {}, table)
    assert isinstance(given, BlockConfiguration)
    arrays = {"gamma": gamma, "beta": beta, "y": y, "nan_seen": nan_seen}
    start(layer_norm_quantize_calls(x, step, outputs, eps=eps, configuration=given, **arrays), x.device)


def group_norm_silu_quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    outputs: Sequence[CodeOutput],
    *,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    y: torch.Tensor | None = None,
    nan_seen: torch.Tensor | None = None,
    configuration: BlockConfiguration | None = None,
    table: Table | None = None,
) -> None:
    """Write y = act(group_norm(x)) and the codes of up to three parts; see `quantize`."""
    facts = {"m": int(x.shape[0]) * groups, "k": int(x.shape[1]) * (gamma.shape[0] // max(groups, 1))}
    given = configuration or choose("group_norm_silu_quantize", architecture_for(x), facts, table)
    assert isinstance(given, BlockConfiguration)
    calls = group_norm_silu_quantize_calls(
        x,
        step,
        outputs,
        **{"gamma": gamma, "beta": beta, "groups": groups, "eps": eps, "silu": silu, "y": y, "nan_seen": nan_seen},
        configuration=given,
        workspace=_workspace(x.device),
    )
    start(calls, x.device)


def int_linear(
    codes: torch.Tensor,
    weights: Weights,
    quantizer: Quantizer,
    step: torch.Tensor,
    epilogue: Epilogue,
    *,
    configuration: ProductConfiguration | None = None,
    table: Table | None = None,
) -> None:
    """Write the epilogue's y and accumulators of int8 codes [batch, rows, pitch] times weights; see `quantize`."""
    architecture = architecture_for(codes)
    given = configuration or _product("int_linear", architecture, weights, codes.shape[0] * codes.shape[1], table)
    calls = int_linear_calls(
        *(codes, weights, quantizer, step, epilogue),
        configuration=given,
        architecture=architecture,
        workspace=_workspace(codes.device),
    )
    start(calls, codes.device)


def int_conv2d(
    codes: torch.Tensor,
    weights: Weights,
    quantizer: Quantizer,
    step: torch.Tensor,
    epilogue: Epilogue,
    window: Window,
    *,
    configuration: ProductConfiguration | None = None,
    table: Table | None = None,
) -> None:
    """Write the epilogue's y and accumulators of a convolution of int8 codes [batch, height * width, pitch].

    A 1x1 window with stride 1 and no padding is a linear layer and runs as one; see `quantize`.
    """
    plain = window.stride == (1, 1) and window.padding == (0, 0) and window.out_size == window.size
    if weights.kernel == (1, 1) and plain:
        int_linear(codes, weights, quantizer, step, epilogue, configuration=configuration, table=table)
        return
    architecture = architecture_for(codes)
    m = codes.shape[0] * window.out_size[0] * window.out_size[1]
    given = configuration or _product("int_conv2d", architecture, weights, m, table)
    calls = int_conv2d_calls(
        *(codes, weights, quantizer, step, epilogue, window),
        configuration=given,
        architecture=architecture,
        workspace=_workspace(codes.device),
    )
    start(calls, codes.device)


def _product(op: str, architecture: int, weights: Weights, m: int, table: Table | None) -> ProductConfiguration:
    k = weights.kernel[0] * weights.kernel[1] * weights.channels
    facts = {"m": int(m), "n": weights.out_channels, "k": k, "bits": weights.bits}
    found = choose(op, architecture, facts, table)
    assert isinstance(found, ProductConfiguration)
    return found


def _output(x: torch.Tensor, quantizer: Quantizer, codes: torch.Tensor | None) -> CodeOutput:
    if codes is None:
        shape = (*x.shape[:2], quantizer.pre.shape[0])
        codes = torch.empty(shape, dtype=torch.int8, device=x.device)
    return CodeOutput(quantizer=quantizer, codes=codes)


def _workspace(device: torch.device) -> Any:
    return lambda blank: torch.empty(blank.shape, dtype=getattr(torch, blank.dtype), device=device)


__all__ = [
    "geglu_quantize",
    "group_norm_silu_quantize",
    "int_conv2d",
    "int_linear",
    "layer_norm_quantize",
    "quantize",
    "start",
    "to_device",
]
