"""Target ONNX Runtime on a CPU: mode exact (float outputs) and mode fast (declared requantization)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dq_deploy.graph.pass_contract import Pass, run_passes
from dq_deploy.graph.passes.cleanup import EqualConstantsOnce, ForgetModules, ForgetTypes, RemoveUnused
from dq_deploy.graph.passes.onnxruntime_layers import IntegerLayers
from dq_deploy.graph.passes.pads import PadsAsModules
from dq_deploy.graph.passes.weight_only_layers import WeightOnlyLayers
from dq_deploy.manifest.values import KeptFloat, ManifestLayer
from dq_deploy.models import call_of_record
from dq_deploy.targets.traced_graphs import traced_float_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from dq_deploy.record import Record


@dataclass(frozen=True, kw_only=True)
class IntegerGraph:
    """What a target makes of a record.

    Attributes:
        model: the graph.
        layers: the manifest's entry of each layer.
        notes: what passes declined, with reasons.
        float_precision: float operations kept out of the float type, with reasons; None where there is no choice.
    """

    model: ir.Model
    layers: list[ManifestLayer]
    notes: tuple[str, ...]
    float_precision: list[KeptFloat] | None = None


def integer_graph(record: Record, *, mode: str, traced: ir.Model | None = None) -> IntegerGraph:
    """Trace the record's denoiser and put its integer layers in.

    Args:
        record: the quantized denoiser.
        mode: `exact` or `fast`.
        traced: as of `traced_float_graph`.
    """
    model = traced_float_graph(record.family, record.model_config, record, call_of_record(record), traced=traced)
    if mode == "fast":
        from dq_deploy.graph.passes.onnxruntime_fast_layers import RequantizedLayers

        layers: Any = RequantizedLayers(record)
    else:
        layers = IntegerLayers(record)
    light = WeightOnlyLayers(record, form="matmul_nbits")
    ends: list[Pass] = [RemoveUnused(), EqualConstantsOnce(), ForgetModules(), ForgetTypes()]
    result = run_passes(model, [PadsAsModules(record), layers, light, *ends])
    return IntegerGraph(model=result.model, layers=layers.entries + light.entries, notes=result.notes)
