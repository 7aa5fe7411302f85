"""Which TensorRT is installed: the one place that imports `tensorrt` or `tensorrt_rtx`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, cast

from dq_deploy.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from dq_deploy.engines.tensorrt.api import Library, RtxLibrary

RUNTIMES = ("tensorrt", "tensorrt-rtx")


def check_runtime(runtime: str) -> None:
    """Refuse a runtime that does not exist.

    Raises:
        OptionError: naming what there is.
    """
    if runtime not in RUNTIMES:
        raise OptionError(f"runtime is {runtime!r}, expected one of {', '.join(RUNTIMES)}")


def tensorrt_library(runtime: str) -> Library:
    """The library of a runtime, imported.

    Args:
        runtime: `tensorrt` or `tensorrt-rtx`.

    Raises:
        OptionError: no such runtime.
        MissingDependencyError: it is not installed, or only a part of it is.
    """
    check_runtime(runtime)
    module = runtime.replace("-", "_")
    try:
        library = importlib.import_module(module)
    except Exception as error:  # a library file that is missing or damaged raises what it likes
        raise MissingDependencyError(_why_not(runtime, module, error)) from error
    if not hasattr(library, "__version__"):
        raise MissingDependencyError(
            f"the module {module} that Python finds is not {_name(runtime)}: it has no version; "
            f"remove it from the path, then {_install(runtime)}"
        )
    return cast("Library", library)


def rtx_library() -> RtxLibrary:
    """TensorRT-RTX, imported.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return cast("RtxLibrary", tensorrt_library("tensorrt-rtx"))


def _name(runtime: str) -> str:
    return "TensorRT-RTX" if runtime == "tensorrt-rtx" else "TensorRT"


def _install(runtime: str) -> str:
    where = "" if runtime == "tensorrt-rtx" else ", on a machine that reaches the vendor's own package index"
    return f"install it: pip install 'dq-deploy[{runtime}]'{where}"


def _why_not(runtime: str, module: str, error: Exception) -> str:
    name = _name(runtime)
    reason = " ".join(str(error).split()) or type(error).__name__
    if _found(f"{module}_bindings"):
        return (
            f"the Python bindings of {name} are installed, its libraries cannot be loaded ({reason}); "
            f"{_install(runtime)}; or put the folder of the unpacked libraries into LD_LIBRARY_PATH"
        )
    return f"{name} cannot be imported ({reason}); {_install(runtime)}"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
