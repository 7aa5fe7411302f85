"""What an engine accepts, and the passes that get a graph there: one file a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.artifacts import check_writable, checked_name, file_for_several
from dq_deploy.errors import ModelError, OptionError
from dq_deploy.manifest.values import EngineManifest, ManifestOptions

if TYPE_CHECKING:
    import onnx_ir as ir

    from dq_deploy.record import Call, Record

TARGETS = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
MODES = {
    "onnxruntime": ("exact", "fast"),
    "openvino": ("exact",),
    "tensorrt": ("exact",),
    "tensorrt-rtx": ("exact",),
}
FLOAT_TYPES = {
    "onnxruntime": ("float32",),
    "openvino": ("float32",),
    "tensorrt": ("float16", "bfloat16", "float32"),
    "tensorrt-rtx": ("float16", "bfloat16", "float32"),
}
"""Types of the float operations between the layers; the first is taken by default."""

CONVS = {"onnxruntime": (), "openvino": (), "tensorrt": ("native",), "tensorrt-rtx": ("gemm", "native")}
"""How convolutions are written, where that is a choice; the first is taken by default."""

LAYOUTS = {"onnxruntime": ("optimum",), "openvino": ("optimum",), "tensorrt": (), "tensorrt-rtx": ()}
"""Tools whose names and shapes the graph's inputs and outputs may have in place of our own."""


def check_target(
    target: str, mode: str, *, float_type: str | None = None, conv: str | None = None, layout: str | None = None
) -> None:
    """Refuse a target, mode or option of it that does not exist.

    Raises:
        OptionError: naming what there is.
    """
    if target == "native":
        raise OptionError("target is 'native', which is no graph; `write_program_file` writes it as a file")
    if target not in TARGETS:
        raise OptionError(f"target is {target!r}, expected one of {', '.join(TARGETS)}")
    if mode not in MODES[target]:
        raise OptionError(f"mode is {mode!r}, expected one of {', '.join(MODES[target])} for target {target}")
    if float_type is not None and float_type not in FLOAT_TYPES[target]:
        allowed = ", ".join(FLOAT_TYPES[target])
        raise OptionError(f"float type is {float_type!r}, expected one of {allowed} for target {target}")
    if conv is not None and conv not in CONVS[target]:
        takers = ", ".join(f"{name} ({', '.join(CONVS[name])})" for name in TARGETS if CONVS[name])
        raise OptionError(f"conv is {conv!r} for target {target}; it can be given for {takers}")
    if layout is not None and layout not in LAYOUTS[target]:
        takers = ", ".join(f"{name} ({', '.join(LAYOUTS[name])})" for name in TARGETS if LAYOUTS[name])
        raise OptionError(f"layout is {layout!r} for target {target}; it can be given for {takers}")


def export(
    record: Record,
    path: str | Path,
    *,
    target: str = "onnxruntime",
    mode: str = "exact",
    float_type: str | None = None,
    conv: str | None = None,
    layout: str | None = None,
) -> EngineManifest:
    """Write the integer graph of a record for one engine, with its manifest.

    Args:
        record: the quantized denoiser.
        path: `.onnx` file to write; its manifest goes to `<path>.json` and into the file's metadata.
        target: `onnxruntime`, `openvino`, `tensorrt` or `tensorrt-rtx`.
        mode: `exact`, or `fast` for onnxruntime: one declared requantization behind each convolution.
        float_type: of the operations between the layers: float16 (default), bfloat16 or float32 for the TensorRT
            targets, float32 elsewhere.
        conv: for tensorrt-rtx, `gemm` (default: products of int8 patches) or `native`.
        layout: `optimum`: inputs and outputs are named and shaped as Optimum's pipelines give and read them.

    Returns:
        The manifest.

    Raises:
        OptionError: unknown target or mode, or an option the target does not have.
        FileProblemError: the output cannot be written.
        ModelError: the denoiser cannot be traced.
    """
    from dq_deploy.record import check_is_record

    check_is_record(record)
    check_target(target, mode, float_type=float_type, conv=conv, layout=layout)
    path = file_for_several(checked_name(Path(path), ".onnx"), "the manifest")
    check_writable(path)
    from dq_deploy.graph.onnx_file import write_onnx

    made = engine_graph(record, target=target, mode=mode, float_type=float_type, conv=conv, layout=layout)
    write_onnx(made.model, path, made.manifest)
    return made.manifest


@dataclass(frozen=True, kw_only=True)
class EngineGraph:
    """What `export` writes.

    Attributes:
        model: the graph.
        manifest: of it.
    """

    model: ir.Model
    manifest: EngineManifest


