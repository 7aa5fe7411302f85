"""What is said of a plan before a GPU is asked: version, compute capability, shapes; then that there is no driver."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")

from dq_deploy.engines.base import TensorSpec, is_float
from dq_deploy.engines.cuda.arrays import DeviceArray, dtype_of
from dq_deploy.engines.cuda.interface import DeviceMemoryError
from dq_deploy.engines.tensorrt.engine import _logger, check_library, error_of
from dq_deploy.engines.tensorrt.library import tensorrt_library
from dq_deploy.engines.tensorrt.plan.checks import (
    ShapeRange,
    check_compute_capability,
    largest_batch,
    largest_shapes,
    profile_for,
    profiles_of,
    validity_text,
)
from dq_deploy.engines.tensorrt.runner import TensorRtRunner, check_device_array
from dq_deploy.errors import FileProblemError, InputError, MissingDependencyError, OptionError
from dq_deploy.manifest.plan import plan_manifest_path, read_plan_manifest
from dq_deploy.open_engine import open_engine
from tests.engines.cuda.gpu import without_driver
from tests.engines.tensorrt.plans import build_linear, copy_with
from tests.manifests import changed


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return build_linear(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def manifest(plan):
    return read_plan_manifest(plan)


@without_driver
def test_a_plan_opens_up_to_the_missing_driver(plan):
    with pytest.raises(MissingDependencyError, match="no NVIDIA driver") as caught:
        open_engine(plan)
    assert "\n" not in str(caught.value)


@without_driver
def test_the_library_itself_says_that_the_driver_is_missing(plan, manifest):
    """TensorRT-RTX loads a plan only with a driver; its own words are turned into one line."""
    library = tensorrt_library("tensorrt-rtx")
    messages: list[str] = []
    runtime = library.Runtime(_logger(library, messages))
    assert runtime.deserialize_cuda_engine(plan.read_bytes()) is None
    error = error_of(messages, "load", plan)
    assert isinstance(error, MissingDependencyError)
    assert "driver is missing or too old" in str(error)


def test_bytes_that_are_no_plan_are_a_file_problem(plan):
    library = tensorrt_library("tensorrt-rtx")
    messages: list[str] = []
    assert library.Runtime(_logger(library, messages)).deserialize_cuda_engine(b"x" * 2000) is None
    only_first = [text for text in messages if "cudaError" not in text]
    assert isinstance(error_of(only_first, "load", plan), FileProblemError)


def test_no_memory_is_an_error_of_its_own(plan):
    error = error_of(["Error Code 2: OutOfMemory (Requested size was 42 bytes.)"], "load", plan)
    assert isinstance(error, DeviceMemoryError)
    assert "smaller batch" in str(error)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"runtime_version": "1.6.0.1"}, FileProblemError, r"built by TensorRT-RTX 1\.6\.0\.1, 1\.\d.* is installed"),
        ({"runtime": "onnxruntime"}, FileProblemError, "expected one of tensorrt, tensorrt-rtx"),
        ({"profiles": []}, FileProblemError, "no profile"),
        ({"profiles": [{"sample": {"min": [2, 64], "opt": [1, 64], "max": [8, 64]}}]}, FileProblemError, "profiles"),
        ({"profiles": [{}]}, FileProblemError, "cannot be read"),
        ({"build": {"plan_bytes": 5}}, FileProblemError, "expected 5 as its manifest says"),
        ({"plan_sha256": "0" * 64}, FileProblemError, "belongs to a plan"),
        ({"version": 99}, FileProblemError, "version 99"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_the_driver_is_asked(plan, tmp_path, changes, kind, message):
    other = copy_with(plan, tmp_path, **changes)
    with pytest.raises(kind, match=message) as caught:
        open_engine(other)
    assert "\n" not in str(caught.value)


def test_a_plan_of_full_tensorrt_says_what_to_install(plan, tmp_path):
    try:
        tensorrt_library("tensorrt")
    except MissingDependencyError:
        with pytest.raises(MissingDependencyError, match=r"dq-deploy\[tensorrt\]"):
            open_engine(copy_with(plan, tmp_path, runtime="tensorrt"))
    else:
        pytest.skip("TensorRT is installed")


def test_a_truncated_plan_is_refused(plan, tmp_path):
    other = copy_with(plan, tmp_path)
    other.write_bytes(plan.read_bytes()[:1000])
    with pytest.raises(FileProblemError, match="replaced or damaged"):
        open_engine(other)
    with pytest.raises(FileProblemError, match="1000 bytes, expected"):
        check_library(other, read_plan_manifest(other, check_hash=False))


def test_a_plan_without_its_manifest_is_refused(plan, tmp_path):
    other = copy_with(plan, tmp_path)
    plan_manifest_path(other).unlink()
    with pytest.raises(FileProblemError, match="no manifest"):
        open_engine(other)


def test_a_plan_runs_on_its_own_engine_and_has_no_graph_to_write(plan, tmp_path):
    with pytest.raises(OptionError, match="expected tensorrt-rtx"):
        open_engine(plan, engine="onnxruntime")
    with pytest.raises(OptionError, match="dq-verify"):
        open_engine(plan, optimized_model_path=tmp_path / "x.onnx")


def test_an_onnx_file_for_tensorrt_is_told_to_be_built(plan):
    with pytest.raises(OptionError, match=r"dq-build `onnx` .*linear\.onnx"):
        open_engine(plan.with_suffix(".onnx"))


def test_a_plan_for_another_gpu_is_refused(manifest, plan):
    check_compute_capability(manifest, "8.0", "A100", plan)
    with pytest.raises(
        FileProblemError, match=r"for compute capability 8\.0, H200 has 9\.0.*`compute_capabilities` 9\.0$"
    ):
        check_compute_capability(manifest, "9.0", "H200", plan)


def test_a_portable_plan_is_tried_on_later_gpus_only(manifest, plan):
    portable = changed(manifest, portable=True, compute_capabilities=["8.0", "8.6", "8.9", "12.0"])
    for capability in ("8.0", "9.0", "12.1"):
        check_compute_capability(portable, capability, "GPU", plan)
    with pytest.raises(FileProblemError, match=r"has 7\.5"):
        check_compute_capability(portable, "7.5", "T4", plan)


def test_the_librarys_reasons_are_those_it_documents():
    library = tensorrt_library("tensorrt-rtx")
    for member in library.EngineInvalidityDiagnostics.__members__.values():
        assert validity_text(int(member)), member.name
    assert (
        validity_text(2 | 4)
        == "it was not built for this GPU's compute capability and the NVIDIA driver is too old for it"
    )
    assert validity_text(0) == ""


PROFILES = (
    {
        "sample": ShapeRange(least=(1, 4, 64, 64), best=(1, 4, 64, 64), most=(2, 4, 64, 64)),
        "timestep": ShapeRange(least=(1,), best=(1,), most=(2,)),
    },
    {
        "sample": ShapeRange(least=(1, 4, 32, 32), best=(8, 4, 64, 64), most=(8, 4, 96, 96)),
        "timestep": ShapeRange(least=(1,), best=(8,), most=(8,)),
    },
)


def shapes(batch, size=64):
    return {"sample": (batch, 4, size, size), "timestep": (batch,)}


@pytest.mark.parametrize(("asked", "index"), [(shapes(1), 0), (shapes(2), 0), (shapes(8), 1), (shapes(1, 96), 1)])
def test_the_profile_whose_best_shapes_are_nearest_is_taken(asked, index):
    assert profile_for(PROFILES, asked) == index


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            shapes(9),
            "input sample has shape 9x4x64x64, the plan takes 1x4x64x64 to 2x4x64x64, or 1x4x32x32 to 8x4x96x96",
        ),
        (shapes(1, 128), "input sample has shape 1x4x128x128"),
        ({"sample": (1, 4, 64, 64), "timestep": (9,)}, "input timestep has shape 9"),
        ({"sample": (4, 64, 64), "timestep": (1,)}, "input sample has shape 4x64x64"),
    ],
)
def test_shapes_outside_every_profile_are_refused_with_the_smallest_and_the_largest(asked, message):
    with pytest.raises(InputError, match=message):
        profile_for(PROFILES, asked)


def test_shapes_that_fit_only_apart_are_refused():
    apart = (
        {"a": ShapeRange(least=(1,), best=(1,), most=(2,)), "b": ShapeRange(least=(1,), best=(1,), most=(2,))},
        {"a": ShapeRange(least=(4,), best=(4,), most=(8,)), "b": ShapeRange(least=(4,), best=(4,), most=(8,))},
    )
    with pytest.raises(InputError, match="together"):
        profile_for(apart, {"a": (1,), "b": (8,)})


def test_the_largest_batch_and_shapes_are_those_of_all_profiles():
    assert largest_batch(PROFILES) == 8
    assert largest_shapes(PROFILES) == {"sample": (8, 4, 96, 96), "timestep": (8,)}


def test_the_profiles_of_a_real_plan_are_read(manifest, plan):
    (profile,) = profiles_of(manifest, plan)
    assert (2, 64) in profile["sample"]
    assert (9, 64) not in profile["sample"]
    assert json.dumps(manifest.to_json()["profiles"])


SPEC = TensorSpec(name="sample", dtype=np.dtype(np.float32), shape=("B", 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": dtype_of("float16")}, "is float16, expected float32"),
        ({"shape": (2, 4)}, r"shape \(2, 4\), expected \[B, 3\]"),
        ({"shape": (0, 3)}, r"shape \(0, 3\)"),
        ({"shape": (2, 3, 1)}, "expected"),
        ({"pointer": 0}, "address 0"),
        ({"device": 1}, "lies on GPU 1, expected 0"),
    ],
)
def test_device_memory_that_is_not_the_tensor_is_refused(changes, message):
    fitting = {"pointer": 4096, "shape": (2, 3), "dtype": np.dtype(np.float32), "device": 0}
    check_device_array(DeviceArray(**fitting), SPEC, 0)
    with pytest.raises(InputError, match=message):
        check_device_array(DeviceArray(**{**fitting, **changes}), SPEC, 0)


def test_infinity_is_looked_for_in_every_float_type():
    assert all(is_float(dtype_of(name)) for name in ("float16", "bfloat16", "float32"))
    assert not is_float(dtype_of("int64"))
    assert not np.isfinite(np.array([np.inf], ml_dtypes.bfloat16)).all()


def test_an_unknown_cuda_backend_is_refused_behind_the_checks_of_the_plan(plan, manifest):
    with pytest.raises(OptionError, match="cuda-core, pycuda"):
        TensorRtRunner(plan, manifest, cuda="cupy")
