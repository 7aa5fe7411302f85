"""benchmarks/plans/gpu.py: its options, what it says without a GPU, and what it writes when a plan does not run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.engines.cuda.gpu import without_driver


@pytest.fixture(scope="module")
def script(repository):
    from benchmarks.plans import gpu

    return gpu


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    from tests.engines.tensorrt.plans import build_linear

    return build_linear(tmp_path_factory.mktemp("plan"))


def test_the_defaults_measure_both_models(script):
    arguments = script.parsed([])
    assert (arguments.model, arguments.batch, arguments.runtime) == (None, [1, 8], "tensorrt-rtx")
    assert arguments.results.name == "gpu_plans.jsonl"
    assert arguments.results.parent.is_dir()


def test_plans_of_both_forms_and_both_kinds_of_scales_lie_side_by_side(script):
    options = [["--conv", conv, *more] for conv in script.FORMS for more in ([], ["--static"])]
    names = {script.plan_name("sd15", script.parsed([*words, "--compute-capability", "8.0"])) for words in options}
    assert names == {f"sd15-w8a8{s}-tensorrt-rtx-8.0{c}" for s in ("", "-static") for c in ("", "-native")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "expected at least 1"),
        (["--rounds", "0"], "expected at least 1"),
        (["--results", "missing/rows.jsonl"], "does not exist"),
    ],
)
def test_a_wrong_option_is_one_line(script, words, message, capsys):
    assert script.main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@without_driver
def test_without_a_gpu_it_refuses_before_it_builds(script, tmp_path, capsys):
    work, results = tmp_path / "work", tmp_path / "rows.jsonl"
    assert script.main(["--work", str(work), "--results", str(results)]) == 2
    err = capsys.readouterr().err
    assert "no NVIDIA driver" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@without_driver
def test_a_plan_that_does_not_load_is_an_outcome_and_not_a_crash(script, plan):
    row = script.portability_row(plan, {"compute_capability": "9.0"})
    assert row["outcome"] == "failed to load"
    assert "no NVIDIA driver" in row["error"]
    assert row["gpu_compute_capability"] == "9.0"
    assert script.plan_row(plan, script.parsed([]))["error"] == row["error"]


def test_a_process_that_dies_of_a_plan_is_an_outcome_too(script, tmp_path):
    row = script.portability_row(tmp_path / "missing.plan", {"compute_capability": "9.0"})
    assert row["outcome"] == "the process ended with code 2"
    assert "missing.plan" in row["error"]


def test_it_runs_as_a_script_and_takes_a_plan_that_is_there(repository, plan, tmp_path):
    (tmp_path / "cifar-w8a8-tensorrt-rtx-8.0.plan").symlink_to(plan)
    command = [sys.executable, "-m", "benchmarks.plans.gpu", "--build-only", "--model", "cifar"]
    done = subprocess.run([*command, "--work", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("cifar-w8a8-tensorrt-rtx-8.0.plan")


def test_a_model_has_the_shape_it_is_named_after(script, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    assert sum(p.numel() for p in script.denoiser_of("cifar").module.parameters()) == pytest.approx(35.7e6, rel=0.01)
    assert json.dumps(script.MODELS) == '["cifar", "sd15"]'


def test_a_plan_is_built_for_the_gpu_at_hand_or_for_8_0_where_that_is_refused(script, tmp_path, monkeypatch):
    """TensorRT-RTX has no compute capability 9.0."""
    from types import SimpleNamespace

    from dq_deploy.engines.cuda import backends
    from dq_deploy.engines.cuda.interface import DeviceFacts
    from dq_deploy.errors import BuildError

    facts = DeviceFacts(
        index=0,
        name="a GPU",
        compute_capability="9.0",
        driver_cuda="13.0",
        pci_bus_id="0000:00:00.0",
        total_bytes=1,
        free_bytes=1,
    )
    asked = []

    def plan_of(model, arguments):
        asked.append((arguments.compute_capability, arguments.conv))
        if arguments.compute_capability == "9.0":
            raise BuildError("the builder has no 9.0")
        return tmp_path / f"{script.plan_name(model, arguments)}.plan"

    monkeypatch.setattr(backends, "open_cuda", lambda: SimpleNamespace(facts=lambda: facts))
    monkeypatch.setattr(script, "plan_of", plan_of)
    for name in ("portability_row", "plan_row", "torch_row"):
        monkeypatch.setattr(script, name, lambda *given, name=name: {"kind": name})
    results = tmp_path / "rows.jsonl"
    words = ["--model", "cifar", "--batch", "1", "--work", str(tmp_path / "work"), "--results", str(results)]
    assert script.main(words) == 0
    assert asked == [("9.0", "gemm"), ("8.0", "gemm"), ("9.0", "native"), ("8.0", "native")]
    kinds = [json.loads(line)["kind"] for line in results.read_text().splitlines()]
    assert kinds == [*["build", "portability_row", "plan_row"] * 2, "torch_row"]


def test_torch_s_row_is_of_a_compiled_model_in_a_graph(script, monkeypatch):
    """Not of eager torch, whose Python is slower than the GPU."""
    import torch

    from benchmarks.unets import gpu as gpu_unets
    from tests.tiny import ONE_LEVEL, tiny_denoiser

    class Compiled(torch.nn.Module):
        def __init__(self, module, mode):
            super().__init__()
            self.own, self.mode = module, mode

        def forward(self, *given, **named):
            return (torch.ones(int(self.own is denoiser.module and self.mode == "max-autotune-no-cudagraphs")),)

    denoiser = tiny_denoiser(**ONE_LEVEL)
    monkeypatch.setattr(script, "denoiser_of", lambda model: denoiser)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *given, **named: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch, "compile", Compiled)
    monkeypatch.setattr(gpu_unets, "in_graph", lambda step: ("in a graph", step()))
    where, found = script.torch_step("cifar", 2)
    assert (where, len(found)) == ("in a graph", 1)
