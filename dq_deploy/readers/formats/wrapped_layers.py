"""The layout that Q-Diffusion began: a state dict under `model.` with quantizers beside each layer's weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dq_deploy.errors import FileProblemError
from dq_deploy.numerics.arrays import F32, I32, Array
from dq_deploy.readers.architectures.described_network import float_state
from dq_deploy.readers.foreign import ForeignLayer, ForeignModel, ForeignPart
from dq_deploy.readers.formats.attention_quantizers import Names, by_time, read_attention
from dq_deploy.readers.formats.quantizer_tensors import Source, halves, positive, tables_by_time, weight_tables, whole
from dq_deploy.readers.tensors import Tensors, few

PREFIX = "model."


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a source differs from the others.

    Attributes:
        table_names: names of an activation quantizer's scale and zero point.
        one_table: [T] or [1] numbers of such a tensor.
        floor_zero_point: whether weight zero points are rounded down where rounding was learned.
        every_alpha: whether learned rounding is there for all layers or none.
        signed: whether symmetric activations have codes around zero; else they are unsigned with a zero point.
        float_weights: whether the weights are the float model's own.
        ignored: names of quantizer tensors that say nothing.
    """

    table_names: tuple[str, str] = ("delta", "zero_point")
    one_table: Callable[[Array, str], Array]
    floor_zero_point: bool = False
    every_alpha: bool = True
    signed: bool = True
    float_weights: bool = True
    ignored: tuple[str, ...] = ()


def read_wrapped(
    source: Source,
    layout: Layout,
    *,
    float_reasons: dict[str, str],
    other_activation_bits: dict[str, int] | None = None,
) -> ForeignModel:
    """The network in a state dict of this layout.

    Args:
        source: the file and what is known of it.
        layout: of the source.
        float_reasons: layers whose product cannot be an integer one, with the reason.
        other_activation_bits: of single layers, where the source has its own rule.

    Raises:
        FileProblemError: keys that are missing or unknown, wrong shapes, damaged numbers.
        OptionError: settings that the file contradicts.
    """
    tensors = wrapped_tensors(source)
    state = float_state(tensors, source.architecture, source.shapes)
    _check_alpha(tensors, source, layout)
    _check_activations(tensors, source)
    layers, counts = {}, set()
    bits_of = other_activation_bits or {}
    for path in source.layers:
        if f"{path}.weight_quantizer.delta" in tensors:
            layer = _layer(tensors, path, state, source, layout, bits_of, float_reasons.get(path, ""))
            counts |= {len(part.act_delta) for part in layer.parts}
            layers[path] = layer
    steps = _steps_of(counts, source)
    names = Names(scale=layout.table_names[0], zero_point=layout.table_names[1], signed=layout.signed)
    attention, dropped = read_attention(tensors, source, names, one_table=layout.one_table, steps=steps)
    times, edges, order = tables_by_time(source, count=steps)
    layers = {path: _in_order(layer, order) for path, layer in layers.items()} if steps > 1 else layers
    unknown = [n for n in tensors.unasked() if n.rpartition(".")[2] not in layout.ignored]
    if unknown:
        raise FileProblemError(
            f"{source.name} has {few(unknown)}, which {source.architecture.family} has no place for; "
            "check `reader` and the architecture in the settings"
        )
    return ForeignModel(
        state=state,
        layers=layers,
        floats={p: "the file has no weight quantizer for it" for p in source.layers if p not in layers},
        dropped=dropped,
        timesteps=times,
        step_edges=edges,
        notes=(_compared(source, state, layout),),
        attention=by_time(attention, np.asarray(order) if steps > 1 else None),
    )


def wrapped_tensors(source: Source) -> Tensors:
    """The file's tensors without the prefix.

    Raises:
        FileProblemError: no state dict, or another prefix.
    """
    flat = {key: value for key, value in source.checkpoint.items() if isinstance(value, np.ndarray)}
    if len(flat) != len(source.checkpoint):
        other = sorted(set(source.checkpoint) - set(flat))
        raise FileProblemError(
            f"{source.name} holds {few(other)} beside tensors, expected one state dict; check `reader`"
        )
    foreign = sorted(key for key in flat if not key.startswith(PREFIX))
    if foreign:
        raise FileProblemError(f"{source.name} has {few(foreign)}, expected keys under {PREFIX!r}; check `reader`")
    return Tensors({key.removeprefix(PREFIX): value for key, value in flat.items()}, source.name)


def _check_alpha(tensors: Tensors, source: Source, layout: Layout) -> None:
    """Where the source learns rounding for all layers, one without it was left out of the file."""
    with_delta = [p for p in source.layers if f"{p}.weight_quantizer.delta" in tensors]
    without = [p for p in with_delta if f"{p}.weight_quantizer.alpha" not in tensors]
    if layout.every_alpha and without and len(without) < len(with_delta):
        raise FileProblemError(
            f"{source.name} lacks alpha, the learned rounding, of {few(without)}, and has it for "
            f"{len(with_delta) - len(without)} layers; expected all or none"
        )
    if not with_delta:
        raise FileProblemError(
            f"{source.name} has no scale of any weight (weight_quantizer.delta): this is a state dict whose quantizers "
            "were not saved; save the model with its scales and zero points as parameters"
        )


