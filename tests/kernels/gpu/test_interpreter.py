"""The interpreter must be asked for before triton is imported: the kernels' tests run in a process of their own."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "tests/kernels").rglob("test_triton.py"))
LEAST = {
    "device": 8,
    "geglu_quantize": 12,
    "gpu": 18,
    "group_norm_silu_quantize": 36,
    "int_conv2d": 16,
    "int_linear": 25,
    "layer_norm_quantize": 16,
    "quantize": 12,
}
"""Tests that must have run in each folder."""


def test_every_op_has_a_file_of_its_kernel():
    assert {path.parent.name for path in FILES} == set(LEAST)


def test_kernels_equal_the_references_bit_for_bit_in_the_interpreter():
    """In one process: loading torch and triton takes longer than most of the files."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton==3.7.1")
    options = ["-v", "-x", "-W", "ignore", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, FILES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # schemathesis and hypothesis take seconds to load
    # a worker of pytest-xdist hands its own settings down
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = Counter(re.findall(r"(\w+)/test_triton\.py::\S.* PASSED", done.stdout))
    assert {folder: passed[folder] >= least for folder, least in LEAST.items()} == dict.fromkeys(LEAST, True), passed
    assert "skipped" not in done.stdout
