"""Fixtures of the whole suite: the demo model, a quick record of it, and engines, each made once a session."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # one thread a worker; read when torch is loaded
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores it, and so would what we start
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402 - behind the settings above

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    return ROOT / "examples" / "mnist-ddpm-32"


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """A worker traces each model once for engines and once for proofs; outside tests only the last few are kept."""
    from dq_deploy.graph import trace
    from dq_deploy.native.trace import traced
    from dq_deploy.recent import Recent

    with mock.patch.object(trace, "_GRAPHS", Recent(64)), mock.patch.object(traced, "_PROGRAMS", Recent(64)):
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Function (name, make) to the path of a file that one worker makes and all workers share."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder = base / "made-once"
    folder.mkdir(exist_ok=True)

    def path_of(name: str, make: Callable[[Path], None]) -> Path:
        path = folder / name
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = folder / f".{name}.done"
            if not done.exists():
                make(path)
                done.touch()
        return path

    return path_of


@pytest.fixture(scope="session")
def demo_record_path(made_once, demo_model_dir) -> Path:
    """The demo model by `minmax`, W4A8, 20 steps, few calibration samples."""

    def make(path: Path) -> None:
        from dq_deploy import load_model, quantize, save_record

        denoiser = load_model(demo_model_dir)
        save_record(quantize(denoiser, method="minmax", steps=20, samples=8), path)

    return made_once("demo.pt", make)


@pytest.fixture(scope="session")
def demo_record(demo_record_path):
    from dq_deploy import load_record

    return load_record(demo_record_path)


@pytest.fixture(scope="session")
def demo_engine(made_once, demo_record_path) -> Path:
    """`demo_record` for ONNX Runtime, mode exact, with its manifest beside it."""

    def make(path: Path) -> None:
        from dq_deploy import export, load_record

        export(load_record(demo_record_path), path)

    return made_once("demo.onnx", make)


@pytest.fixture(scope="session")
def tiny_record_path(made_once) -> Path:
    """A toy class-conditional record with arbitrary quantizers."""

    def make(path: Path) -> None:
        from dq_deploy import save_record
        from tests.tiny import random_record, tiny_denoiser

        save_record(random_record(tiny_denoiser(classes=3)), path)

    return made_once("tiny.pt", make)


@pytest.fixture(scope="session")
def tiny_record(tiny_record_path):
    from dq_deploy import load_record

    return load_record(tiny_record_path)


@pytest.fixture(scope="session")
def tiny_engine(made_once, tiny_record_path) -> Path:
    """`tiny_record` for ONNX Runtime, mode exact."""

    def make(path: Path) -> None:
        from dq_deploy import export, load_record

        export(load_record(tiny_record_path), path)

    return made_once("tiny.onnx", make)


@pytest.fixture(scope="session")
def text_model(made_once) -> Path:
    """Folder of a Stable Diffusion pipeline of 16 x 16 pixels, with model.pt, a record of its denoiser, inside."""

    def make(path: Path) -> None:
        from dq_deploy import load_model, save_record
        from tests.pipelines.tiny_pipelines import tiny_text_pipeline
        from tests.tiny import random_record

        tiny_text_pipeline().save_pretrained(path)
        save_record(random_record(load_model(path / "unet")), path / "model.pt")

    return made_once("text-model", make)
