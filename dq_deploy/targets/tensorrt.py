"""Targets TensorRT and TensorRT-RTX, mode exact: int8 products, the rest in a chosen float type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dq_deploy.graph.pass_contract import Pass, run_passes
from dq_deploy.graph.passes.cleanup import EqualConstantsOnce, ForgetModules, RemoveUnused
from dq_deploy.graph.passes.float_types import FloatTypes
from dq_deploy.graph.passes.pads import PadsAsModules
from dq_deploy.graph.passes.tensorrt_layers import TensorRtLayers
from dq_deploy.graph.passes.weight_only_layers import WeightOnlyLayers
from dq_deploy.models import call_of_record
from dq_deploy.targets.onnxruntime import IntegerGraph
from dq_deploy.targets.traced_graphs import traced_float_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from dq_deploy.record import Record


def integer_graph(
    record: Record, *, target: str, float_type: str, conv: str, traced: ir.Model | None = None
) -> IntegerGraph:
    """Trace the record's denoiser and put its integer layers in.

    Args:
        record: the quantized denoiser.
        target: `tensorrt` or `tensorrt-rtx`.
        float_type: `float16`, `bfloat16` or `float32`, of everything but the integer layers.
        conv: `gemm` or `native`; only `native` for `tensorrt`, whose convolutions run in integers themselves.
        traced: as of `traced_float_graph`.
    """
    model = traced_float_graph(
        record.family, record.model_config, record, call_of_record(record), instance_norms=False, traced=traced
    )
    rtx = target == "tensorrt-rtx"
    layers = TensorRtLayers(record, conv=conv, pixels_as_rows=rtx, int4=rtx)
    light = WeightOnlyLayers(record)
    types = FloatTypes(float_type, record.float_ranges, layers.entries, weight_only=tuple(record.weight_only))
    ends: list[Pass] = [RemoveUnused(), types, RemoveUnused(), EqualConstantsOnce(), ForgetModules()]
    passes: list[Pass] = [PadsAsModules(record), layers, light, *ends]
    result = run_passes(model, passes)
    return IntegerGraph(
        model=result.model, layers=layers.entries + light.entries, notes=result.notes, float_precision=types.kept
    )
