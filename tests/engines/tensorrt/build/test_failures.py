"""Ends of a build that cannot be brought about here still get one line with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq_deploy.engines.tensorrt.build.failures import Ending, error_of
from dq_deploy.errors import BuildError, FileProblemError, OptionError
from tests.engines.tensorrt import plan_models
from dq_deploy.manifest.values import EngineManifest


@pytest.fixture
def ending(tmp_path):
    """Function of changes to a builder process that ended badly."""
    onnx = plan_models.linears(tmp_path / "unet.onnx", 2)

    def make(**changes) -> Ending:
        values = {
            "onnx": onnx,
            "manifest": EngineManifest.from_json(plan_models.linear_manifest(("mid.0", "mid.1"))),
            "runtime": "tensorrt",
            "code": 1,
            "event": None,
            "log": [],
            "phase": "Building engine",
            "seconds": 12.3,
            "peak_mib": 812.0,
        }
        return Ending(**{**values, **changes})

    return make


def told(kind, **values):
    return {"event": "error", "kind": kind, **values}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"event": told("no_builder", message="null", log=["CUDA initialization failure with error: 35"])},
            BuildError,
            r"cannot start its builder here \(CUDA initialization failure with error: 35\); it needs an NVIDIA GPU",
        ),
        (
            {"event": told("no_builder", message="no driver or no GPU", log=[])},
            BuildError,
            r"\(no driver or no GPU\).* use `runtime=\"tensorrt-rtx\"`, which needs none",
        ),
        (
            {"event": told("capability", wanted="8.9", found="9.0")},
            OptionError,
            "got 8.9, the GPU of this machine has 9.0, and TensorRT builds for the GPU it runs on",
        ),
        (
            {"event": told("builder", log=["Error Code 10: no implementation for node mid.0"])},
            BuildError,
            "in phase 'Building engine' after 12 s: Error Code 10: no implementation for node mid.0; try another",
        ),
        (
            {"event": told("builder", log=["Error Code 2: OutOfMemory (Requested size was 9 bytes.)"])},
            BuildError,
            "ran out of memory in phase 'Building engine' after 12 s, at a peak of 812 MiB",
        ),
        ({"event": told("memory", log=[])}, BuildError, "ran out of memory"),
        ({"event": told("parser", errors=[])}, FileProblemError, "gives no reason"),
        ({"code": -6, "log": ["terminate called after std::bad_alloc"]}, BuildError, "ran out of memory"),
        (
            {"code": -11, "log": ["metadata: [ONNX Layer: a][ONNX Layer: dq/mid.1/matmul]", "Reserving"]},
            BuildError,
            r"crashed with SIGSEGV .* was working on 2 nodes: a dq/mid.1/matmul \(layer mid.1\); try another",
        ),
        ({"code": -8, "log": []}, BuildError, "crashed with SIGFPE in phase 'Building engine' after 12 s; try"),
        ({"code": -9, "peak_mib": None}, BuildError, "was killed .* at an unknown peak; close other programs"),
        ({"code": 3, "log": ["last words"]}, BuildError, "ended with code 3 .*: last words; run dq-build again"),
        ({"code": 3, "log": []}, BuildError, "it said nothing"),
    ],
)
def test_the_line_says_what_happened_and_what_to_do(changes, kind, message, ending):
    error = error_of(ending(**changes))
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
    assert "\n" not in str(error)


def test_a_write_that_failed_stays_an_os_error(ending):
    error = error_of(ending(event=told("write", errno=28, message="No space left on device")))
    assert isinstance(error, OSError)
    assert error.errno == 28


def test_a_parser_that_names_no_node_is_quoted(ending):
    event = told(
        "parser", errors=[{"code": "INVALID_GRAPH", "message": "odd", "index": -1, "node": "", "operator": ""}]
    )
    error = error_of(ending(event=event))
    assert "of tensorrt refuses" in str(error)
    assert str(error).endswith("INVALID_GRAPH: odd; export it again with dq-export `target=\"tensorrt\"`")
    assert Path("unet.onnx").name in str(error)
