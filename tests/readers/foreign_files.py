"""Checkpoints in each source's layout, of a small random network: what a test reads, and what it must find."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from dq_deploy.models import build_denoiser, default_call, quantizable_layers, skip_splits
from dq_deploy.readers import settings_from
from dq_deploy.readers.architectures.described_network import architecture_of

DDIM = {
    "family": "ddim",
    "config": {
        "model": {
            "type": "simple",
            "ch": 32,
            "out_ch": 1,
            "ch_mult": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [2],
            "dropout": 0.1,
            "in_channels": 1,
            "resamp_with_conv": True,
        },
        "data": {"image_size": 4},
    },
}
DDIM_SMALL = {
    "family": "ddim",
    "config": {
        "model": {**DDIM["config"]["model"], "ch_mult": [1], "attn_resolutions": []},
        "data": {"image_size": 2},
    },
}
LDM = {
    "family": "ldm",
    "config": {
        "image_size": 4,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "attention_resolutions": [2],
        "num_res_blocks": 1,
        "channel_mult": [1, 1],
        "num_heads": 2,
    },
}
LDM_TEXT = {
    "family": "ldm",
    "config": {
        **LDM["config"],
        "use_spatial_transformer": True,
        "context_dim": 12,
        "num_heads": -1,
        "num_head_channels": 16,
        "legacy": False,
    },
}


@dataclass
class Foreign:
    """A network of one source: settings, float weights by the source's keys, and paths of its layers."""

    settings: dict[str, Any]
    state: dict[str, np.ndarray]
    layers: list[str]
    splits: dict[str, int]


def foreign(architecture: dict[str, Any], **settings: Any) -> Foreign:
    """A network with random weights of growing channels, biases and norms that are not 0 and 1."""
    rng = np.random.default_rng(1)
    value = {"architecture": architecture, "weight_bits": 4, "activation_bits": 8, **settings}
    described = architecture_of(settings_from(value))
    module = build_denoiser(described.family, described.config, device="meta")
    shapes = {key: tuple(v.shape) for key, v in module.state_dict().items()}
    state = {}
    for path, targets in described.targets.items():
        for end in ("weight", "bias"):
            shape = shapes.get(f"{targets[0].name}.{end}")
            if shape is None:
                continue
            shape = (shape[0] * len(targets), *shape[1:], *axes_of_one(path, shape))
            values = rng.standard_normal(shape) * rng.uniform(0.5, 1.5, (shape[0],) + (1,) * (len(shape) - 1))
            values = values / np.sqrt(np.prod(shape[1:]) or 1) if len(shape) > 1 else 0.1 * values + (end == "weight")
            state[f"{path}.{end}"] = values.astype(np.float32)
    sites = {site.name for site in quantizable_layers(module, default_call(described.config))}
    known = skip_splits(module, default_call({**module.config, "_class_name": type(module).__name__}))
    return Foreign(
        settings=value,
        state=state,
        layers=[p for p, t in described.targets.items() if t[0].name in sites],
        splits={p: known[t[0].name] for p, t in described.targets.items() if t[0].name in known and "hortcut" in p}
        | {p: known[t[0].name] for p, t in described.targets.items() if t[0].name in known and "skip" in p},
    )


