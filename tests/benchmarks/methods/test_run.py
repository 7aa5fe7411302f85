"""The methods table: its cells, what is measured once, what was expected and whether it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.methods import run as methods
from benchmarks.methods.cells import (
    METHODS,
    PEERS,
    Line,
    Spec,
    Terms,
    all_specs,
    append_line,
    chosen_specs,
    latest,
    read_lines,
)
from benchmarks.methods.claims import (
    NOT_REPRODUCED,
    NOT_RUN,
    ONE_SEED,
    REPRODUCED,
    all_claims,
    claims_of,
    near_float,
    over,
)
from benchmarks.methods.table import ablations, claims, section, table
from dq_deploy.comparison import Cell
from dq_deploy.comparison.latency import StepTime
from dq_deploy.methods import PARTS

TERMS = Terms(count=40)
FACTS = {"commit": "abc1234", "others_busy": 0.0, "environment": {"cpu": "CPU", "threads": 2, "date": "2026-01-02T03"}}


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "confidence": 0.95, "count": 40}


def line(spec: Spec, mean_db: float, spread: float = 0.1, shift: float = 0.0, **changes: Any) -> Line:
    """A measured cell whose images have about this PSNR; `shift` is how far it is from float in share and distance."""
    psnr = mean_db + spread * np.random.default_rng(len(spec.method)).standard_normal(40)
    quality = {
        "psnr_db": interval(mean_db, spread),
        "ssim": None,
        "feature_distance": interval(0.1, 0.01),
        "frechet_name": "FD",
        "kernel_name": "KD",
        "frechet": interval(30, 3),
        "frechet_of_reference": interval(29, 3),
        "frechet_difference": interval(shift, 1),
        "real_against_real": {"mean": 20.0, "sd": 1.0},
        "kernel": {"interval": interval(0.1, 0.02)},
        "recognised": interval(0.9, 0.02),
        "recognised_of_reference": interval(0.91, 0.02),
        "recognised_difference": interval(-shift / 100, 0.01),
    }
    values: dict[str, Any] = {
        "name": spec.name,
        "method": spec.method,
        "weight_bits": int(spec.bits[1]),
        "activation_bits": int(spec.bits[3]),
        "without": (spec.without,) if spec.without else (),
        "quality": quality,
        "psnr_db": tuple(psnr),
        "calibration_s": 10.0,
    }
    return Line(spec, TERMS, Cell(**{**values, **changes}), FACTS)


def lines(*found: Line) -> dict[str, Line]:
    return latest(found, TERMS)


def digits(method: str, bits: str) -> Spec:
    return Spec("digits", method, bits)


def test_every_cell_is_there_once_and_the_required_come_first() -> None:
    specs = all_specs()
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names)
    assert [spec.group for spec in specs[:36]] == ["required"] * 36
    assert len([s for s in specs if not s.without and not s.is_peer]) == 3 * 5 * 6
    assert len(chosen_specs("ablations", [])) == sum(len(parts) for parts in PARTS.values())
    assert [spec.method for spec in chosen_specs("peers", [])] == list(PEERS)
    assert [s.name for s in chosen_specs("all", ["digits/dmq-w4a8"])] == ["digits/dmq-w4a8"]
    with pytest.raises(ValueError, match="no cell is named"):
        chosen_specs("required", ["digits/gptqq-*"])


def test_a_line_comes_back_as_it_was_and_the_last_good_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first, spec = line(digits("dmq", "W4A4"), 20), digits("dmq", "W4A4")
    failed = replace(first, cell=replace(first.cell, error="broke", psnr_db=()))
    for entry in (first, failed, replace(first, terms=Terms(count=41), facts={**FACTS, "commit": "other"})):
        append_line(path, entry)
    read = read_lines(path)
    assert read[0] == first
    assert latest(read[:1], TERMS)[spec.name] == first
    assert latest(read, TERMS)[spec.name].cell.error == "broke"


def test_a_line_that_does_not_tell_its_labels_is_not_taken(tmp_path: Path) -> None:
    value = json.loads(line(digits("dmq", "W4A4"), 20).to_json())
    del value["terms"]["labels"]
    (tmp_path / "r.jsonl").write_text(json.dumps(value) + "\n")
    assert latest(read_lines(tmp_path / "r.jsonl"), TERMS) == {}


def test_the_models_are_drawn_without_the_label_for_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model_dir: Path
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(methods, "MODELS", {"digits": methods.Model(demo_model_dir, 10, lambda: None)})
    monkeypatch.setattr(methods, "prepare_subject", lambda *_, **given: asked.update(given))
    monkeypatch.setattr("dq_deploy.load_model", lambda folder: None)
    methods.Run(TERMS, tmp_path, 1).subject("digits")
    assert list(asked["classes"]) == list(range(10))


class Stub:
    """A run whose cells are made at once; some fail, some cannot be run."""

    def __init__(self, **instead: str) -> None:
        self.terms, self.threads, self.instead, self.seen = TERMS, 1, instead, []

    def facts_of_float(self, spec: Spec) -> dict[str, Any]:
        return {}

    def cell(self, spec: Spec) -> Cell:
        self.seen.append(spec.method)
        what = self.instead.get(spec.method)
        if what == "missing":
            raise methods.Missing("no model")
        return line(spec, 20, error=what).cell


def test_what_is_there_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods, "facts", lambda threads, busy: FACTS)
    monkeypatch.setattr(methods.quiet, "others_busy", lambda: 0.0)
    path, specs = tmp_path / "r.jsonl", [digits(method, "W4A4") for method in ("minmax", "dmq", "quest")]
    assert methods.run_specs(Stub(dmq="broke", quest="missing"), specs, path, again=False) == 1
    assert "digits/quest-w4a4: not run, no model" in capsys.readouterr().out
    assert [entry.cell.error for entry in read_lines(path)] == [None, "broke"]
    second = Stub()
    methods.run_specs(second, specs, path, again=False)
    assert second.seen == ["dmq", "quest"]
    third = Stub()
    methods.run_specs(third, specs, path, again=True)
    assert third.seen == ["minmax", "dmq", "quest"]


def test_a_claim_needs_an_interval_without_zero() -> None:
    found = lines(
        line(digits("dmq", "W4A6"), 22), line(digits("minmax", "W4A6"), 20), line(digits("eda-dm", "W4A6"), 22.0)
    )
    assert over(found, {}, "digits", "W4A6", "dmq", "minmax").verdict == ONE_SEED
    even = over(found, {}, "digits", "W4A6", "dmq", "eda-dm")
    assert (even.verdict, "no difference" in even.numbers) == (NOT_REPRODUCED, True)
    assert "the other way" in over(found, {}, "digits", "W4A6", "minmax", "dmq").numbers
    assert over(found, {}, "digits", "W4A6", "dmq", "quest").verdict == NOT_RUN
    claim = claims_of(found, "digits", {})[2]
    assert (claim.text, claim.verdict) == ("digits, W4A6: dmq best of the post-training methods", NOT_REPRODUCED)


def test_a_failed_cell_shows_nothing() -> None:
    failed = line(digits("dmq", "W4A6"), 22, error="broke")
    found = lines(failed, line(digits("minmax", "W4A6"), 20))
    assert over(found, {}, "digits", "W4A6", "dmq", "minmax").verdict == NOT_RUN


def test_near_float_means_that_no_interval_leaves_zero_out() -> None:
    near, far = line(digits("dmq", "W8A8"), 45, shift=0.5), line(digits("quest", "W8A8"), 45, shift=3)
    found = lines(near, far)
    assert near_float(found, "digits", "dmq", "W8A8").verdict == REPRODUCED
    finding = near_float(found, "digits", "quest", "W8A8")
    assert finding.verdict == NOT_REPRODUCED
    assert finding.numbers == "PSNR 45.0 dB, -3.00 [-4.00, -2.00] points recognised, +3.00 [+2.00, +4.00] FD"


def test_all_claims_are_reproduced_by_cells_of_several_seeds_that_are_as_expected() -> None:
    order = {method: i for i, method in enumerate(("minmax", "gptq", "eda-dm", "dmq", "quest", "dilatequant"))}
    found = {
        spec.name: line(spec, 20 + order[spec.method])
        for spec in all_specs()
        if not spec.without and spec.method in METHODS
    }
    seeds = {name: {0: own, 1: own} for name, own in found.items()}
    assert {claim.verdict for claim in all_claims(found, seeds)} == {REPRODUCED}
    assert len(all_claims(found, seeds)) == 12
    assert {claim.verdict for claim in all_claims({}, {})} == {NOT_RUN}


def test_one_training_seed_tells_records_apart_and_not_methods() -> None:
    better, worse = line(digits("dmq", "W4A6"), 22), line(digits("minmax", "W4A6"), 20)
    found = lines(better, worse)
    assert over(found, {}, "digits", "W4A6", "dmq", "minmax").verdict == ONE_SEED
    other = line(digits("dmq", "W4A6"), 18)
    seeds = {better.spec.name: {0: better, 1: other}, worse.spec.name: {0: worse, 1: worse}}
    both = over(found, seeds, "digits", "W4A6", "dmq", "minmax")
    assert (both.verdict, "no difference" in both.numbers) == (NOT_REPRODUCED, True)


def test_the_table_says_not_run_and_shows_differences_of_ablations() -> None:
    whole = line(digits("dilatequant", "W4A4"), 22)
    part = line(Spec("digits", "dilatequant", "W4A4", "distillation"), 20, calibration_s=1.0)
    found = lines(whole, part, line(digits("minmax", "W8A8"), 40))
    text = table(found, TERMS)
    assert "| dmq | W8A8 | not run |" in text
    assert "minmax, gptq, eda-dm, dmq, quest, dilatequant: not run." in text
    assert "onnxruntime-qdq, modelopt-smoothquant, torchao-dynamic, openvino-nncf: not run." in text
    assert "Measured on: CPU, 2 threads, 2026-01-02." in text
    row = next(entry for entry in ablations(found).splitlines() if "without distillation" in entry)
    assert "| -2.0" in row
    assert "abc1234" in row
    assert "- **digits, W4A8: every method above minmax: not run.**" in claims(found, {})
    assert section("x", [{"method": "a", "bits": "W4A4", "error": "broke"}]).endswith("| a | W4A4 | failed: broke |\n")


def test_peers_get_the_methods_samples_and_are_measured_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(name: str, work: Path, model: Path, calibration: Path, noise: Path, **more: Any) -> dict[str, Any]:
        asked.append((name, more["steps"]))
        np.savez(tmp_path / "images.npz", images=np.zeros((2, 1, 8, 8), np.float32))
        found = {"calibration_s": 1.0, "peak_mib": 2.0, "size_mib": 3.0, "latency_ms": 4.0, "float_latency_ms": 8.0}
        return {
            **found,
            "layers": 62,
            "versions": {"x": "1"},
            "note": "a note",
            "images_npz": str(tmp_path / "images.npz"),
        }

    monkeypatch.setattr(methods.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    monkeypatch.setattr(methods, "with_quality", lambda subject, cell, images: replace(cell, psnr_db=(1.0, 2.0)))
    monkeypatch.setattr(methods.Run, "_peer_files", lambda *_: (tmp_path, tmp_path))
    monkeypatch.setattr(methods.Run, "subject", lambda *_: SimpleNamespace(model=tmp_path))
    own = methods.Run(TERMS, tmp_path, 1)
    cell = own.cell(Spec("digits", "onnxruntime-qdq", "W8A8"))
    assert asked == [("onnxruntime-qdq", 20)]
    assert (cell.record_mib, cell.latency, cell.notes, cell.bits) == (
        3.0,
        StepTime(ms=4.0, float_ms=8.0, ratio=2.0, engine="onnxruntime-qdq"),
        ("a note",),
        "W8A8",
    )
    options = own.options(Spec("digits", "dmq", "W4A6", "split-skips"))
    assert (options.weight_bits, options.activation_bits, options.split_skips) == (4, 6, False)
    monkeypatch.setattr(methods.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no")))
    with pytest.raises(methods.Missing):
        own.cell(Spec("digits", "onnxruntime-qdq", "W8A8"))
