"""Quantized diffusion models that run in integers, with the proof that the engine computes what was trained.

The public functions are loaded on first use: importing this package loads neither torch nor an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dq_deploy.version import __version__

if TYPE_CHECKING:
    from dq_deploy.bench import benchmark
    from dq_deploy.methods import quantize
    from dq_deploy.models import load_model
    from dq_deploy.native.file.content import write_program_file
    from dq_deploy.open_engine import open_engine
    from dq_deploy.pipelines.integer_denoiser import IntegerDenoiser
    from dq_deploy.record import load_record, save_record
    from dq_deploy.targets import export
    from dq_deploy.verify import verify

__all__ = [
    "IntegerDenoiser",
    "__version__",
    "benchmark",
    "export",
    "load_model",
    "load_record",
    "open_engine",
    "quantize",
    "save_record",
    "verify",
    "write_program_file",
]

_HOME = {
    "IntegerDenoiser": "pipelines.integer_denoiser",
    "load_model": "models",
    "quantize": "methods",
    "load_record": "record",
    "save_record": "record",
    "export": "targets",
    "open_engine": "open_engine",
    "verify": "verify",
    "benchmark": "bench",
    "write_program_file": "native.file.content",
}


def __getattr__(name: str) -> Any:
    """Load a public function from its room on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'dq_deploy' has no attribute {name!r}")
    room = import_module(f"dq_deploy.{_HOME[name]}")
    value = room if _HOME[name] == name else getattr(room, name)  # verify and open_engine can be called themselves
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, whether loaded yet or not."""
    return sorted({*globals(), *__all__})
