"""Float products of integer values that are exact: no reduced precision, no Winograd, no FFT."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import GuaranteeError
from dq_deploy.numerics.geometry import Window

if TYPE_CHECKING:
    import torch

_IEEE = "ieee"


def _precision_switches() -> list[Any]:
    """The per-operator precision settings this torch has; each reads and writes `fp32_precision`."""
    import torch

    owners = [torch.backends.mkldnn, torch.backends.cudnn]
    found = [getattr(owner, name, None) for owner in owners for name in ("conv", "matmul")]
    found.append(getattr(torch.backends.cuda, "matmul", None))
    return [switch for switch in found if hasattr(switch, "fp32_precision")]


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Inside, float32 convolutions and matrix products are IEEE sums of IEEE products.

    TF32 and bfloat16 modes are off, and so is NNPACK, which convolves by Winograd. The settings are
    restored at the end.
    """
    import torch

    switches = _precision_switches()
    before = [switch.fp32_precision for switch in switches]
    changed = [(switch, old) for switch, old in zip(switches, before, strict=True) if old not in (_IEEE, "none")]
    nnpack = torch.backends.nnpack
    with contextlib.ExitStack() as stack:
        if hasattr(nnpack, "flags"):
            stack.enter_context(nnpack.flags(enabled=False))
        for switch, old in changed:
            switch.fp32_precision = _IEEE
            stack.callback(setattr, switch, "fp32_precision", old)
        yield


def convolve(x: torch.Tensor, weight: torch.Tensor, window: Window, *, groups: int = 1) -> torch.Tensor:
    """Convolution, direct on the CPU, by patches and a product elsewhere."""
    import torch.nn.functional as F

    top, left, bottom, right = window.padding
    if (top, left) != (bottom, right):
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    if x.device.type == "cpu":
        return F.conv2d(x, weight, None, window.stride, (top, left), window.dilation, groups)
    return _convolve_patches(x, weight, replace(window, padding=(top, left, top, left)), groups)


def _convolve_patches(x: torch.Tensor, weight: torch.Tensor, window: Window, groups: int) -> torch.Tensor:
    """As `convolve`, for padding alike on opposite sides."""
    import torch
    import torch.nn.functional as F

    n_out = len(weight)
    sizes = window.size_out((x.shape[2], x.shape[3]))
    outputs = []
    for piece, rows in zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True):
        patches = F.unfold(piece, window.kernel, window.dilation, window.padding[:2], window.stride)
        outputs.append(torch.matmul(rows.reshape(n_out // groups, -1), patches))
    return torch.cat(outputs, 1).reshape(x.shape[0], n_out, *sizes)


@functools.cache
def check_exact_products() -> None:
    """Try this machine's float32 products on large integers, once a process.

    Raises:
        GuaranteeError: a product is not exact, as with ONEDNN_DEFAULT_FPMATH_MODE=BF16.
    """
    import torch

    generator = torch.Generator().manual_seed(0)

    def whole(low: int, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).float()

    same = True
    with torch.no_grad(), exact_products():
        weight = whole(-127, 128, (16, 32, 3, 3))
        for batch in (1, 16):
            x = whole(0, 256, (batch, 32, 12, 12))
            window = Window(kernel=(3, 3), padding=(1, 1, 1, 1))
            got = convolve(x, weight, window)
            same = same and bool((got.double() == convolve(x.double(), weight.double(), window)).all())
        a, b = whole(0, 256, (32, 256)), whole(-127, 128, (256, 32))
        same = same and bool(((a @ b).double() == a.double() @ b.double()).all())
    if not same:
        raise GuaranteeError(
            "float32 products of integers are not exact on this machine, expected them to be: unset "
            "ONEDNN_DEFAULT_FPMATH_MODE and leave torch's float32 precision settings at their defaults"
        )
