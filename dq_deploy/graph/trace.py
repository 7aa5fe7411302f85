"""Float denoiser -> onnx-ir graph; the one file of this package that uses torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq_deploy.errors import ModelError

OPSET = 21
MODULE_KEY = "dq_deploy.module"
"""Node metadata: path of the innermost module a node was traced from."""

_SCOPES = "pkg.torch.onnx.name_scopes"


def trace(module: Any, example: Mapping[str, NDArray[np.generic]], *, output: str = "output") -> ir.Model:
    """Trace a diffusers denoiser with a dynamic batch.

    Args:
        module: torch module called as module(sample, timestep, class_labels=..., return_dict=False)[0].
        example: inputs by name in call order, batch of at least 2; timestep is float32 [B].
        output: name of the graph's output.

    Returns:
        Model at opset 21 whose nodes carry their module path under `MODULE_KEY`.

    Raises:
        ModelError: torch cannot export this module.
    """
    import torch

    class Call(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = module

        def forward(self, *args: Any) -> Any:
            named = dict(zip(list(example)[2:], args[2:], strict=True))
            return self.denoiser(args[0], args[1], **named, return_dict=False)[0]

    batch = torch.export.Dim("B", min=1, max=4096)
    tensors = tuple(torch.from_numpy(np.array(value)) for value in example.values())
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    try:
        exporter_log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Call().eval(),
                tensors,
                dynamo=True,
                input_names=list(example),
                output_names=[output],
                dynamic_shapes=(tuple({0: batch} for _ in tensors),),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # torch raises many unrelated types here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch could not trace the denoiser: {reason}; expected a diffusers UNet2DModel") from error
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise ModelError("torch.onnx.export returned nothing; expected a traced graph")
    return _tidy(program.model)


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
        if name.startswith("denoiser."):
            value = model.graph.initializers.pop(name)
            value.name = name.removeprefix("denoiser.")
            model.graph.register_initializer(value)
    return model


def _module_path(scopes: str) -> str:
    import ast

    names = ast.literal_eval(scopes)
    if len(names) < 2:
        return ""
    return str(names[-2]).removeprefix("denoiser").removeprefix(".")
