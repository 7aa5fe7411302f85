"""Tuning the Triton kernels: wrong options are refused before a GPU is looked for."""

from __future__ import annotations

import json

import pytest
import torch

from dq_deploy.bench.kernel_tuning import tune_kernels
from dq_deploy.errors import MissingDependencyError, OptionError


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model": "sd3"}, "`model` is sd3, expected one of cifar, sd15, sdxl"),
        ({"model": "sd15", "dtype": "int8"}, "`dtype` is int8, expected one of float16"),
        ({"model": "sd15", "op": "relu"}, "`op` is relu, expected one of quantize"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, expected):
    with pytest.raises(OptionError, match=expected):
        tune_kernels(out=tmp_path / "table.json", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_written(tmp_path):
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU"):
        tune_kernels("cifar", tmp_path / "table.json")
    assert not list(tmp_path.iterdir())


def test_the_table_is_written_after_every_shape(tmp_path, monkeypatch):
    from dq_kernels.gpu.tune import clock, tuning

    from dq_deploy.bench import kernel_tuning

    out, seen = tmp_path / "table.json", []
    monkeypatch.setattr(torch.cuda, "device", lambda place: _Nothing())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "a GPU")
    monkeypatch.setattr(clock, "torch_clock", lambda place: None)
    monkeypatch.setattr(tuning, "shapes_of_model", lambda model, op: [("a", None, 0), ("b", None, 0)])
    monkeypatch.setattr(tuning, "problem_of", lambda op, case, bits, dtype, place: op)
    monkeypatch.setattr(tuning, "fastest", lambda problem, architecture, clock, compiler: {"op": problem})

    def advance(done, total):
        seen.append((done, total, [rule["op"] for rule in json.loads(out.read_text())["rules"]]))

    rules = kernel_tuning._measure("cifar", out, "float16", torch.device("cpu"), None, 1, advance)
    assert [rule["op"] for rule in rules] == ["a", "b"]
    assert seen == [(1, 2, ["a"]), (2, 2, ["a", "b"])]


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None
