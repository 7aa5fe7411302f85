"""A record in numbers a person asks for first, as JSON values."""

from __future__ import annotations

from math import prod
from typing import Any

from dq_deploy.record.files.arrays import arrays_from_record, sha256_of_content, version_of
from dq_deploy.record.values import Layer, Record
from dq_deploy.record.weight_only import WeightOnlyLayer

MIB = 2**20


def summarize_record(record: Record) -> dict[str, Any]:
    """Family, steps, layers, sizes and provenance of a record.

    Returns:
        JSON values. Sizes in MiB: `quantized` as stored (packed codes, scales and tables),
        `quantized_as_float32` their weights and biases in float32, `float` the parameters kept float.
    """
    text, arrays = arrays_from_record(record)
    quantized = sum(a.nbytes for key, a in arrays.items() if key.startswith(("layer/", "weight_only/")))
    kept = sum(a.nbytes for key, a in arrays.items() if key.startswith("float/"))
    every: list[Layer | WeightOnlyLayer] = [*record.layers.values(), *record.weight_only.values()]
    as_float = sum(_float_bytes(layer) for layer in every)
    return {
        "kind": "record",
        "content_sha256": sha256_of_content(text, arrays),
        "schema_version": version_of(record),
        "family": record.family,
        "call": None if record.call is None else {item.name: list(item.shape) for item in record.call.inputs},
        "attention": {name: sorted(own.tables) for name, own in record.attention.items()},
        "model_class": record.model_config.get("_class_name"),
        "scheduler_class": (record.scheduler_config or {}).get("_class_name"),
        "method": record.provenance.get("method"),
        "steps": record.steps,
        "timesteps": [float(t) for t in record.timesteps],
        "bits": _bits(record),
        "size_mib": {
            "quantized": quantized / MIB,
            "quantized_as_float32": as_float / MIB,
            "float": kept / MIB,
            "total": (quantized + kept) / MIB,
            "total_as_float32": (as_float + kept) / MIB,
        },
        "layers": [_row(layer) for layer in record.layers.values()],
        "weight_only": [_weight_only_row(layer) for layer in record.weight_only.values()],
        "float_ranges": {name: record.float_ranges[name] for name in sorted(record.float_ranges)},
        "float_parameters": sorted(record.float_parameters),
        "provenance": dict(record.provenance),
    }


def _float_bytes(layer: Layer | WeightOnlyLayer) -> int:
    if isinstance(layer, WeightOnlyLayer):
        weights = layer.w_code.size
    else:
        weights = sum(prod(part.w_shape[1:]) for part in layer.parts)
    return 4 * (weights + (0 if layer.bias is None else layer.out_channels))


def _bits(record: Record) -> dict[str, int]:
    """Number of layers by bits, as W4A8, the widest first; activations of weight-only layers count as 16."""
    pairs = [(layer.weight_bits, layer.activation_bits) for layer in record.layers.values()]
    pairs += [(layer.weight_bits, 16) for layer in record.weight_only.values()]
    return {f"W{w}A{a}": pairs.count((w, a)) for w, a in sorted(set(pairs), reverse=True)}


def _weight_only_row(layer: WeightOnlyLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": "linear",
        "weight_bits": layer.weight_bits,
        "block_size": layer.block_size,
        "shape": [layer.out_channels, layer.in_channels],
    }


def _row(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "weight_bits": layer.weight_bits,
        "activation_bits": layer.activation_bits,
        "codes": [layer.q_min, layer.q_max],
        "shape": [layer.out_channels, layer.in_channels // layer.groups, *layer.kernel],
        "stride": list(layer.stride),
        "padding": list(layer.padding),
        "groups": layer.groups,
        "steps": max(part.steps for part in layer.parts),
        "parts": [len(part.pre) for part in layer.parts],
        "weight_sets": max(part.w_shape[0] for part in layer.parts),
        "equivalent_scale": any(bool((part.pre != 1).any()) for part in layer.parts),
        "requantized": layer.out_scale is not None,
        "weight_zero_points": _zero_points(layer),
        "bias_by_step": layer.bias is not None and layer.bias.ndim == 2,
        "branch_rank": None if layer.branch is None else len(layer.branch.down),
        "folded_into": None if layer.folded is None else layer.folded.producer,
        "fold": layer.fold,
    }


def _zero_points(layer: Layer) -> list[int] | None:
    """Least and greatest zero point of the weights, None where all are 0."""
    tables = [part.w_zero_point for part in layer.parts]
    if not any(table.any() for table in tables):
        return None
    return [min(int(table.min()) for table in tables), max(int(table.max()) for table in tables)]
