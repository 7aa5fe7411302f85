"""What multiplies a layer part in a running engine, and whether that is an exact integer product."""

from __future__ import annotations

from dataclasses import dataclass

from dq_deploy.manifest.values import ManifestPart

PAIR_LIMIT = 32767
"""Largest int16: where engines add two u8 x s8 products before they widen."""

INTEGER_TYPES = ("int8", "uint8", "int4", "uint4")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What multiplies one layer part.

    Attributes:
        op: kernel as `com.microsoft.MatMulIntegerToFloat`, or `missing`.
        operands: types of activations and weights; `unknown` where the graph does not say.
        saturation: empty where the product is exact on every CPU, else why it is not.
        declared: this is what a graph asks for and not what an engine runs.
    """

    op: str
    operands: tuple[str, str]
    saturation: str = ""
    declared: bool = False

    @property
    def integer(self) -> bool:
        """Whether both operands are integers in what really runs."""
        return not self.declared and all(kind in INTEGER_TYPES for kind in self.operands)


MISSING = Kernel(op="missing", operands=("unknown", "unknown"))


def product_names(entry: ManifestPart) -> list[str]:
    """Names of the integer products of one part: several where its weights are split into summands."""
    return list(entry.products or (entry.node or "",))


def joined_kernel(kernels: list[Kernel]) -> Kernel:
    """Several products of one part as one; the first that is not integer, or not safe, speaks for all."""
    if not kernels:
        return MISSING
    for kernel in kernels:
        if not kernel.integer or kernel.saturation:
            return kernel
    return kernels[0]
