"""Products and kernels of a plan, as values, whichever TensorRT wrote it."""

from __future__ import annotations

from dataclasses import dataclass

from dq_deploy.engines.tensorrt.plan.symbols import Size


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Sizes and element type of a tensor, as `int8`, `int4`, `half`, `float`."""

    dims: tuple[Size, ...]
    type: str


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """Geometry of a convolution: weights [n, c / groups, *kernel], spatial sizes in and out."""

    n: int
    c: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    spatial: tuple[Size, ...]
    spatial_out: tuple[Size, ...]


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product or convolution of the program.

    Attributes:
        kind: `gemm` or `conv`.
        nodes: ONNX nodes it multiplies for, by its own name; several where the builder merged products along N.
        listed: all ONNX nodes it lists: those, and what was folded into it.
        operands: element types of its two operands; `unknown` where the text does not tell.
        m: rows, with the batch; images of a convolution.
        n: columns; output channels of a convolution.
        k: sum length of a gemm.
        batch: products in one call that share no operand, as attention heads.
        convolution: geometry, or None for a gemm.
        fusion: name of the kernel that is compiled around it at load time, empty where it stands alone.
        accelerators: `sm80` and so on: what its program is for.
    """

    kind: str
    nodes: tuple[str, ...]
    listed: tuple[str, ...]
    operands: tuple[str, str]
    m: Size
    n: Size
    k: Size
    batch: Size
    convolution: Convolution | None = None
    fusion: str = ""
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that the text shows no product of: generated code, attention, moves of data.

    Attributes:
        name: as `__myl_MulRounCast`.
        nodes: ONNX nodes it lists.
        inputs: element types of its tensors, without shapes and single values.
        outputs: likewise.
        compiled: whether it is a fusion, whose products are told apart.
        accelerators: what its program is for.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compiled: bool = False
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlanText:
    """What was read of a plan.

    Attributes:
        version: builder's version, as `1.7.1.116`; empty where the file is not a plan of TensorRT-RTX.
        problem: why nothing below can be relied on, or empty.
        accelerators: what the programs are for, as (`sm80`, `sm89`).
        products: all products.
        kernels: all other kernels.
    """

    version: str
    problem: str
    accelerators: tuple[str, ...] = ()
    products: tuple[Product, ...] = ()
    kernels: tuple[Kernel, ...] = ()
