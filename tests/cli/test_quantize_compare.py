"""`dq-quantize --compare` as a user types it: every mistake before training, one table behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.comparison import Cell
from dq_deploy.comparison import cell as module
from dq_deploy.comparison.worker import Trained, TrainingError, TrainingRequest, perform
from dq_deploy.methods import Progress
from dq_deploy.record import load_record
from tests.cli.running import Done, command
from tests.comparison.conftest import write_tiny_model
from tests.comparison.test_methods_in_turn import measured

QUICK = ("--activations", 4, "--steps", 2, "--samples", 2, "--iterations", 1, "--preset", "fast")
SMALL = ("--compare-images", 4, "--extractor", "none")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process and no engine: those have their own tests."""

    def train(request: TrainingRequest, on_progress: Callable[[Progress], None]) -> Trained:
        return perform(request, on_progress)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "measured", measured)


def run(model_dir: Path, out: Path, *more: Any) -> Done:
    given = (*QUICK, *SMALL, *more, "--out", out)
    return command("quantize", "--model", model_dir, "--compare", "minmax,dilatequant", *given)


def test_two_methods_give_records_a_table_and_a_file(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done = run(model_dir, out)
    assert done.code == 0, done.err
    value = json.loads((out / "comparison.json").read_text())
    cells = [Cell.from_json(cell) for cell in value["cells"]]
    assert [cell.name for cell in cells] == ["minmax-w4a4", "dilatequant-w4a4"]
    for cell in cells:
        assert load_record(out / str(cell.record)).provenance["method"] == cell.method
        assert cell.peak_mib is not None
        assert cell.loaded_mib is not None
        assert 0 < cell.loaded_mib <= cell.peak_mib
    assert "PSNR less first's, dB" in done.out
    assert "dilatequant-w4a4, 2 of 2" in done.err
    # the same command makes nothing again
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained again"))
    again = run(model_dir, out)
    assert again.code == 0, again.err
    assert again.err.count("taken from the earlier run") == 2
    assert again.out == done.out


def test_a_failed_method_is_in_the_table_and_in_the_exit_code(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(request: TrainingRequest, on_progress: object) -> Trained:
        raise TrainingError(f"{request.options['method']}: loss is NaN", 3)

    monkeypatch.setattr(module, "train", train)
    done = run(model_dir, tmp_path / "out", "--json", tmp_path / "table.json")
    assert done.code == 3
    assert "failed" in done.out
    assert done.err.splitlines()[-1] == "error: 2 of 2 methods failed, first minmax-w4a4: minmax: loss is NaN"
    assert [row["error"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compare", "minmax"), "--out is missing"),
        (("--compare", "minmax,gptqq", "--out", "o"), "method is 'gptqq'"),
        (("--compare", "minmax,minmax", "--out", "o"), "named twice"),
        (("--compare", ",", "--out", "o"), "no method is named"),
        (("--compare", "minmax", "--out", "nowhere/o"), "nowhere does not exist"),
        (
            ("--compare", "minmax", "--out", "o", "--method", "dmq"),
            "--method was given with --compare, which has no use for it; leave one out",
        ),
        (("--compare", "minmax", "--out", "o", "--list-layers"), "--list-layers was given with --compare"),
        (("--compare", "minmax", "--out", "o", "--engine", "tensorrt"), "engine is 'tensorrt'"),
        (("--compare", "minmax", "--out", "o", "--for-engine", "tvm"), "engine is 'tvm'"),
        (("--compare", "minmax", "--out", "o", "--weights", 9), "weight_bits is 9"),
        (("--compare", "minmax", "--out", "o", "--activations", 16), "nothing would be quantized"),
        (("--compare", "minmax", "--out", "o", "--compare-images", 1), "images of the comparison is 1"),
        (("--compare", "minmax", "--out", "o", "--keep", "nothing.*"), "matches no layer"),
        (("--compare", "minmax", "--out", "o", "--reference-images", "none.npz"), "none.npz does not exist"),
        (("--compare", "minmax", "--out", "o", "--classifier", "mine"), "the classifier is 'mine'"),
        (("--compare", "minmax", "--out", "o", "--extractor", "mine"), "the feature extractor is 'mine'"),
        (("--compare", "dilatequant", "--out", "o", "--without", "tdac"), "without names 'tdac'"),
        (("--compare-images", 8, "--out", "m.pt"), "--compare-images was given without --compare"),
        (("--engine", "native", "--out", "m.pt"), "--engine was given without --compare"),
        (("--for-engine", "tvm", "--out", "m.pt"), "engine is 'tvm'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    arguments: tuple[Any, ...], message: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("trained"))
    done = command("quantize", "--model", model_dir, *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_real_images_of_another_kind_are_refused(model_dir: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", images=np.zeros((9, 8, 8, 3), np.uint8))
    done = run(model_dir, tmp_path / "out", "--reference-images", tmp_path / "real.npz")
    assert (done.code, "of shape [1, H, W]" in done.err) == (2, True)
    assert not (tmp_path / "out").exists()
