"""Target OpenVINO on a CPU, mode exact: every form is exact with and without VNNI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.cleanup import EqualConstantsOnce, ForgetModules, RemoveUnused
from dq_deploy.graph.passes.openvino_layers import OpenVinoLayers
from dq_deploy.graph.passes.pads import PadsAsModules
from dq_deploy.graph.passes.weight_only_layers import WeightOnlyLayers
from dq_deploy.models import call_of_record
from dq_deploy.targets.onnxruntime import IntegerGraph
from dq_deploy.targets.traced_graphs import traced_float_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from dq_deploy.record import Record


def integer_graph(record: Record, *, traced: ir.Model | None = None) -> IntegerGraph:
    """Trace the record's denoiser and put its integer layers in.

    Args:
        record: the quantized denoiser.
        traced: as of `traced_float_graph`.
    """
    model = traced_float_graph(record.family, record.model_config, record, call_of_record(record), traced=traced)
    layers = OpenVinoLayers(record)
    light = WeightOnlyLayers(record)
    result = run_passes(
        model, [PadsAsModules(record), layers, light, RemoveUnused(), EqualConstantsOnce(), ForgetModules()]
    )
    return IntegerGraph(model=result.model, layers=layers.entries + light.entries, notes=result.notes)
