"""A method in its own process tells how far it is, what it took, and why it failed; nothing outlives its caller."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dq_deploy import load_model, load_record, quantize
from dq_deploy.calibration import CalibrationRequest
from dq_deploy.comparison import worker
from dq_deploy.comparison.worker import TrainingError, TrainingRequest, perform, train
from dq_deploy.errors import OptionError
from dq_deploy.methods import Progress, SharedOptions, options_for
from dq_deploy.methods.options import json_of_options
from dq_deploy.record import content_sha256
from tests.tiny import ONE_LEVEL, tiny_denoiser

LOSS = '{"number": 1, "error": {"kind": "GuaranteeError", "message": "loss is NaN", "exit_code": 3}}'

OPTIONS = options_for(method="minmax", steps=2, samples=2)


def request(model_dir: Path, out: Path, options: SharedOptions = OPTIONS) -> TrainingRequest:
    return TrainingRequest(model=str(model_dir), options=json_of_options(options), out=str(out))


def test_the_process_writes_the_record_that_quantize_gives(model_dir: Path, tmp_path: Path) -> None:
    reports: list[Progress] = []
    found = train(request(model_dir, tmp_path / "a.pt"), reports.append)
    own = quantize(load_model(model_dir), OPTIONS)
    assert content_sha256(load_record(tmp_path / "a.pt")) == content_sha256(own)
    assert 0 < found.loaded_mib <= found.peak_mib
    assert found.seconds > 0
    assert not found.continued
    assert {"trajectory", "ranges"} <= {report.stage for report in reports}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets `train` run some Python in the worker's place."""

    def use(text: str) -> None:
        monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", text))

    return use


def test_an_interrupt_ends_the_process(script: Callable[[str], None], model_dir: Path, tmp_path: Path) -> None:
    report = '{"number": 1, "event": {"stage": "ranges", "done": 1, "total": 2}}'
    script(f"import time; print({report!r}, flush=True); time.sleep(60)")
    others = set(psutil.Process().children())  # of this test process: the server of tests/forked.py
    children: list[psutil.Process] = []

    def stop(report: Progress) -> None:
        children.extend(set(psutil.Process().children()) - others)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(request(model_dir, tmp_path / "a.pt"), stop)
    assert children
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize(
    ("text", "message", "code"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL; is there enough memory", 1),
        ("raise MemoryError('no room')", "code 1: MemoryError: no room", 1),
        (f"print({LOSS!r})", "^loss is NaN$", 3),
    ],
)
def test_a_failure_is_the_processs_last_word(
    text: str, message: str, code: int, script: Callable[[str], None], model_dir: Path, tmp_path: Path
) -> None:
    script(text)
    with pytest.raises(TrainingError, match=message) as caught:
        train(request(model_dir, tmp_path / "a.pt"), lambda report: None)
    assert caught.value.exit_code == code


def test_a_stopped_run_is_continued_and_says_so(model_dir: Path, tmp_path: Path) -> None:
    options = options_for(steps=2, samples=2, iterations=1)
    state = tmp_path / "state"
    wanted = TrainingRequest(
        model=str(model_dir), options=json_of_options(options), out=str(tmp_path / "a.pt"), state=str(state)
    )

    def stop(report: Progress) -> None:
        if report.stage == "distill" and report.done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(wanted, stop)
    spent = state / "spent.json"
    before = json.loads(spent.read_text())
    assert before["seconds"] > 0
    assert before["peak_mib"] > 10
    spent.write_text(json.dumps({"seconds": 1000.0, "peak_mib": 1e6}))
    found = perform(wanted, lambda message: None)
    assert found.continued
    assert 1000 < found.seconds < 1100
    assert found.peak_mib == 1e6
    assert not state.exists()


def test_the_methods_own_message_is_the_failure(model_dir: Path, tmp_path: Path) -> None:
    options = options_for(method="minmax", steps=2, samples=2, keep=("nothing.*",))
    with pytest.raises(OptionError, match="matches no layer"):
        perform(request(model_dir, tmp_path / "a.pt", options), lambda message: None)


def test_a_model_without_a_size_is_quantized_at_the_asked_one(tmp_path: Path) -> None:
    sizes = {"height": 4, "width": 12}
    denoiser = tiny_denoiser(**ONE_LEVEL, sample_size=None, sizes=sizes)
    denoiser.module.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(denoiser.scheduler_config))
    asked = replace(request(tmp_path, tmp_path / "m.pt"), calibration=CalibrationRequest(**sizes))
    perform(asked, lambda report: None)
    call = load_record(tmp_path / "m.pt").call
    assert call is not None
    assert dict(call.sizes) == sizes
