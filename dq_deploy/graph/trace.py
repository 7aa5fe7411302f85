"""Float denoiser -> onnx-ir graph; the one file of this package that uses torch."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.errors import ModelError, raise_if_out_of_memory
from dq_deploy.graph.exact_constants import ConstantsInFloat64

OPSET = 21
MODULE_KEY = "dq_deploy.module"
"""Node metadata: path of the innermost module a node was traced from."""

_ROOT = "denoiser."
_SCOPES = "pkg.torch.onnx.name_scopes"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, warnings of the tracer and of the optimizer are not shown; weights without a value are one."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _call_by_name(module: Any, inputs: Mapping[str, Any]) -> Any:
    """The denoiser's output where every input is a keyword argument of it."""
    return module(**inputs, return_dict=False)[0]


def trace(
    module: Any,
    example: Mapping[str, NDArray[np.generic]],
    *,
    output: str = "output",
    call: Callable[[Any, Mapping[str, Any]], Any] = _call_by_name,
    weights: Mapping[str, ir.TensorProtocol] | None = None,
    varying: Mapping[str, Mapping[int, str]] | None = None,
) -> ir.Model:
    """Trace a diffusers denoiser with a dynamic batch.

    Only shapes pass through the tracer; the parameters are put into the graph afterwards, so those in `weights` may
    be tensors that compute their values when they are read.

    Args:
        module: torch module; parameters that are in `weights` may be on the device `meta`.
        example: inputs by name in call order, batch of at least 2; timestep is float32 [B].
        output: name of the graph's output.
        call: gives the output of the module for inputs by name.
        varying: names of the sizes that vary besides the batch, by input and axis.
        weights: values of some parameters by state-dict key; the others are the module's own.

    Returns:
        Model at opset 21 whose nodes carry their module path under `MODULE_KEY`.

    Raises:
        ModelError: torch cannot export this module.
    """
    import torch

    try:
        with _quiet(), torch.no_grad():
            program = _shapes_exported(module, example, output, call, varying or {})
            if program is not None:
                _fill_own(program.model, module, weights or {})
                ConstantsInFloat64().apply(program.model)
                program.optimize()
    except Exception as error:  # torch raises many unrelated types here
        raise_if_out_of_memory(error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch could not trace the denoiser: {reason}; expected a diffusers UNet") from error
    if program is None:
        raise ModelError("torch.onnx.export returned nothing; expected a traced graph")
    _fill_given(program.model, weights or {})
    return _tidy(program.model)


def _shapes_exported(
    module: Any,
    example: Mapping[str, NDArray[np.generic]],
    output: str,
    call: Callable[[Any, Mapping[str, Any]], Any],
    varying: Mapping[str, Mapping[int, str]],
) -> Any:
    """The exporter's program of a copy of the module that has shapes and no values."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Call(torch.nn.Module):
        def __init__(self, denoiser: Any) -> None:
            super().__init__()
            self.denoiser = denoiser

        def forward(self, *args: Any) -> Any:
            return call(self.denoiser, dict(zip(example, args, strict=True)))

    names = dict.fromkeys(["B", *(size for axes in varying.values() for size in axes.values())])
    dims = {name: torch.export.Dim(name, min=1, max=4096) for name in names}
    shapes = tuple(
        {0: dims["B"], **{axis: dims[size] for axis, size in varying.get(name, {}).items()}} for name in example
    )
    with FakeTensorMode() as mode:
        memo: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype) for b in module.buffers()}
        for p in module.parameters():
            memo[id(p)] = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=False)
        tensors = tuple(mode.from_tensor(torch.from_numpy(np.array(value))) for value in example.values())
        return torch.onnx.export(
            Call(copy.deepcopy(module, memo)).eval(),
            tensors,
            dynamo=True,
            input_names=list(example),
            output_names=[output],
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            verbose=False,
            optimize=False,
        )


def _fill_own(model: ir.Model, module: Any, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Give every initializer that stands for a parameter of the module, and is not in `weights`, its value."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in model.graph.initializers.items():
        key = name.removeprefix(_ROOT)
        if name.startswith(_ROOT) and key in own:
            # without a value the optimizer leaves it alone, and a lazy tensor stays unread
            value.const_value = None if key in weights else ir.tensor(own[key].detach().numpy(), name=name)


def _fill_given(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Give the other initializers theirs; their transposes become initializers too, computed when they are read."""
    graph = model.graph
    for key, tensor in weights.items():
        value = graph.initializers.get(_ROOT + key)
        if value is None:
            continue
        value.const_value = tensor
        for node in [use.node for use in value.uses() if use.node.op_type == "Transpose"]:
            turned = _transposed(tensor, node.attributes["perm"].as_ints(), f"{_ROOT}{key}.transposed")
            graph.register_initializer(turned)
            node.outputs[0].replace_all_uses_with(turned)
            graph.remove(node, safe=True)


def _transposed(tensor: ir.TensorProtocol, axes: Sequence[int], name: str) -> ir.Value:
    shape = ir.Shape([int(tensor.shape[axis]) for axis in axes])
    values = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().transpose(axes)), dtype=tensor.dtype, shape=shape, name=name
    )
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=values)


def _tidy(model: ir.Model) -> ir.Model:
    """Keep the module path of each node and drop the tracer's other notes, paths of this machine included."""
    for node in model.graph:
        scopes = node.metadata_props.get(_SCOPES)
        path = _module_path(scopes) if scopes else ""
        node.metadata_props.clear()
        node.doc_string = None
        if path:
            node.metadata_props[MODULE_KEY] = path
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.name = "denoiser"
    model.producer_name, model.producer_version = "dq_deploy", None
    for name in list(model.graph.initializers):
        if name.startswith(_ROOT):
            value = model.graph.initializers.pop(name)
            value.name = name.removeprefix(_ROOT)
            model.graph.register_initializer(value)
    return model


def _module_path(scopes: str) -> str:
    import ast

    names = ast.literal_eval(scopes)
    if len(names) < 2:
        return ""
    return str(names[-2]).removeprefix("denoiser").removeprefix(".")
