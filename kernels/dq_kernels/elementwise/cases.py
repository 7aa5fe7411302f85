"""Shapes and inputs the elementwise operations are tested and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_kernels.cpu.structs import ELEMENTWISE_KINDS
from dq_kernels.elementwise.reference import TWO_OPERANDS


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation; `inputs` are the arguments of the reference.

    Attributes:
        name: unique.
        shape: of a.
        other: of b, broadcast by numpy's rules; used by the kinds with two operands.
        order: axes of a are held in memory in this order (None: as they are).
        spread: values are of this size.
        model: the network the shape is from, "" for those of the tests.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    other: tuple[int, ...] = ()
    order: tuple[int, ...] | None = None
    spread: float = 3.0
    seed: int = 0
    model: str = ""

    @property
    def bytes(self) -> int:
        """Read and written, each value once."""
        size = int(np.prod(self.shape))
        return 4 * (2 * size + int(np.prod(self.other)) * (self.kind in TWO_OPERANDS))

    def inputs(self) -> dict[str, Any]:
        """kind, a, b and scalar."""
        rng = np.random.default_rng(self.seed)
        held = self.shape if self.order is None else tuple(self.shape[i] for i in self.order)
        a = np.asarray(rng.standard_normal(held) * self.spread, np.float32)
        if self.order is not None:
            a = a.transpose(np.argsort(self.order))
        result: dict[str, Any] = {"kind": self.kind, "a": a, "scalar": 0.37}
        if self.kind in TWO_OPERANDS:
            result["b"] = np.asarray(rng.standard_normal(self.other or self.shape), np.float32)
        return result


TEST_CASES = (
    *(Case(name=f"{kind}-3x5x33", kind=kind, shape=(3, 5, 33)) for kind in ELEMENTWISE_KINDS),
    *(Case(name=f"{kind}-wide", kind=kind, shape=(257,), spread=60.0) for kind in ("silu", "gelu", "tanh", "sigmoid")),
    Case(name="bias", kind="add", shape=(2, 5, 7, 70), other=(70,)),
    Case(name="per-sample", kind="mul", shape=(3, 4, 5, 6), other=(3, 1, 1, 1)),
    Case(name="per-sample-channel", kind="add", shape=(3, 4, 5, 6), other=(3, 1, 1, 6)),
    Case(name="outer-product", kind="mul", shape=(3, 1, 5, 1), other=(1, 4, 1, 6)),
    Case(name="channels-last", kind="copy", shape=(2, 5, 6, 3), order=(0, 3, 1, 2)),
    Case(name="six-axes", kind="add", shape=(2, 3, 2, 3, 2, 5), other=(2, 1, 2, 1, 2, 1), order=(5, 3, 1, 0, 2, 4)),
    Case(name="one-value", kind="sub", shape=(1,)),
    Case(name="no-axis", kind="mul", shape=()),
    Case(name="long-row", kind="add", shape=(70001,)),
    Case(name="long-strided", kind="silu", shape=(2, 40000), order=(1, 0)),
)
SHAPE_CASES = (
    Case(name="residual", kind="add", shape=(1, 32, 32, 256), model="cifar10-ddpm"),
    Case(name="concatenation", kind="copy", shape=(1, 32, 32, 256), model="cifar10-ddpm"),
    Case(name="time-embedding", kind="silu", shape=(1, 512), model="cifar10-ddpm"),
    Case(name="residual", kind="add", shape=(2, 64, 64, 320), model="sd15"),
    Case(name="residual", kind="add", shape=(2, 4096, 640), model="sdxl"),
    Case(name="bias", kind="add", shape=(2, 4096, 640), other=(640,), model="sdxl"),
    Case(name="gelu", kind="gelu", shape=(2, 1024, 1280), model="sdxl"),
)
CASES = TEST_CASES + SHAPE_CASES
