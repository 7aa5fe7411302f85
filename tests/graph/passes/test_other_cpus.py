"""The exact form on a CPU that adds u8 x s8 pairs in int16 (AVX2 without VNNI), by emulation with QEMU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QEMU = shutil.which("qemu-x86_64")
ROOT = Path(__file__).parents[3]

SATURATING = """
import numpy as np, onnxruntime
from onnx import helper, numpy_helper
make = lambda v, n: numpy_helper.from_array(v, n)
initializers = [make(np.float32(1), "one"), make(np.full((64, 16), 127, np.int8), "w"),
                make(np.uint8(0), "za"), make(np.int8(0), "zb")]
node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "one", "za", "zb"], ["y"], domain="com.microsoft")
graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 2, ["B", 64])],
                          [helper.make_tensor_value_info("y", 1, None)], initializers)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)])
model.ir_version = 10
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print("SUM", session.run(None, {"x": np.full((1, 64), 255, np.uint8)})[0][0, 0])
"""


@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian package qemu-user) is not installed")
class TestHaswell:
    def run(self, *arguments):
        command = [QEMU, "-cpu", "Haswell", sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)

    def test_the_emulated_cpu_saturates_signed_eight_bit_weights(self):
        result = self.run("-c", SATURATING)
        total = float(result.stdout.split("SUM")[1])
        assert total != 255 * 127 * 64

    def test_every_exact_form_equals_the_numerics_there(self):
        result = self.run(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
            "tests/graph/passes/test_onnxruntime_layers.py",
            "-k", "extreme or ties or accumulators",
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-3000:]
        assert " passed" in result.stdout