def _check_activations(tensors: Tensors, source: Source) -> None:
    if not any(".act_quantizer." in name for name in tensors):
        raise FileProblemError(
            f"{source.name} has no activation quantizer: this is a weight-only file, and none of its products would "
            "run in integers; quantize activations too, or use dq-quantize for weight-only layers"
        )


def _layer(
    tensors: Tensors,
    path: str,
    state: dict[str, Array],
    source: Source,
    layout: Layout,
    other_bits: dict[str, int],
    reason: str,
) -> ForeignLayer:
    weight = np.asarray(state[f"{path}.weight"], np.float32)
    bits, activation_bits = source.settings.bits_of(path)
    second = f"{path}.weight_quantizer_0.delta" in tensors
    first = tensors.maybe(f"{path}.weight_quantizer.alpha")
    columns = None if first is None or first.ndim != weight.ndim else first.shape[1]
    widths = halves(path, weight.shape[1], columns, second, source)
    parts = []
    for suffix, width in zip(("", "_0"), widths, strict=False):
        name = f"{path}.weight_quantizer{suffix}"
        alpha = tensors.maybe(f"{name}.alpha")
        expected = (weight.shape[0], width, *weight.shape[2:])
        if alpha is not None and alpha.shape != expected:
            raise FileProblemError(f"{source.name}: {name}.alpha has shape {alpha.shape}, expected {expected}")
        delta, zero = weight_tables(tensors, name, len(weight), floor=layout.floor_zero_point, alpha=alpha is not None)
        act = f"{path}.act_quantizer{suffix}"
        if f"{act}.{layout.table_names[0]}" not in tensors:
            reason = reason or "the file has no quantizer for its input"
            tables = np.ones(1, np.float32), np.zeros(1, np.int32)
        else:
            tables = _activation(tensors, act, layout)
        parts.append(
            ForeignPart(delta=delta, zero_point=zero, alpha=alpha, act_delta=tables[0], act_zero_point=tables[1])
        )
    signed = layout.signed and source.settings.symmetric_activations
    if signed and any(part.act_zero_point.any() for part in parts):
        raise FileProblemError(
            f"{source.name}: zero points of {path} are not 0, but the settings say symmetric_activations; check them"
        )
    return ForeignLayer(
        path=path,
        weight=weight,
        bias=state.get(f"{path}.bias"),
        widths=widths,
        parts=tuple(parts),
        weight_bits=bits,
        activation_bits=other_bits.get(path, activation_bits),
        signed=signed,
        float_reason=reason,
    )


def _activation(tensors: Tensors, prefix: str, layout: Layout) -> tuple[F32, I32]:
    delta_name, zero_name = layout.table_names
    where = f"{tensors.source}: {prefix}"
    delta = layout.one_table(tensors.take(f"{prefix}.{delta_name}"), f"{where}.{delta_name}")
    zero = layout.one_table(tensors.take(f"{prefix}.{zero_name}"), f"{where}.{zero_name}")
    if delta.shape != zero.shape:
        raise FileProblemError(f"{where} has {len(delta)} scales and {len(zero)} zero points, expected as many")
    return positive(delta, f"{where}.{delta_name}"), whole(zero, f"{where}.{zero_name}")


def static_table(value: Array, what: str) -> Array:
    """One number for all steps.

    Raises:
        FileProblemError: there are several.
    """
    if value.size != 1:
        raise FileProblemError(f"{what} has shape {value.shape}, expected one number; check `reader`")
    return value.reshape(1)


def step_table(value: Array, what: str) -> Array:
    """One number a step.

    Raises:
        FileProblemError: it has other axes than that of the steps.
    """
    if value.ndim > 1 and value.size != value.shape[0]:
        raise FileProblemError(f"{what} has shape {value.shape}, expected one number for each step; check `reader`")
    return value.reshape(-1)


def _steps_of(counts: set[int], source: Source) -> int:
    """Entries of the layers' tables; 1 where all are static."""
    lengths = sorted(counts - {1}) or [1]
    if len(lengths) > 1:
        raise FileProblemError(f"{source.name} has activation tables of {lengths} steps, expected one number of steps")
    return lengths[0]


def _in_order(layer: ForeignLayer, order: Sequence[int]) -> ForeignLayer:
    """The layer with its tables in the order of rising timesteps."""
    parts = tuple(
        replace(p, act_delta=p.act_delta[order], act_zero_point=p.act_zero_point[order]) if len(p.act_delta) > 1 else p
        for p in layer.parts
    )
    return replace(layer, parts=parts)


def _compared(source: Source, state: dict[str, Array], layout: Layout) -> dict[str, object]:
    """Which float parameters of the file differ from the float model's.

    Raises:
        FileProblemError: they differ although the source does not train them; norms are never trained.
    """
    changed = [key for key, value in state.items() if (value.ravel() != source.float_state[key].ravel()).any()]
    trained = () if layout.float_weights else {f"{path}.{end}" for path in source.layers for end in ("weight", "bias")}
    other = [key for key in changed if key not in trained]
    if other:
        raise FileProblemError(
            f"{source.name}: {few(other)} differ from `float_model`; expected the float model it was quantized from"
        )
    return {"stage": "compared with the float model", "parameters": len(state), "changed": sorted(changed)}
