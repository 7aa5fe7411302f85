"""What a number was measured on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from dq_deploy.version import __version__

_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx_vnni_int8",
    "amx_tile",
    "amx_int8",
    "asimddp",
    "i8mm",
)
_PACKAGES = (
    "dq-deploy",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-core",
    "torch",
    "diffusers",
)


def _cpu() -> tuple[str, list[str]]:
    """Model name and the flags that decide which integer kernels run."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    return model, [flag for flag in _FLAGS if flag in flags]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = __version__ if name == "dq-deploy" else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Cores that this process may run on, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment(*, threads: int | None) -> dict[str, Any]:
    """Machine, load and versions as JSON values.

    Args:
        threads: threads that were asked for; None where the engine decided.
    """
    import psutil

    model, flags = _cpu()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cpu_flags": flags,
        "logical_cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_mib": round(psutil.virtual_memory().total / 2**20),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "threads": threads,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": _versions(),
    }
