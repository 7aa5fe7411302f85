"""What the builder process hands the library: workspace, architectures, verbosity, strong types, the profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dq_deploy.engines.tensorrt.build.worker import gpu_compute_capability
from tests.engines.tensorrt import plan_models

pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")

# a process of its own, as polygraphy reads the variable when it is imported
ASK = """
import json, os, sys
os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
import tensorrt_rtx as trt
from dq_deploy.engines.tensorrt.build import worker
from dq_deploy.engines.tensorrt.library import rtx_library

onnx, workspace = sys.argv[1], json.loads(sys.argv[2])
library = rtx_library()
request = worker.BuildRequest(
    runtime="tensorrt-rtx", onnx=onnx, plan="", compute_capabilities=(), timing_cache=None,
    profile={"sample": {"min": [1, 64], "opt": [2, 64], "max": [4, 64]}}, workspace_mib=workspace,
)
builder, network = worker.parsed_network(library, request, worker.logger_of(library, []))
config = worker.builder_config(library, request, builder, network, lambda event: None)
worker.set_architectures(library, config, ["8.0", "12.1"])
print(json.dumps({
    "strongly_typed": network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
    "verbosity": config.profiling_verbosity.name,
    "tf32": config.get_flag(trt.BuilderFlag.TF32),
    "profiles": config.num_optimization_profiles,
    "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
    "architectures": [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)],
}), file=sys.stderr)
"""


def configured(onnx, workspace_mib):
    command = [sys.executable, "-c", ASK, onnx, json.dumps(workspace_mib)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_the_options_reach_the_builder(tmp_path):
    onnx = plan_models.linears(tmp_path / "one.onnx")
    free, limited = configured(onnx, None), configured(onnx, 48)
    assert limited.pop("workspace") == 48 << 20 != free.pop("workspace")
    assert free == limited
    assert limited == {
        "strongly_typed": True,
        "verbosity": "DETAILED",
        "tf32": False,
        "profiles": 1,
        "architectures": ["SM80", "SM121"],
    }


def test_no_driver_is_no_compute_capability():
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has an NVIDIA driver")
    assert gpu_compute_capability() is None
