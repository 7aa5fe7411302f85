"""The small recorded checkpoints of `data`: one layer of a real file of each source, read by its reader."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from dq_deploy.errors import DqError
from dq_deploy.models import LayerSite
from dq_deploy.readers import settings_from
from dq_deploy.readers.architectures.module_paths import Architecture, Target, fused_rows
from dq_deploy.readers.foreign import ForeignModel
from dq_deploy.readers.formats.quantizer_tensors import Source
from dq_deploy.readers.integer_layers import convert
from dq_deploy.record import Layer
from tests.readers.foreign_files import DDIM

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.safetensors"))


@dataclass
class Recorded:
    """One file: its tensors and metadata, what its reader makes of it, and the integer layers of its one layer."""

    tensors: dict[str, np.ndarray]
    meta: dict[str, str]
    model: ForeignModel
    targets: tuple[Target, ...]
    layers: dict[str, Layer]


def recorded(path: Path, change: Callable[[dict[str, Any]], None] = lambda checkpoint: None) -> Recorded:
    """Read a file by its reader.

    Args:
        path: one of `FILES`.
        change: damages the checkpoint's dict before it is read.
    """
    with safe_open(path, "numpy") as held:
        meta = held.metadata()
        tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - no mapping
    checkpoint: dict[str, Any] = {}
    for key, value in tensors.items():
        if key.startswith("file/"):
            _, section, name = key.split("/")
            (checkpoint.setdefault(section, {}) if section else checkpoint)[name] = value
    change(checkpoint)
    name = meta["path"]
    weight = tensors[f"float/{name}.weight"]
    rows = fused_rows(len(weight) // 3, 2, by_head=True) if name.endswith("qkv") else [None]
    targets = tuple(Target(name=f"layer{i}", rows=mine) for i, mine in enumerate(rows))
    shape = (len(weight) // len(targets), *weight.shape[1 : 2 if weight.ndim == 3 else None])
    shapes = {f"{t.name}.{end}": s for t in targets for end, s in (("weight", shape), ("bias", shape[:1]))}
    source = Source(
        checkpoint=checkpoint,
        name=path.name,
        float_state={key.removeprefix("float/"): v for key, v in tensors.items() if key.startswith("float/")},
        architecture=Architecture(
            family="unet2d", config={}, targets={name: targets}, first="first", last="last", time_layers=()
        ),
        layers=(name,),
        shapes=shapes,
        splits={},
        settings=settings_from(
            {"architecture": DDIM, "weight_bits": 4, "activation_bits": 8, **json.loads(meta["settings"])}
        ),
    )
    reader = importlib.import_module(f"dq_deploy.readers.formats.{meta['reader'].replace('-', '_')}")
    model = reader.read(source)
    converted = convert(model.layers[name], targets, {t.name: site(t.name, shape) for t in targets}, masks="float")
    assert converted.reason == ""
    return Recorded(tensors=tensors, meta=meta, model=model, targets=targets, layers=converted.layers)


def assert_refused(path: Path, change: Callable[[dict[str, Any]], None], match: str) -> None:
    """A file that was changed so is refused in one line that says this."""
    with pytest.raises(DqError, match=match) as caught:
        recorded(path, change)
    assert "\n" not in str(caught.value)


def with_tensor(name: str, value: np.ndarray | None) -> Callable[[dict[str, Any]], None]:
    """A change of one tensor of a state dict; None leaves it out."""

    def change(checkpoint: dict[str, Any]) -> None:
        if value is None:
            del checkpoint[name]
        else:
            checkpoint[name] = value

    return change


def site(name: str, shape: tuple[int, ...]) -> LayerSite:
    """A layer with a weight of this shape and nothing else to know."""
    kernel = shape[2:]
    return LayerSite(
        name=name,
        kind="conv2d" if kernel else "linear",
        in_channels=shape[1],
        out_channels=shape[0],
        kernel=kernel,
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        macs=1,
        input_shape=(),
        output_shape=(),
    )
