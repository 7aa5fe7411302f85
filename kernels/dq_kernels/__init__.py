"""Our own kernels of the integer layer, one folder an op: reference, CPU, GPU and the cases they are tested with.

Imports nothing of `dq_deploy`; `import dq_kernels` loads neither the CPU library, torch nor triton.
"""

OPS = (
    "quantize",
    "group_norm_silu_quantize",
    "layer_norm_quantize",
    "geglu_quantize",
    "int_linear",
    "int_conv2d",
)
"""Ops with a reference, a CPU kernel, a Triton kernel and cases."""

CPU_OPS = ("elementwise", "attention", "float_linear", "float_conv2d", "int_linear_codes")
"""Float operations the CPU programs of the native engine need between them, and what it does in one op, not two."""
