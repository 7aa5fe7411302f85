"""A native engine holds what its record makes: each single edit of it is named, and shows in what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from dq_kernels.cpu.library import aligned_empty
from dq_kernels.cpu.structs import PackedHead

from dq_deploy.native import runner as runner_module
from dq_deploy.native.program.layer_constants import FloatConstants
from dq_deploy.native.program.program import View, at_batch, from_json
from dq_deploy.native.runner import NativeRunner
from dq_deploy.verify.native import constants as native_constants
from dq_deploy.verify.native.constants import native_differences
from dq_deploy.verify.prover import ProofOptions
from tests.tiny import random_record, tiny_denoiser
from tests.verify.native.proving import proof_of
from tests.verify.test_damages import SMALL

LAYER = "down_blocks.0.resnets.0.conv2"
NORM = "down_blocks.0.resnets.0.norm2"
OPTIONS = ProofOptions(steps=1, inputs=1, compare_with_record=False)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One edit of an opened engine, what the comparison names, and whether a run shows it."""

    edit: Callable[[NativeRunner], None]
    named: str
    runs: bool = True


def table(name: str, how: Callable[[np.ndarray], None], layer: str = LAYER) -> Callable[[NativeRunner], None]:
    return lambda runner: how(getattr(runner.executor.constants[layer, 0], name))


def floats(name: str, how: Callable[[np.ndarray], None]) -> Callable[[NativeRunner], None]:
    """Edit a float parameter where the kernels read it."""

    def edit(runner: NativeRunner) -> None:
        ops = from_json(at_batch(runner.executor.joined, 1)).ops
        views = {str(v.buffer): v for op in ops for v in op.views()}
        found = next(key for key in views if key == name or (name == "folded" and key.startswith("folded.")))
        how(writeable(runner.executor.floats, views[found]))

    return edit


def writeable(held: FloatConstants, view: View) -> np.ndarray:
    """Memory that kernels will read: a copy where the array happens to lie as they read it, and is the record's own."""
    name = str(view.buffer)
    while held._parameters is not None and name not in held._arrays:
        held = held._parameters
    array = held.base(view)
    if not array.flags.writeable:
        own = aligned_empty(array.shape, array.dtype)
        own[...] = array
        held._bases[name] = array = own
    return array


def program(kind: str, key: str, value: object, *, at: int = 0) -> Callable[[NativeRunner], None]:
    """Give an attribute of one op another value, before it is made into calls."""

    def edit(runner: NativeRunner) -> None:
        ops = [op for op in runner.executor.joined["ops"] if op[0] == kind and key in op[3]]
        ops[at][3][key] = value

    return edit


def add(by: float) -> Callable[[np.ndarray], None]:
    def how(array: np.ndarray) -> None:
        array += np.asarray(by, array.dtype)

    return how


def scale(by: float) -> Callable[[np.ndarray], None]:
    def how(array: np.ndarray) -> None:
        array *= np.asarray(by, array.dtype)

    return how


def one_ulp(array: np.ndarray) -> None:
    array[-1] = np.nextafter(array[-1], np.float32(np.inf))


def flip(array: np.ndarray) -> None:
    array[PackedHead.from_buffer(array).weights] ^= 1


def swapped_rows(array: np.ndarray) -> None:
    rows = array.reshape(3, -1)
    rows[[0, 2]] = rows[[2, 0]]


def moved_edge(runner: NativeRunner) -> None:
    runner.executor.edges = runner.executor.edges.copy()
    runner.executor.edges[0] = np.nextafter(runner.executor.edges[0], np.float32(np.inf))


def lost_bias(runner: NativeRunner) -> None:
    plan = runner.executor.plan(1)
    index = next(i for i, op in enumerate(plan.program.ops) if op.attributes.get("layer") == LAYER)
    plan.structs[index].epilogue.bias = None


DAMAGES: dict[str, Damage] = {
    "packed weights": Damage(edit=table("packed", flip), named=f"layer {LAYER}, packed"),
    "weight scale by one ulp": Damage(edit=table("weight_scale", one_ulp), named=f"layer {LAYER}, weight_scale"),
    "scale": Damage(edit=table("scale", scale(1.001)), named=f"layer {LAYER}, scale"),
    "reciprocal": Damage(edit=table("inverse", scale(1.01)), named=f"layer {LAYER}, inverse"),
    "zero point": Damage(edit=table("zero_point", add(1)), named=f"layer {LAYER}, zero_point"),
    "pre": Damage(edit=table("pre", scale(1.01)), named=f"layer {LAYER}, pre"),
    "bias": Damage(edit=table("bias", one_ulp), named=f"layer {LAYER}, bias"),
    "bias that a call does not read": Damage(edit=lost_bias, named="epilogue, bias"),
    "step edge": Damage(edit=moved_edge, named="step edges"),
    "scale of a norm": Damage(edit=floats(f"{NORM}.weight", scale(1.0001)), named=f"constant {NORM}.weight"),
    "offset of a norm": Damage(edit=floats(f"{NORM}.bias", add(1e-4)), named=f"constant {NORM}.bias"),
    "classes exchanged": Damage(edit=floats("class_embedding.weight", swapped_rows), named="class_embedding.weight"),
    "time frequencies": Damage(edit=floats("folded", scale(1.5)), named="constant folded."),
    "time embedding": Damage(
        edit=floats("time_embedding.linear_1.weight", scale(1.0001)), named="time_embedding.linear_1.weight"
    ),
    "eps of a norm": Damage(
        edit=program("group_norm_silu_quantize", "eps", 1e-3), named="(group_norm_silu_quantize)[3].eps"
    ),
    "silu dropped": Damage(edit=program("group_norm_silu_quantize", "silu", False), named="silu"),
    "groups of a norm": Damage(edit=program("group_norm_silu_quantize", "groups", 1), named="groups"),
    "scale of attention": Damage(edit=program("attention", "scale", 0.6), named="scale"),
    "an addition": Damage(edit=program("elementwise", "function", "sub"), named="function"),
}


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """The denoiser is traced once at each size; each engine gets a copy that may be damaged."""
    programs: dict[tuple, dict] = {}
    trace = runner_module.traced_program

    def copied(record, sizes=None, *, anew=False):
        key = tuple(sorted((sizes or {}).items()))
        if key not in programs:
            programs[key] = trace(record, sizes)
        return copy.deepcopy(programs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "traced_program", copied)
        patch.setattr("dq_deploy.native.cpu.executor.KEPT_PLANS", 16)  # a damaged plan must not be made again
        patch.setattr(native_constants, "traced_program", copied)
        yield


@pytest.fixture(scope="module")
def record():
    import torch

    denoiser = tiny_denoiser(classes=3, **SMALL)
    for name, parameter in denoiser.module.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return random_record(denoiser, steps=3)


def test_an_engine_as_it_is_opened_holds_what_its_record_makes(record):
    with NativeRunner(copy.deepcopy(record), threads=1, finite_check=False) as runner:
        report = proof_of(record, runner, OPTIONS)
        assert report.failures == ()
        assert list(native_differences(record, runner)) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_caught_and_named(record, name):
    damage = DAMAGES[name]
    with NativeRunner(copy.deepcopy(record), threads=1, finite_check=False) as runner:
        damage.edit(runner)
        report = proof_of(record, runner, OPTIONS)
        found = [difference.text() for difference in native_differences(record, runner)]
    assert any(damage.named in text for text in found), found[:5]
    if damage.runs:
        assert report.failures, "running the engine does not show it"
