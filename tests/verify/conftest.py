"""Toy records and their engines, one for each pair of bits, made once for all workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_engine(made_once) -> Callable[[int, int], tuple[Path, Path]]:
    """Function (weight bits, activation bits) to the paths of a checkpoint and its engine."""

    def of(weight_bits: int, activation_bits: int) -> tuple[Path, Path]:
        name = f"toy-w{weight_bits}a{activation_bits}"

        def make(path: Path) -> None:
            from dq_deploy import export, save_record
            from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

            small = tiny_denoiser(**ONE_LEVEL)
            record = random_record(small, weight_bits=weight_bits, activation_bits=activation_bits)
            save_record(record, path.with_suffix(".pt"))
            export(record, path)

        engine = made_once(f"{name}.onnx", make)
        return engine.with_suffix(".pt"), engine

    return of


@pytest.fixture(scope="session")
def small_plans(made_once) -> Path:
    """Folder of TensorRT-RTX plans of one small denoiser with their manifests: int.plan, kept.plan, float.plan.

    Also int.pt, the record; in `kept` the layer `KEPT` of tests/verify/plan/plan_models.py stays float.
    """
    from tests.verify.plan.plan_models import write_small_plans

    return made_once("small-plans", write_small_plans)
