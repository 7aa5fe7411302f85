"""What an engine accepts, and the passes that get a graph there: one file a target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import check_writable
from dq_deploy.errors import OptionError

if TYPE_CHECKING:
    from dq_deploy.record import Record

TARGETS = ("onnxruntime", "openvino")
MODES = {"onnxruntime": ("exact", "fast"), "openvino": ("exact",)}


def check_target(target: str, mode: str) -> None:
    """Refuse a target or mode that does not exist.

    Raises:
        OptionError: naming what there is.
    """
    if target not in TARGETS:
        raise OptionError(f"target is {target!r}, expected one of {', '.join(TARGETS)}")
    if mode not in MODES[target]:
        raise OptionError(f"mode is {mode!r}, expected one of {', '.join(MODES[target])} for target {target}")


def export(record: Record, path: str | Path, *, target: str = "onnxruntime", mode: str = "exact") -> dict[str, Any]:
    """Write the integer graph of a record for one engine, with its manifest.

    Args:
        record: the quantized denoiser.
        path: `.onnx` file to write; its manifest goes to `<path>.json` and into the file's metadata.
        target: `onnxruntime` or `openvino`.
        mode: `exact`, or `fast` for onnxruntime: one declared requantization behind each convolution.

    Returns:
        The manifest.

    Raises:
        OptionError: unknown target or mode.
        FileProblemError: the output cannot be written.
        ModelError: the denoiser cannot be traced.
    """
    check_target(target, mode)
    path = Path(path)
    check_writable(path)
    from dq_deploy.graph.onnx_file import write_onnx
    from dq_deploy.targets import onnxruntime as onnxruntime_target
    from dq_deploy.targets.manifest import manifest_of

    if target == "openvino":
        from dq_deploy.targets import openvino as openvino_target

        result = openvino_target.integer_graph(record)
    else:
        result = onnxruntime_target.integer_graph(record, mode=mode)
    manifest = manifest_of(record, target=target, mode=mode, layers=result.layers, notes=result.notes)
    write_onnx(result.model, path, manifest)
    return manifest


def float_graph(manifest: Mapping[str, Any], path: str | Path, *, record: Record | None = None) -> None:
    """Write the float graph of the same tracer: the baseline an engine is timed against.

    Args:
        manifest: of the engine; names the family and its configuration.
        path: `.onnx` file to write.
        record: gives real weights; without it they are random, which costs the same time.
    """
    from dq_deploy.graph.onnx_file import write_onnx
    from dq_deploy.targets.traced_graphs import traced_float_graph

    model = traced_float_graph(str(manifest["family"]), dict(manifest["model_config"]), record)
    write_onnx(model, Path(path), None)


def simulation_graph(record: Record, path: str | Path, *, mode: str = "exact") -> None:
    """Write the record's simulation as a float ONNX graph: no integer kernel, the same operations elsewhere.

    Args:
        record: the quantized denoiser.
        path: `.onnx` file to write, without a manifest.
        mode: `exact`, or `fast` with the declared requantization behind each convolution.
    """
    from dq_deploy.graph.onnx_file import write_onnx
    from dq_deploy.targets.traced_graphs import traced_simulation

    write_onnx(traced_simulation(record, requantize=mode == "fast"), Path(path), None)
