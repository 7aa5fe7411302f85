"""Ends of a build that cannot be brought about here still get one line with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq_deploy.engines.tensorrt.build.failures import Build, failure_error, refusal_error, unfinished_error
from dq_deploy.engines.tensorrt.build.messages import ParserError, Refusal
from dq_deploy.errors import BuildError, FileProblemError, MissingDependencyError, OptionError
from dq_deploy.processes import Ending, Failure
from tests.engines.tensorrt import plan_models
from dq_deploy.manifest.values import EngineManifest


@pytest.fixture
def build(tmp_path):
    """Function of changes to a build that ended badly."""
    onnx = plan_models.linears(tmp_path / "unet.onnx", 2)

    def make(**changes) -> Build:
        values = {
            "onnx": onnx,
            "manifest": EngineManifest.from_json(plan_models.linear_manifest(("mid.0", "mid.1"))),
            "runtime": "tensorrt",
            "phase": "Building engine",
            "seconds": 12.3,
            "peak_mib": 812.0,
        }
        return Build(**{**values, **changes})

    return make


def ended(code, *log):
    return Ending(code=code, log=log, seconds=12.3, peak_mib=812.0)


def error_of(build, end):
    if isinstance(end, Refusal):
        return refusal_error(build, end)
    return unfinished_error(build, end) if isinstance(end, Ending) else failure_error(build, end)


@pytest.mark.parametrize(
    ("end", "kind", "message"),
    [
        (
            Refusal(kind="no_builder", message="null", log=("CUDA initialization failure with error: 35",)),
            BuildError,
            r"cannot start its builder here \(CUDA initialization failure with error: 35\); it needs an NVIDIA GPU",
        ),
        (
            Refusal(kind="no_builder", message="no driver or no GPU"),
            BuildError,
            r"\(no driver or no GPU\).* use `runtime=\"tensorrt-rtx\"`, which needs none",
        ),
        (
            Refusal(kind="capability", expected=("8.9",), found=("9.0",)),
            OptionError,
            "got 8.9, the GPU of this machine has 9.0, and TensorRT builds for the GPU it runs on",
        ),
        (
            Refusal(kind="builder", log=("Error Code 10: no implementation for node mid.0",)),
            BuildError,
            "in phase 'Building engine' after 12 s: Error Code 10: no implementation for node mid.0; try another",
        ),
        (
            Refusal(kind="builder", log=("Error Code 2: OutOfMemory (Requested size was 9 bytes.)",)),
            BuildError,
            "ran out of memory in phase 'Building engine' after 12 s, at a peak of 812 MiB",
        ),
        (Failure(kind="MemoryError", message="no room", exit_code=2), BuildError, "ran out of memory"),
        (Refusal(kind="parser"), FileProblemError, "gives no reason"),
        (ended(-6, "terminate called after std::bad_alloc"), BuildError, "ran out of memory"),
        (
            ended(-11, "metadata: [ONNX Layer: a][ONNX Layer: dq/mid.1/matmul]", "Reserving"),
            BuildError,
            r"crashed with SIGSEGV .* was working on 2 nodes: a dq/mid.1/matmul \(layer mid.1\); try another",
        ),
        (ended(-8), BuildError, "crashed with SIGFPE in phase 'Building engine' after 12 s; try"),
        (ended(-9), BuildError, "was killed .* at a peak of 812 MiB; close other programs"),
        (ended(3, "last words"), BuildError, "ended with code 3 .*: last words; run dq-build again"),
        (ended(3), BuildError, "it said nothing"),
    ],
)
def test_the_line_says_what_happened_and_what_to_do(end, kind, message, build):
    error = error_of(build(), end)
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
    assert "\n" not in str(error)


def test_a_peak_that_nobody_saw_is_unknown(build):
    assert "at an unknown peak; close" in str(unfinished_error(build(peak_mib=None), ended(-9)))


def test_what_the_process_raises_of_ours_is_raised_here(build):
    failure = Failure(kind="MissingDependencyError", message="install it", exit_code=2)
    error = failure_error(build(), failure)
    assert type(error) is MissingDependencyError
    assert str(error) == "install it"


def test_a_write_that_failed_stays_an_os_error(build):
    error = failure_error(build(), Failure(kind="OSError", message="the system says", exit_code=2, errno=28))
    assert isinstance(error, OSError)
    assert error.errno == 28


def test_a_parser_that_names_no_node_is_quoted(build):
    errors = (ParserError(code="INVALID_GRAPH", message="odd", index=-1, node="", operator=""),)
    error = refusal_error(build(), Refusal(kind="parser", errors=errors))
    assert "of tensorrt refuses" in str(error)
    assert str(error).endswith("INVALID_GRAPH: odd; export it again with dq-export `target=\"tensorrt\"`")
    assert Path("unet.onnx").name in str(error)
