"""The traced graphs without integers: the float one every target starts from, and its simulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dq_deploy.graph.cleanup import RemoveUnused
from dq_deploy.graph.norms import GroupNormAsInstanceNorm
from dq_deploy.graph.pads import PadsAsModules
from dq_deploy.graph.passes import run_passes
from dq_deploy.graph.simulated_layers import SimulatedLayers
from dq_deploy.graph.trace import trace
from dq_deploy.graph.weight_only_layers import WeightOnlyLayers
from dq_deploy.models import build_denoiser, denoiser_from_record, example_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

    from dq_deploy.record import Record


def traced_float_graph(family: str, config: Mapping[str, Any], record: Record | None) -> ir.Model:
    """Trace a denoiser and put its norms in the form the engines compute fastest.

    Args:
        family: denoiser family, as `unet2d`.
        config: its diffusers configuration.
        record: gives the weights; without it they are random.

    Returns:
        Float model with inputs sample [B, C, H, W], timestep [B] and, where there are, class_labels [B].
    """
    module = build_denoiser(family, dict(config)) if record is None else denoiser_from_record(record)
    model = trace(module.eval(), example_inputs(dict(config), 2, 0))
    return run_passes(model, [GroupNormAsInstanceNorm(), RemoveUnused()]).model


def traced_simulation(record: Record, *, requantize: bool = False, weight_only_form: str = "dequantize") -> ir.Model:
    """The float graph with the record's integer layers simulated in float32.

    Args:
        record: the quantized denoiser.
        requantize: with the declared requantization behind each convolution, as mode fast has it.
        weight_only_form: of `WeightOnlyLayers`, as the engine has it.

    Raises:
        RecordError: a layer is too wide to be exact in float32, or its weights differ by step.
    """
    model = traced_float_graph(record.family, record.model_config, record)
    simulated = SimulatedLayers(record, requantize=requantize)
    light = WeightOnlyLayers(record, form=weight_only_form)
    return run_passes(model, [PadsAsModules(record), simulated, light, RemoveUnused()]).model
