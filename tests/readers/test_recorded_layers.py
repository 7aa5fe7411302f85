"""Single layers of real files: weights and codes as the sources' own code recorded them."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dq_deploy.models import LayerSite
from dq_deploy.numerics import quantize_centred, step_bucket
from dq_deploy.readers import settings_from
from dq_deploy.readers.architectures.module_paths import Architecture, Target, fused_rows
from dq_deploy.readers.formats.quantizer_tensors import Source
from dq_deploy.readers.integer_layers import convert
from tests.readers.foreign_files import DDIM

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.safetensors"))


def recorded(path: Path):
    """The tensors and metadata of a file, and the one layer in it as its reader reads it."""
    with safe_open(path, "numpy") as held:
        meta = held.metadata()
        tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - no mapping
    checkpoint: dict = {}
    for key, value in tensors.items():
        if key.startswith("file/"):
            _, section, name = key.split("/")
            (checkpoint.setdefault(section, {}) if section else checkpoint)[name] = value
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
    return tensors, meta, model, targets, converted.layers


def site(name: str, shape: tuple[int, ...]) -> LayerSite:
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


def test_there_is_a_layer_of_every_source():
    assert {path.stem for path in FILES} == {"q_diffusion", "dmq", "quest", "cachequant", "eda_dm"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dequantized_weights_have_the_recorded_hash(path):
    tensors, meta, _, targets, layers = recorded(path)
    weight = np.zeros_like(tensors[f"float/{meta['path']}.weight"])
    for target in targets:
        pieces = []
        for part in layers[target.name].parts:
            column = (-1,) + (1,) * (part.w_code.ndim - 2)
            pieces.append(part.q_weight(0).astype(np.float32) * part.weight_scale[0].reshape(column))
        rows = slice(None) if target.rows is None else target.rows
        weight[rows] = np.concatenate(pieces, axis=1).reshape(-1, *weight.shape[1:])
    assert hashlib.sha256(weight.astype("<f4").tobytes()).hexdigest() == meta["sha256"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_activation_codes_are_the_recorded_ones(path):
    tensors, meta, model, targets, layers = recorded(path)
    layer, x = layers[targets[0].name], tensors["input"]
    step = step_bucket(np.full(len(x), float(meta["timestep"])), model.step_edges)
    ends = np.cumsum([len(part.pre) for part in layer.parts])[:-1]
    for part, mine, recorded_q in zip(
        layer.parts, np.split(x, ends, axis=1), np.split(tensors["input_q"], ends, axis=1), strict=True
    ):
        code = quantize_centred(
            mine,
            pre=part.pre,
            scale=part.scale,
            zero_point=part.zero_point,
            q_min=layer.q_min,
            q_max=layer.q_max,
            step=step,
        )
        scale = part.scale[step if len(part.scale) > 1 else 0 * step].reshape(-1, *(1,) * (x.ndim - 1))
        assert np.array_equal(code.astype(np.float32) * scale, recorded_q)  # none of these lies at a tie
