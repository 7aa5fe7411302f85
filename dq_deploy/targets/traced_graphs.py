"""The traced graphs without integers: the float one every target starts from, and its simulation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from dq_deploy.graph.pass_contract import run_passes
from dq_deploy.graph.passes.attention_keys import KeysInOneTranspose
from dq_deploy.graph.passes.cleanup import NeedlessSqueezes, RemoveUnused
from dq_deploy.graph.passes.norms import GroupNormAsInstanceNorm
from dq_deploy.graph.passes.pads import PadsAsModules
from dq_deploy.graph.passes.simulated_layers import SimulatedLayers
from dq_deploy.graph.passes.weight_only_layers import WeightOnlyLayers
from dq_deploy.graph.trace import trace
from dq_deploy.graph.varying import keep_sizes, sizes_of
from dq_deploy.models import (
    build_denoiser,
    call_arguments,
    call_of_record,
    denoiser_from_record,
    example_inputs,
    input_specs,
    lazy_weights,
    named_outputs,
    output_specs,
)

if TYPE_CHECKING:
    from dq_deploy.models.rebuild import LazyWeight
    from dq_deploy.record import Call, Record


def traced_denoiser(
    family: str, config: Mapping[str, Any], record: Record | None, call: Call, *, anew: bool = False
) -> ir.Model:
    """Trace a denoiser as it is; see `traced_float_graph`, which may be given a copy of what this returns.

    Args:
        family: of the denoiser.
        config: its diffusers configuration.
        record: gives the weights.
        call: of the denoiser.
        anew: for a proof, which takes nothing from what it proves: graphs kept for exports are not given, only those
            that another proof traced.
    """
    if record is None:
        module, weights = build_denoiser(family, dict(config)), {}
    else:
        module, weights = denoiser_from_record(record, dequantize=False), _lazy_tensors(record)
    # torch takes a size of 1 for one that never changes
    sizes = {name: max(size, 2) for name, size in call.sizes.items()}
    return trace(
        module.eval(),
        example_inputs(call, 2, 0, sizes=sizes),
        call=partial(_call, call.constants),
        weights=weights,
        shapes={spec.name: spec.shape for spec in input_specs(call)},
        outputs={spec.name: spec.shape for spec in output_specs(call)},
        key=(anew, family, json.dumps(dict(config), sort_keys=True, default=repr), repr(call)),
    )


def traced_float_graph(
    family: str,
    config: Mapping[str, Any],
    record: Record | None,
    call: Call,
    *,
    instance_norms: bool = True,
    traced: ir.Model | None = None,
) -> ir.Model:
    """Trace a denoiser and put its norms in the form the engines compute fastest.

    Args:
        family: denoiser family, as `unet2d`.
        config: its diffusers configuration.
        record: gives the weights; without it they are random.
        call: of the denoiser.
        instance_norms: group norms in the form ONNX Runtime and OpenVINO compute fastest, else as GroupNormalization.
        traced: of `traced_denoiser` for the same family, configuration and record, where it is there already; it is
            copied and not changed.

    Returns:
        Float model with the inputs of `models.input_specs`. The float weight of a quantized layer is an initializer
        that computes its values when they are read: it costs nothing where a pass puts integers in its place.
    """
    found = traced_denoiser(family, config, record, call) if traced is None else traced
    model = found if traced is None else found.clone()
    keep_sizes(model, sizes_of(found))  # a copy does not
    norms = [GroupNormAsInstanceNorm()] if instance_norms else []
    return run_passes(model, [NeedlessSqueezes(), *norms, KeysInOneTranspose(), RemoveUnused()]).model


def _call(constants: Mapping[str, Any], module: Any, inputs: Mapping[str, Any]) -> Any:
    return list(named_outputs(module(**call_arguments(inputs, constants))).values())


def _lazy_tensors(record: Record) -> dict[str, ir.TensorProtocol]:
    def tensor(key: str, weight: LazyWeight) -> ir.TensorProtocol:
        return ir.LazyTensor(
            lambda: ir.tensor(weight.read()), dtype=ir.DataType.FLOAT, shape=ir.Shape(weight.shape), name=key
        )

    return {key: tensor(key, weight) for key, weight in lazy_weights(record).items()}


def traced_simulation(
    record: Record,
    *,
    requantize: bool = False,
    weight_only_form: str = "dequantize",
    traced: ir.Model | None = None,
) -> ir.Model:
    """The float graph with the record's integer layers simulated in float32.

    Args:
        record: the quantized denoiser.
        requantize: with the declared requantization behind each convolution, as mode fast has it.
        weight_only_form: of `WeightOnlyLayers`, as the engine has it.
        traced: as of `traced_float_graph`.

    Raises:
        RecordError: a layer is too wide to be exact in float32, or its weights differ by step.
    """
    model = traced_float_graph(record.family, record.model_config, record, call_of_record(record), traced=traced)
    simulated = SimulatedLayers(record, requantize=requantize)
    light = WeightOnlyLayers(record, form=weight_only_form)
    return run_passes(model, [PadsAsModules(record), simulated, light, RemoveUnused()]).model
