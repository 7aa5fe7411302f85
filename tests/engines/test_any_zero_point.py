"""Whole denoisers with weights of any zero point, and with three parts a layer, are exact on every engine."""

from __future__ import annotations

import dataclasses
import itertools
from functools import lru_cache

import numpy as np
import pytest

from dq_deploy.record import Part, Record, load_record, save_record
from dq_deploy.targets import export
from dq_deploy.verify import verify
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

TARGETS = {"onnxruntime": {}, "openvino": {}, "tensorrt": {"float_type": "float32"}}


def with_zero_points(record: Record, rng: np.random.Generator) -> Record:
    """The same record with uint8-like weights: each channel has its own zero point, some far outside the codes."""

    def moved(part: Part) -> Part:
        zero = rng.integers(-128, 128, part.w_zero_point.shape)
        zero[:, ::5] = rng.choice([-250, 250], zero[:, ::5].shape)
        return dataclasses.replace(part, w_zero_point=zero.astype(np.int32))

    layers = {
        name: dataclasses.replace(layer, parts=tuple(moved(part) for part in layer.parts))
        for name, layer in record.layers.items()
    }
    return dataclasses.replace(record, layers=layers)


def with_three_parts(record: Record) -> Record:
    """The same record with every layer's input channels in three parts, where it has as many."""

    def cut(part: Part) -> tuple[Part, ...]:
        ends = [0, 1, len(part.pre) // 2, len(part.pre)]
        return tuple(
            dataclasses.replace(part, pre=part.pre[a:b].copy(), w_code=np.ascontiguousarray(part.w_code[:, :, a:b]))
            for a, b in itertools.pairwise(ends)
        )

    layers = {
        name: dataclasses.replace(layer, parts=cut(layer.parts[0])) if layer.in_channels >= 4 else layer
        for name, layer in record.layers.items()
    }
    return dataclasses.replace(record, layers=layers)


@lru_cache
def records() -> dict[str, Record]:
    record = random_record(tiny_denoiser(**ONE_LEVEL), weight_bits=8, steps=3)
    return {
        "any zero point": with_zero_points(record, np.random.default_rng(0)),
        "three parts": with_three_parts(record),
    }


def check(report) -> None:
    assert report.failures == ()
    assert report.exact
    assert report.layers_compared == report.layers_total
    assert report.max_code_difference == report.max_accumulator_difference == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("what", ["any zero point", "three parts"])
def test_an_exported_graph_is_exact(target, what, tmp_path):
    if target == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed: pip install 'dq-deploy[openvino]'")
    record, path = records()[what], tmp_path / "unet.onnx"
    export(record, path, target=target, **TARGETS[target])
    check(verify(record, path, steps=3, inputs=1))


@pytest.mark.parametrize("what", ["any zero point", "three parts"])
def test_the_native_engine_is_exact_on_every_instruction_set(what, tmp_path):
    record = records()[what]
    save_record(record, tmp_path / "m.pt")
    check(verify(load_record(tmp_path / "m.pt"), tmp_path / "m.pt", isa="all", steps=3, inputs=1))