def axes_of_one(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes that the source's 1x1 convolution has and diffusers' linear layer of this shape has not."""
    last = path.rpartition(".")[2]
    if len(shape) != 2 or last not in ("q", "k", "v", "qkv", "proj_out"):
        return ()
    return (1, 1) if ".attn" in path else (1,)


def quantizer(weight: np.ndarray, bits: int, rng: np.random.Generator, *, alpha: bool = True) -> dict[str, np.ndarray]:
    """Scale, zero point and rounding of a weight, as a min-max calibration has them."""
    rows = weight.reshape(len(weight), -1)
    shape = (-1,) + (1,) * (weight.ndim - 1)
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    delta = ((high - low) / (2**bits - 1)).astype(np.float32)
    found = {"delta": delta.reshape(shape), "zero_point": np.rint(-low / delta).astype(np.float32).reshape(shape)}
    if alpha:
        found["alpha"] = rng.standard_normal(weight.shape).astype(np.float32)
    return found


def fake_weight(weight: np.ndarray, tensors: dict[str, np.ndarray], bits: int, *, floor: bool = False) -> np.ndarray:
    """The dequantized weight by torch, in the sources' order of operations."""
    w, delta, zero = (torch.from_numpy(v.copy()) for v in (weight, tensors["delta"], tensors["zero_point"]))
    if "alpha" in tensors:
        zero = zero.floor() if floor else zero.round()
        code = (w / delta).floor() + (torch.from_numpy(tensors["alpha"]) >= 0).float()
    else:
        zero, code = zero.round(), (w / delta).round()
    return ((torch.clamp(code + zero, 0, 2**bits - 1) - zero) * delta).numpy()


def halves(model: Foreign, path: str) -> list[tuple[str, slice]]:
    """Suffix and input channels of each quantizer of a layer."""
    at = model.splits.get(path)
    return [("", slice(None))] if at is None else [("", slice(0, at)), ("_0", slice(at, None))]


def wrapped(
    model: Foreign, *, steps: int = 0, lists: bool = False, alpha: bool = True, splits: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A state dict in Q-Diffusion's layout, and the dequantized weights of its layers.

    Args:
        model: the network.
        steps: entries of the activation tables; 0 is one number.
        lists: QuEST's tables, stored along the channels, without zero points.
        alpha: whether rounding was learned.
        splits: whether shortcuts of the up path have two quantizers.
    """
    rng = np.random.default_rng(2)
    tensors, expected = dict(model.state), {}
    for path in model.layers:
        weight, pieces = model.state[f"{path}.weight"], []
        for suffix, columns in halves(model, path) if splits else [("", slice(None))]:
            piece = weight[:, columns]
            own = quantizer(piece, 4, rng, alpha=alpha)
            if steps:
                own["zero_point"] = own["zero_point"] + rng.uniform(0.05, 0.45, own["zero_point"].shape).astype("f4")
            tensors |= {f"{path}.weight_quantizer{suffix}.{name}": value for name, value in own.items()}
            pieces.append(fake_weight(piece, own, 4, floor=bool(steps) and not lists))
            act = f"{path}.act_quantizer{suffix}"
            delta = rng.uniform(0.01, 0.05, steps or ()).astype(np.float32)
            if lists:
                along = np.broadcast_to(delta.reshape(-1, 1), (steps, piece.shape[1]))
                tensors[f"{act}.delta_list"] = along.reshape(*along.shape, *(1,) * (weight.ndim - 2)).copy()
                tensors[f"{act}.zero_point_list"] = np.zeros_like(tensors[f"{act}.delta_list"])
                tensors[f"{act}.current_delta"] = np.float32(1).reshape(())
            else:
                tensors[f"{act}.delta"] = np.asarray(delta)
                tensors[f"{act}.zero_point"] = np.asarray(rng.uniform(100, 150, delta.shape), np.float32)
        expected[path] = np.concatenate(pieces, axis=1)
    tensors[
        "mid.attn_1.act_quantizer_q.delta"
        if "conv_in" in model.layers
        else "middle_block.1.attention.qkv_matmul.act_quantizer_q.delta"
    ] = np.ones((), np.float32)
    return {f"model.{name}": np.asarray(value, np.float32) for name, value in tensors.items()}, expected


def dmq(model: Foreign, *, same_masks: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The sections of a DMQ file, and the dequantized weights of the layers that it quantizes."""
    rng = np.random.default_rng(3)
    weights: dict[str, np.ndarray] = {}
    sets: list[dict[str, np.ndarray]] = [{} for _ in range(20)]
    expected = {}
    for path in model.layers:
        weight = model.state[f"{path}.weight"]
        gamma = rng.uniform(0.5, 2, (1, weight.shape[1], *(1,) * (weight.ndim - 2))).astype(np.float32)
        weights[f"model.{path}.gamma"], pieces = gamma, []
        for suffix, columns in halves(model, path):
            suffix = suffix.replace("_0", "1")
            piece = (weight * gamma)[:, columns]
            own = quantizer(piece, 4, rng)
            weights |= {f"model.{path}.wqtizer{suffix}.{name}": value for name, value in own.items()}
            pieces.append(fake_weight(piece, own, 4))
            mask = 2.0 ** -rng.integers(0, 4, piece.shape[1])
            for group in sets:
                name = f"model.{path}.aqtizer{suffix}"
                group[f"{name}.delta"] = rng.uniform(0.01, 0.05, (1,) * weight.ndim).astype(np.float32)
                group[f"{name}.zero_point"] = np.rint(rng.uniform(100, 150, (1,) * weight.ndim)).astype(np.float32)
                if "skip" in path:
                    drawn = mask if same_masks else 2.0 ** -rng.integers(0, 4, piece.shape[1])
                    group[f"{name}.scale_mask"] = drawn.astype(np.float32)
                    group[f"{name}.index_ratio"] = np.ones_like(drawn, np.float32)
        expected[path] = np.concatenate(pieces, axis=1)
    return {"weight": weights, **{f"act_{i}": group for i, group in enumerate(sets)}}, expected


def save_checkpoint(path: Path, content: dict[str, Any]) -> Path:
    """Write with torch.save, as the sources do."""

    def tensors(value: Any) -> Any:
        return {k: tensors(v) for k, v in value.items()} if isinstance(value, dict) else torch.from_numpy(value.copy())

    torch.save(tensors(content), path)
    return path


def save_float(path: Path, state: dict[str, np.ndarray]) -> Path:
    """Write the float model's weights."""
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    return path
