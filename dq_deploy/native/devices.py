"""Which device the native engine runs on: a GPU of the NVIDIA driver, asked without torch, or the CPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os

from dq_deploy.errors import MissingDependencyError, OptionError

DEVICES = ("auto", "cpu", "cuda")
CUBINS_VARIABLE = "DQ_KERNELS_CUBINS"
"""Environment variable of the kernels: a folder of compiled ones."""
LEAST_CAPABILITY = (8, 0)
"""Ampere: the first with the integer products our kernels are written for."""

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


def gpu_problem(library: str = "libcuda.so.1") -> str:
    """Why the first GPU cannot run the native engine, in words, or an empty string.

    Args:
        library: the driver's library.
    """
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return "there is no NVIDIA driver"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU"
    device, values = ctypes.c_int(0), [ctypes.c_int(0), ctypes.c_int(0)]
    failed = driver.cuDeviceGet(ctypes.byref(device), 0)
    for value, attribute in zip(values, (_MAJOR, _MINOR), strict=True):
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    if failed:
        return "the NVIDIA driver does not describe its first GPU"
    capability = (values[0].value, values[1].value)
    if capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, our kernels need 8.0"
    # kernels that were compiled before need no compiler; see `dq_deploy.native.cuda.compiled`
    if importlib.util.find_spec("triton") is None and not os.environ.get(CUBINS_VARIABLE):
        return "the package triton is not installed (pip install 'dq-deploy[gpu-kernels]')"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use the GPU; install its CUDA build"
    return ""


def chosen_device(wanted: str) -> str:
    """`cpu` or `cuda`; auto takes the GPU wherever it can run the engine.

    Raises:
        OptionError: an unknown device.
        MissingDependencyError: `cuda` was asked for and cannot be had; the message says why.
    """
    if wanted not in DEVICES:
        raise OptionError(f"device is {wanted!r}, expected one of {', '.join(DEVICES)}")
    if wanted == "cpu":
        return "cpu"
    problem = gpu_problem()
    if problem and wanted == "cuda":
        raise MissingDependencyError(f'device is cuda, but {problem}; use `device="cpu"`, or mend that')
    return "cpu" if problem else "cuda"
