"""The float parts of a pipeline as ONNX graphs: text encoders, and both halves of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dq_deploy.errors import ModelError, first_line, raise_if_out_of_memory
from dq_deploy.graph.trace import OPSET, quiet_tracer, translations

if TYPE_CHECKING:
    import onnx_ir as ir

Shape = tuple[int | str, ...]
"""Sizes of a tensor; a text names one that varies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatPart:
    """A float module that becomes a graph of one input.

    Attributes:
        name: of its folder, as `vae_decoder`.
        module: takes the input, gives the outputs in order.
        example: input of any sizes; those that vary are 2 or more.
        input: name of the input, and its shape.
        outputs: shape by name.
        layers: of a text encoder.
    """

    name: str
    module: torch.nn.Module
    example: torch.Tensor
    input: tuple[str, Shape]
    outputs: Mapping[str, Shape]
    layers: int = 0


class _Text(torch.nn.Module):
    """A text encoder whose outputs stand in one order: those of `names`, then the first hidden states."""

    def __init__(self, encoder: Any, names: Sequence[str], hidden: int) -> None:
        super().__init__()
        self.encoder, self.names, self.hidden = encoder, tuple(names), hidden

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.encoder(input_ids=input_ids, output_hidden_states=self.hidden > 0, return_dict=True)
        states = found.hidden_states[: self.hidden] if self.hidden else ()
        return (*(found[name] for name in self.names), *states)


class _Decoder(torch.nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        pictures: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return pictures


class _Encoder(torch.nn.Module):
    """Gives mean and logarithm of the variance: the pipeline draws from them."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        parameters: torch.Tensor = self.vae.encode(pictures, return_dict=False)[0].parameters
        return parameters


def text_part(name: str, encoder: Any, outputs: Sequence[str], *, hidden: int) -> FloatPart:
    """A text encoder of transformers.

    Args:
        name: of the component.
        encoder: of transformers.
        outputs: names of its outputs, in order.
        hidden: how many hidden states follow, the embeddings first.
    """
    if hasattr(encoder, "set_attn_implementation"):
        encoder.set_attn_implementation("eager")  # the tracer cannot follow T5's fused attention
    names = (*outputs, *(f"hidden_states.{i}" for i in range(hidden)))
    width, projected = encoder.config.hidden_size, getattr(encoder.config, "projection_dim", None)
    sizes = {"text_embeds": ("batch_size", projected), "pooler_output": ("batch_size", width)}
    return FloatPart(
        name=name,
        module=_Text(encoder, outputs, hidden),
        example=torch.zeros(2, 8, dtype=torch.int64),
        input=("input_ids", ("batch_size", "sequence_length")),
        outputs={one: sizes.get(one, ("batch_size", "sequence_length", width)) for one in names},
        layers=encoder.config.num_hidden_layers,
    )


def vae_parts(vae: Any) -> tuple[FloatPart, FloatPart]:
    """Decoder and encoder of an AutoencoderKL."""
    config = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    latent, picture = ("latent_height", "latent_width"), ("sample_height", "sample_width")
    decoder = FloatPart(
        name="vae_decoder",
        module=_Decoder(vae),
        example=torch.zeros(2, config.latent_channels, 8, 6),
        input=("latent_sample", ("batch_size", config.latent_channels, *latent)),
        outputs={"sample": ("batch_size", config.out_channels, *(f"{side} * {factor}" for side in latent))},
    )
    encoder = FloatPart(
        name="vae_encoder",
        module=_Encoder(vae),
        example=torch.zeros(2, config.in_channels, 8 * factor, 6 * factor),
        input=("sample", ("batch_size", config.in_channels, *picture)),
        outputs={
            "latent_parameters": ("batch_size", 2 * config.latent_channels, *(f"{side} / {factor}" for side in picture))
        },
    )
    return decoder, encoder


def traced_part(part: FloatPart) -> ir.Model:
    """The graph of a float part, float32.

    Raises:
        ModelError: torch cannot trace it.
    """
    name, shape = part.input
    varying = {axis: torch.export.Dim.AUTO for axis, size in enumerate(shape) if isinstance(size, str)}
    try:
        with quiet_tracer(), torch.no_grad():
            program = torch.onnx.export(
                part.module.eval(),
                (part.example,),
                dynamo=True,
                input_names=[name],
                output_names=list(part.outputs),
                dynamic_shapes=(varying,),
                opset_version=OPSET,
                custom_translation_table=translations(),
                verbose=False,
                optimize=True,
            )
    except Exception as error:  # torch raises many unrelated types here
        raise_if_out_of_memory(error)
        raise ModelError(
            f"torch could not trace the {part.name}: {first_line(error)}; please report this model"
        ) from error
    if program is None:
        raise ModelError(f"torch.onnx.export returned nothing for the {part.name}; expected a traced graph")
    model: ir.Model = program.model
    _name_shapes(model, part)
    return _without_notes(model, part.name)


def _name_shapes(model: ir.Model, part: FloatPart) -> None:
    """Give inputs and outputs the sizes' names.

    Raises:
        ModelError: the tracer fixed a size that has to vary.
    """
    import onnx_ir as ir

    shapes = dict([part.input], **part.outputs)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        wanted = shapes[str(value.name)]
        found = value.shape if value.shape is not None else wanted
        fixed = [
            size for size, got in zip(wanted, found, strict=True) if isinstance(size, str) and isinstance(got, int)
        ]
        if fixed:
            raise ModelError(
                f"the {part.name} has the {fixed[0]} of {value.name} fixed by the tracer, expected it free"
            )
        value.shape = ir.Shape(wanted)


def _without_notes(model: ir.Model, name: str) -> ir.Model:
    """Drop the tracer's notes, paths of this machine included."""
    graph = model.graph
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()
    graph.name, graph.doc_string, model.doc_string = name, None, None
    model.producer_name, model.producer_version = "dq_deploy", None
    return model
