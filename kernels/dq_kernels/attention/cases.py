"""Shapes and inputs attention is tested and measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention; `inputs` are the arguments of the reference.

    Attributes:
        name: unique.
        spread: q is of this size: the larger, the closer the softmax is to one key.
        model: the network the shape is from, "" for those of the tests.
    """

    name: str
    batch: int = 1
    rows: int
    kv_rows: int
    heads: int = 1
    head_dim: int
    spread: float = 1.0
    seed: int = 0
    model: str = ""

    @property
    def macs(self) -> int:
        """Products of both matrix multiplications."""
        return 2 * self.batch * self.heads * self.rows * self.kv_rows * self.head_dim

    def inputs(self) -> dict[str, Any]:
        """q, k and v."""
        rng = np.random.default_rng(self.seed)
        rows = (self.rows, self.kv_rows, self.kv_rows)
        q, k, v = (rng.standard_normal((self.batch, n, self.heads, self.head_dim)) for n in rows)
        return {"q": (q * self.spread).astype(np.float32), "k": k.astype(np.float32), "v": v.astype(np.float32)}


TEST_CASES = (
    Case(name="one-key", rows=3, kv_rows=1, head_dim=8),
    Case(name="odd", batch=3, rows=13, kv_rows=77, heads=2, head_dim=40),
    Case(name="several-blocks", rows=50, kv_rows=515, heads=2, head_dim=33),
    Case(name="wide-head", rows=25, kv_rows=30, head_dim=300),
    Case(name="narrow-head", batch=2, rows=7, kv_rows=11, heads=3, head_dim=3),
    Case(name="sharp", rows=40, kv_rows=600, head_dim=16, spread=60.0),
    Case(name="many-rows", rows=400, kv_rows=24, heads=2, head_dim=64),
)
SHAPE_CASES = (
    Case(name="16x16", rows=256, kv_rows=256, head_dim=256, model="cifar10-ddpm"),
    Case(name="4x4", rows=16, kv_rows=16, head_dim=256, model="cifar10-ddpm"),
    Case(name="64x64", batch=2, rows=4096, kv_rows=4096, heads=8, head_dim=40, model="sd15"),
    Case(name="32x32", batch=2, rows=1024, kv_rows=1024, heads=8, head_dim=80, model="sd15"),
    Case(name="64x64-text", batch=2, rows=4096, kv_rows=77, heads=8, head_dim=40, model="sd15"),
    Case(name="64x64", batch=2, rows=4096, kv_rows=4096, heads=10, head_dim=64, model="sdxl"),
    Case(name="32x32", batch=2, rows=1024, kv_rows=1024, heads=20, head_dim=64, model="sdxl"),
)
CASES = TEST_CASES + SHAPE_CASES
