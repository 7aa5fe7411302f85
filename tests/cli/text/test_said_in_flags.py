"""What a command prints and writes names no option by its Python name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq_deploy.cli.frame import in_flags_throughout
from dq_deploy.cli.frame.failures import running
from dq_deploy.verify.report.values import Fault, FloatLayer, failures_of
from dq_deploy.verify.steps import LeftOut, Reason, Step
from tests.cli.running import Done, command
from tests.cli.test_info import MANIFEST, write_onnx
from tests.cli.test_verify import EXACT, LAYER
from tests.comparison.conftest import write_tiny_model

REMARK = 'build it with dq-build `shapes`, or use `device="cpu"`'
SAID = "build it with dq-build --shapes, or use --device cpu"
CLI = Path(__file__).resolve().parents[3] / "dq_deploy" / "cli"
WITHOUT_TEXTS = ("sample.py",)
"""Commands whose JSON holds numbers and what the user typed."""


def check(done: Done, *files: Path) -> None:
    """SAID is on the terminal and in every file, and REMARK nowhere."""
    texts = {"terminal": " ".join((done.out + done.err).split()), **{path.name: path.read_text() for path in files}}
    for name, text in texts.items():
        assert "`shapes`" not in text, name
        assert "--shapes, or use --device cpu" in text, name


@dataclass(frozen=True)
class Stored:
    """Stands for a report or a manifest."""

    remark: str = REMARK

    def to_json(self) -> dict[str, str]:
        return {"remark": self.remark}


def show(summary: Mapping[str, Any], *_: Any) -> None:
    print(summary["remark"])


def test_every_text_in_a_value_is_said_in_flags() -> None:
    left = LeftOut(step=Step.OUTPUTS, reason=Reason.NEEDS_GPU, text=REMARK)
    value: dict[str, Any] = {REMARK: [(REMARK, 1), Reason.NEEDS_GPU, None], "left": left}
    with running("dq-verify", []):
        said = in_flags_throughout(value)
        assert in_flags_throughout(said) is said
    assert said == {SAID: [(SAID, 1), Reason.NEEDS_GPU, None], "left": replace(left, text=SAID)}
    assert left.text == REMARK


def test_a_value_without_options_stays_the_same_object() -> None:
    value = {"numbers": np.zeros(3), "layers": ["conv_in"], "words": "`ldm` and a `path`/x"}
    with running("dq-verify", []):
        assert in_flags_throughout(value) is value


def test_each_command_that_writes_json_says_its_texts_in_flags() -> None:
    for path in CLI.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "write_json(" in text and "frame" not in path.parts and path.name not in WITHOUT_TEXTS:
            assert "in_flags_throughout(" in text or "wording=in_flags" in text, path


def test_verify(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_record_path: Path) -> None:
    report = replace(
        EXACT,
        found=failures_of(Fault.RUN, [REMARK]),
        notes=(REMARK,),
        layers=(replace(LAYER, status="float", reason=REMARK),),
        float_layers=(FloatLayer(name="conv_in", macs=10, reason=REMARK),),
    )
    monkeypatch.setattr("dq_deploy.verify.proof.prove_engine", lambda *_, **__: report)
    files = tmp_path / "v.json", tmp_path / "v.html"
    more = ("--require-integer", 1, "--json", files[0], "--html", files[1])
    done = command("verify", "--engine", tmp_path / "u.onnx", "--ckpt", tiny_record_path, "--exact", *more)
    assert done.code == 3
    check(done, *files)
    assert json.loads(files[0].read_text())["failures"] == [SAID]
    assert report.failures == (REMARK,)


def test_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dq_deploy.comparison.worker import TrainingError

    def train(*_: Any) -> None:
        raise TrainingError(REMARK, 2)

    monkeypatch.setattr("dq_deploy.comparison.cell.train", train)
    model, out, table = write_tiny_model(tmp_path / "model"), tmp_path / "out", tmp_path / "table.json"
    small = ("--steps", 2, "--samples", 2, "--compare-images", 4, "--extractor", "none", "--preset", "fast")
    done = command("quantize", "--model", model, "--compare", "minmax", *small, "--out", out, "--json", table)
    assert done.code == 2
    check(done, table, out / "comparison.json")


def test_list_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dq_deploy.cli.text.quantize import summary

    rows = summary.layer_rows

    def remarked(*given: Any) -> list[dict[str, Any]]:
        return [{**row, "fold": REMARK, "bits_reason": REMARK} for row in rows(*given)]

    monkeypatch.setattr(summary, "layer_rows", remarked)
    model = write_tiny_model(tmp_path / "model")
    done = command("quantize", "--model", model, "--list-layers", "--json", tmp_path / "l.json")
    assert (done.code, "`shapes`" in done.out, "--shapes" in done.out) == (0, False, True)
    assert {row["fold"] for row in json.loads((tmp_path / "l.json").read_text())["layers"]} == {SAID}


def test_quantize(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = "dq_deploy.cli.text.quantize.summary"
    monkeypatch.setattr(f"{module}.summary_of", lambda *_, **__: {"remark": REMARK})
    monkeypatch.setattr(f"{module}.show_summary", show)
    model, out = write_tiny_model(tmp_path / "model"), tmp_path / "q.json"
    quick = ("--method", "minmax", "--steps", 2, "--samples", 2, "--out", tmp_path / "m.pt")
    check(command("quantize", "--model", model, *quick, "--json", out), out)


def test_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_record_path: Path) -> None:
    monkeypatch.setattr("dq_deploy.targets.export", lambda *_, **__: None)
    summary = {"remark": REMARK, "float_layers": {"conv_in": REMARK}}
    monkeypatch.setattr("dq_deploy.cli.text.export_summary.summary_of_export", lambda *_, **__: summary)
    monkeypatch.setattr("dq_deploy.cli.text.export_summary.show_export", show)
    out = tmp_path / "e.json"
    check(command("export", "--ckpt", tiny_record_path, "--out", tmp_path / "u.onnx", "--json", out), out)


def test_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dq_deploy.verify.plan.attested_build.build_attested", lambda *_, **__: (None, None))
    summary = {"remark": REMARK, "not_integer": {"conv_in": REMARK}}
    monkeypatch.setattr("dq_deploy.cli.text.build_summary.summary_of_build", lambda *_, **__: summary)
    monkeypatch.setattr("dq_deploy.cli.text.build_summary.show_build", show)
    out = tmp_path / "b.json"
    (tmp_path / "u.onnx").touch()
    check(command("build", "--onnx", tmp_path / "u.onnx", "--out", tmp_path / "u.plan", "--json", out), out)


def test_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("readers.import_checkpoint", "readers.load_settings", "record.save_record"):
        monkeypatch.setattr(f"dq_deploy.{name}", lambda *_, **__: None)
    summary = {"remark": REMARK, "kept_float": {REMARK: ["conv_in"]}}
    monkeypatch.setattr("dq_deploy.cli.text.import_summary.summary_of_import", lambda *_, **__: summary)
    monkeypatch.setattr("dq_deploy.cli.text.import_summary.show_import", show)
    out, files = tmp_path / "i.json", [tmp_path / name for name in ("c.pth", "f.pth", "s.yaml")]
    for path in files:
        path.touch()
    given = ("--from", "dmq", "--ckpt", files[0], "--float", files[1], "--settings", files[2])
    check(command("import_record", *given, "--out", tmp_path / "m.pt", "--json", out, script="dq-import"), out)


def test_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dq_deploy.cli.bench._measured", lambda *_, **__: Stored())
    monkeypatch.setattr("dq_deploy.cli.text.bench_report.show_bench", lambda report: print(report.remark))
    out = tmp_path / "b.json"
    check(command("bench", "--engine", tmp_path / "u.onnx", "--json", out), out)


def test_info_of_an_engine(tmp_path: Path) -> None:
    manifest = json.dumps(MANIFEST).replace("kept float", json.dumps(REMARK)[1:-1])
    write_onnx(tmp_path / "u.onnx", manifest)
    done = command("info", tmp_path / "u.onnx", "--json", tmp_path / "i.json")
    assert (done.code, "`shapes`" in done.out, "--shapes" in done.out) == (0, False, True)
    assert json.loads((tmp_path / "i.json").read_text())["manifest"]["layers"][0]["reason"] == SAID


def test_info_of_a_record_in_the_native_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_record_path: Path
) -> None:
    monkeypatch.setattr("dq_deploy.cli.text.info.native.summary_of_native", lambda *_, **__: {"remark": REMARK})
    monkeypatch.setattr("dq_deploy.cli.text.info.native.show_native", show)
    out = tmp_path / "i.json"
    check(command("info", tiny_record_path, "--native", "--json", out), out)
