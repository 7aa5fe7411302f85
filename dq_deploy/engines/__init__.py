"""Engines behind one Runner interface; an engine's library is imported only when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dq_deploy.errors import FileProblemError, OptionError
from dq_deploy.graph.onnx_file import read_manifest

if TYPE_CHECKING:
    from dq_deploy.engines.base import Runner

ENGINES = ("onnxruntime", "openvino")


def open_engine(
    path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    finite_check: bool = True,
    optimized_model_path: str | Path | None = None,
    require_manifest: bool = True,
) -> Runner:
    """Open an exported engine; use it as a context manager.

    Args:
        path: ONNX file.
        engine: `onnxruntime` or `openvino`; by default what the manifest's target says.
        threads: threads of one run; None lets the engine decide.
        finite_check: refuse NaN and infinity in inputs and outputs.
        optimized_model_path: where to write the graph the engine really runs.
        require_manifest: False opens a plain ONNX file too, with no manifest.

    Raises:
        FileProblemError: missing or foreign file.
        MissingDependencyError: the engine's library is not installed.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except FileProblemError:
        if require_manifest or not path.is_file():
            raise
        manifest = None
    name = engine or (manifest["target"] if manifest is not None else "onnxruntime")
    optimized = None if optimized_model_path is None else Path(optimized_model_path)
    if name == "onnxruntime":
        from dq_deploy.engines.onnxruntime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(
            path, manifest, threads=threads, finite_check=finite_check, optimized_model_path=optimized
        )
    if name == "openvino":
        from dq_deploy.engines.openvino import OpenVinoRunner

        return OpenVinoRunner(
            path, manifest, threads=threads, finite_check=finite_check, optimized_model_path=optimized
        )
    raise OptionError(f"engine is {name!r}, expected one of {', '.join(ENGINES)}")
