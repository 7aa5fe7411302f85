"""The border of a denoiser's graph as the pipelines of Optimum give its inputs and read its output."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from dq_deploy.errors import ModelError
from dq_deploy.graph.pass_contract import PassResult
from dq_deploy.graph.writing.builder import Builder
from dq_deploy.graph.writing.steps import SPREAD_TIMESTEP, TIMESTEP
from dq_deploy.manifest.values import EngineManifest, TensorEntry

OUTPUTS = {"sample": "out_sample", "hidden_states": "out_hidden_states"}
"""Name of the output by that of the input which it replaces in the next step."""


class OptimumBorder:
    """Rewrites inputs and outputs alone; what stands between them is the graph it was.

    1. The timestep may have one value for the whole batch: it is spread over the batch of the sample. Its size is left
       without a name, for it is 1 or the batch.
    2. The output is called `out_sample` of a UNet and `out_hidden_states` of a transformer.
    """

    name = "optimum-border"

    def apply(self, model: ir.Model) -> PassResult:
        """Edit the model in place.

        Raises:
            ModelError: neither a sample nor hidden states go in, or several outputs come out.
        """
        graph = model.graph
        if len(graph.outputs) != 1:
            raise ModelError(f"the denoiser has {len(graph.outputs)} outputs, expected one; it has no such layout")
        sample = next((value for value in graph.inputs if value.name in OUTPUTS), None)
        if sample is None:
            found = ", ".join(str(value.name) for value in graph.inputs)
            raise ModelError(f"the denoiser takes {found}, expected sample or hidden_states; it has no such layout")
        self._spread(graph, sample)
        assert sample.name is not None
        graph.outputs[0].name = OUTPUTS[sample.name]
        return PassResult(model=model, modified=True)

    def _spread(self, graph: ir.Graph, sample: ir.Value) -> None:
        """Rule 1."""
        timestep = next((value for value in graph.inputs if value.name == TIMESTEP), None)
        if timestep is None:
            return
        readers = list(timestep.uses())
        prefix, role = SPREAD_TIMESTEP.rsplit("/", 1)
        b = Builder(graph, next(iter(graph)), prefix)
        batch = b.op("Shape", [sample], "batch", attributes={"start": 0, "end": 1}, dtype=ir.DataType.INT64)
        assert timestep.dtype is not None
        one_each = b.op("Expand", [timestep, batch], role, dtype=timestep.dtype)
        one_each.shape = timestep.shape
        for node, index in readers:
            node.replace_input_with(index, one_each)
        timestep.shape = ir.Shape([None])

    @staticmethod
    def outputs(manifest: EngineManifest) -> tuple[TensorEntry, ...]:
        """The outputs of a manifest under their new names."""
        name = next(OUTPUTS[entry.name] for entry in manifest.inputs if entry.name in OUTPUTS)
        return (replace(manifest.outputs[0], name=name),)