def engine_graph(
    record: Record,
    *,
    target: str = "onnxruntime",
    mode: str = "exact",
    float_type: str | None = None,
    conv: str | None = None,
    layout: str | None = None,
    traced: ir.Model | None = None,
) -> EngineGraph:
    """The graph and the manifest that `export` writes for the same arguments: both follow from them alone.

    Args:
        record: as of `export`, and so the next five.
        target: engine.
        mode: `exact` or `fast`.
        float_type: of the operations between the layers.
        conv: how convolutions are written.
        layout: names and shapes of inputs and outputs.
        traced: the record's denoiser, traced, where it is there already; see `traced_graphs.traced_denoiser`.

    Raises:
        OptionError: unknown target or mode, or an option the target does not have.
        ModelError: the denoiser cannot be traced.
    """
    check_target(target, mode, float_type=float_type, conv=conv, layout=layout)
    from dq_deploy.graph.varying import sizes_of
    from dq_deploy.targets import onnxruntime as onnxruntime_target
    from dq_deploy.targets.manifest import manifest_of

    options = ManifestOptions(target=target, mode=mode, layout=layout)
    if CONVS[target]:
        from dq_deploy.targets import tensorrt as tensorrt_target

        float_type, conv = float_type or FLOAT_TYPES[target][0], conv or CONVS[target][0]
        options = replace(options, float_type=float_type, conv=conv)
        result = tensorrt_target.integer_graph(record, target=target, float_type=float_type, conv=conv, traced=traced)
    elif target == "openvino":
        from dq_deploy.targets import openvino as openvino_target

        result = openvino_target.integer_graph(record, traced=traced)
    else:
        result = onnxruntime_target.integer_graph(record, mode=mode, traced=traced)
    manifest = manifest_of(
        record,
        layers=result.layers,
        notes=result.notes,
        options=options,
        float_precision=result.float_precision,
        varying=sizes_of(result.model),
    )
    if layout is not None:
        from dq_deploy.targets.optimum_border import OptimumBorder

        border = OptimumBorder()
        border.apply(result.model)
        manifest = replace(manifest, outputs=border.outputs(manifest))
    return EngineGraph(model=result.model, manifest=manifest)


def float_graph(
    manifest: EngineManifest, path: str | Path, *, record: Record | None = None, float_type: str = "float32"
) -> None:
    """Write the float graph of the same tracer: the baseline an engine is timed against.

    Args:
        manifest: of the engine; names the family and its configuration.
        path: `.onnx` file to write.
        record: gives real weights; without it they are random, which costs the same time.
        float_type: of its operations, by the rules of the TensorRT targets: float16, bfloat16 or float32.

    Raises:
        OptionError: another float type, or the manifest's target is none.
        ModelError: the manifest names no family.
    """
    if manifest.family is None:
        raise ModelError("the manifest names no denoiser family, expected one such as unet2d; export the engine again")
    from dq_deploy.targets.manifest import call_of_manifest

    write_float_graph(
        manifest.family,
        manifest.model_config,
        call_of_manifest(manifest),
        path,
        target=manifest.target,
        record=record,
        float_type=float_type,
    )


def write_float_graph(
    family: str,
    config: Mapping[str, Any],
    call: Call,
    path: str | Path,
    *,
    target: str = "onnxruntime",
    record: Record | None = None,
    float_type: str = "float32",
) -> None:
    """Write the float graph of a denoiser.

    Args:
        family: of the denoiser, as `unet2d`.
        config: its diffusers configuration.
        call: how it is called.
        path: `.onnx` file to write.
        target: engine it is for: its norms are in the form that this engine computes fastest.
        record: as of `float_graph`.
        float_type: as of `float_graph`.

    Raises:
        OptionError: another float type or target.
    """
    if target not in TARGETS:
        raise OptionError(f"target is {target!r}, expected one of {', '.join(TARGETS)}")
    if float_type not in FLOAT_TYPES["tensorrt"]:
        raise OptionError(f"float type is {float_type!r}, expected one of {', '.join(FLOAT_TYPES['tensorrt'])}")
    from dq_deploy.graph.onnx_file import write_onnx
    from dq_deploy.graph.passes.float_types import FloatTypes
    from dq_deploy.targets.traced_graphs import traced_float_graph

    model = traced_float_graph(family, dict(config), record, call, instance_norms=not CONVS[target])
    FloatTypes(float_type, {} if record is None else record.float_ranges).apply(model)
    write_onnx(model, Path(path), None)


def simulation_graph(
    record: Record,
    path: str | Path,
    *,
    mode: str = "exact",
    target: str = "onnxruntime",
    traced: ir.Model | None = None,
) -> None:
    """Write the record's simulation as a float ONNX graph: no integer kernel, the same operations elsewhere.

    Args:
        record: the quantized denoiser.
        path: `.onnx` file to write, without a manifest.
        mode: `exact`, or `fast` with the declared requantization behind each convolution.
        target: engine it is compared with; weight-only layers are written as there.
        traced: as of `engine_graph`.
    """
    from dq_deploy.graph.onnx_file import write_onnx
    from dq_deploy.targets.traced_graphs import traced_simulation

    form = "matmul_nbits" if target == "onnxruntime" else "dequantize"
    model = traced_simulation(record, requantize=mode == "fast", weight_only_form=form, traced=traced)
    write_onnx(model, Path(path), None)
