"""What the kernels of a plan that multiply nothing do for the integer layers, as far as their operands tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dq_deploy.engines.tensorrt.plan.products import Kernel, PlanText
from dq_deploy.verify.plan.matching import INTEGER_OPERANDS, is_float, is_integer

OWN_NODES = ("dq/", "out/")
"""How the names of nodes begin that the exporter added for a layer."""

_FLOATS = ("float", "half", "bf16", "bfloat16")


def role_of(kernel: Kernel) -> str:
    """`quantize`, `dequantize`, `unpack`, `move codes` or `float`: from integers and floats going in and out."""
    integer_in = set(kernel.inputs) & set(INTEGER_OPERANDS)
    integer_out = set(kernel.outputs) & set(INTEGER_OPERANDS)
    float_in = set(kernel.inputs) & set(_FLOATS)
    if "int4" in integer_in and kernel.outputs:
        return "unpack"
    if integer_in and integer_out and not float_in:
        return "move codes"
    if integer_out:
        return "quantize"
    return "dequantize" if integer_in else "float"


@dataclass(frozen=True, kw_only=True)
class StandingAlone:
    """A kernel that holds nothing but what the exporter added for layers: fused with no operation of the model.

    Attributes:
        kernel: its name in the plan.
        role: as of `role_of`; `scale and bias` for one that only finishes products.
        nodes: ONNX nodes it stands for.
    """

    kernel: str
    role: str
    nodes: tuple[str, ...]


def standing_alone(kernels: Iterable[Kernel]) -> list[StandingAlone]:
    """The kernels that hold nothing but what the exporter added for layers."""
    rows = []
    for kernel in kernels:
        own = kernel.nodes and all(node.startswith(OWN_NODES) for node in kernel.nodes)
        if not own or kernel.compiled:
            continue
        role = role_of(kernel)
        role = "scale and bias" if role == "float" else role
        rows.append(StandingAlone(kernel=kernel.name, role=role, nodes=tuple(kernel.nodes)))
    return rows


def kernel_counts(told: PlanText) -> dict[str, int]:
    """Number of products by operands, and of other kernels by role."""
    if told.problem:
        return {}
    roles = Counter(role_of(kernel).replace(" ", "_") for kernel in told.kernels if not kernel.compiled)
    return {
        "products": len(told.products),
        "integer_products": sum(map(is_integer, told.products)),
        "float_products": sum(map(is_float, told.products)),
        "compiled_fusions": sum(kernel.compiled for kernel in told.kernels),
        **{role: roles[role] for role in ("quantize", "dequantize", "unpack", "move_codes", "float")},
    }
