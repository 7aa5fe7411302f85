"""`dq-verify`: each option, each exit code, what it writes and what it says of a mistake."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dq_deploy import export, load_record, save_record
from dq_deploy.cli import verify as command_module
from dq_deploy.errors import FileProblemError, NonFiniteError
from dq_deploy.verify.report.values import (
    Fault,
    FloatLayer,
    LayerReport,
    MacCounts,
    Report,
    StepCell,
    failures_of,
    failures_of_file,
)
from tests.cli.running import Done, command
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

CELL = StepCell(
    bucket=0, timestep=1.0, samples=2, codes_compared=64, code_differences=0, max_code_difference=0,
    accumulators_compared=128, accumulator_differences=0, max_accumulator_difference=0.0, max_output_difference=0.0,
    output_codes_compared=0, output_code_differences=0, max_output_code_difference=0,
)  # fmt: skip
LAYER = LayerReport(
    name="down_blocks.0.<b>conv", kind="conv2d", weight_bits=4, activation_bits=8, form="", requested=("ConvInteger",),
    executed=("ConvInteger",), operands=(("uint8", "int8"),), integer=True, macs=80, status="exact", reason="",
    codes_compared=64, accumulators_compared=128, max_code_difference=0, max_accumulator_difference=0.0,
    accumulator_resolution=1.0, largest_accumulator=77.0, codes_probed=8, accumulators_probed=8, first_difference=None,
    steps=(CELL,),
)  # fmt: skip
EXACT = Report(
    engine="unet.onnx", target="onnxruntime", mode="exact", record_sha256="0" * 64, runtime="onnxruntime 1",
    processor="a CPU", integer_mac_share=0.8, integer_mac_share_of_quantizable=0.9,
    macs=MacCounts(of_all=100, of_quantizable=90, attention=10, integer=80), max_code_difference=0,
    max_accumulator_difference=0.0, layers_compared=1, layers_total=1, codes_compared=64, accumulators_compared=128,
    codes_probed=8, accumulators_probed=8, output_psnr_db=200.0, output_training_psnr_db=150.0, output_margin_db=None,
    output_steps=(), steps_total=2, steps_checked=(0, 1), inputs_compared=4, float_path_difference=1e-7,
    edges_checked=1, batch_equals_single=True, layers=(LAYER,),
    float_layers=(FloatLayer(name="time_embedding", macs=10, reason="kept in float when the model was quantized"),),
    found=(), notes=("a note",), seed=0, seconds=1.0, float_path_share=0.25, float_path_inputs=9, file_compared=True,
)  # fmt: skip
WRONG = replace(EXACT, found=failures_of(Fault.RUN, ["layer conv_in: code is 3, expected 4", "another"]))
DAMAGED = replace(
    EXACT, found=failures_of_file(["constant b is 1, expected 2"]), file_differences=("constant b is 1, expected 2",)
)
BOTH = replace(DAMAGED, found=(*WRONG.found, *DAMAGED.found))

TOP_LEVEL = [
    "exact", "engine", "target", "mode", "record_sha256", "runtime", "processor", "integer_mac_share",
    "integer_mac_share_of_quantizable", "macs", "max_code_difference", "max_accumulator_difference", "layers_compared",
    "layers_total", "codes_compared", "accumulators_compared", "codes_probed", "accumulators_probed", "output_psnr_db",
    "output_training_psnr_db", "output_margin_db", "output_steps", "steps_total", "steps_checked", "inputs_compared",
    "float_path_difference", "edges_checked", "batch_equals_single", "layers", "float_layers", "failures", "notes",
    "seed", "seconds", "quantization", "mixed_bits", "float_path_share", "float_path_inputs", "sizes",
    "file_compared", "file_differences", "file_unknown", "attention",
]  # fmt: skip


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "model.pt"
    save_record(random_record(tiny_denoiser(**ONE_LEVEL)), path)
    return path


class Proofs:
    """Stands for the proof: remembers what it is asked for, and returns or raises what it is told to."""

    def __init__(self) -> None:
        self.result: Report | BaseException = EXACT
        self.asked: dict[str, Any] = {}

    def __call__(self, record: Any, path: Path, options: Any, **more: Any) -> Report:
        self.asked = {"record": record, "path": path, "options": options, **more}
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def proofs(monkeypatch) -> Proofs:
    stand_in = Proofs()
    monkeypatch.setattr("dq_deploy.verify.proof.prove_engine", stand_in)
    return stand_in


def verified(ckpt: Path, *more: Any) -> Done:
    return command("verify", "--engine", ckpt.with_name("unet.onnx"), "--ckpt", ckpt, *more)


PASSED_ON = {
    "steps_checked": (("--steps-checked", 3), "steps", 3),
    "inputs": (("--inputs", 4), "inputs", 4),
    "seed": (("--seed", 5), "seed", 5),
    "runtime": (("--runtime", "openvino"), "engine", "openvino"),
    "threads": (("--threads", 2), "threads", 2),
    "device": (("--device", "cpu"), "device", "cpu"),
    "isa": (("--isa", "all"), "isa", "all"),
    "attention": (("--attention", "bf16"), "attention", "bf16"),
    "exact": (("--exact",), "run_plan", True),
    "size": (("--size", "height=4", "--size", "tokens=9"), "sizes", {"height": 4, "tokens": 9}),
}
"""Parameter of the command -> arguments, and the field of `ProofOptions` that they set."""

ELSEWHERE = {"engine", "ckpt", "require_integer", "json", "html", "model", "quantization_error", "hash_check"}
"""Parameters with a test of their own below."""


def test_every_option_has_a_test():
    assert set(inspect.signature(command_module.verify).parameters) == set(PASSED_ON) | ELSEWHERE


@pytest.mark.parametrize("name", PASSED_ON)
def test_an_option_reaches_the_proof(proofs, ckpt, name):
    arguments, field, value = PASSED_ON[name]
    assert verified(ckpt, *arguments).code == 0
    assert getattr(proofs.asked["options"], field) == value
    verified(ckpt)
    assert getattr(proofs.asked["options"], field) != value


@pytest.mark.parametrize("wrong", ["height", "height=0", "height=x", "=3", "8"])
def test_a_size_is_a_name_and_a_number(proofs, ckpt, wrong):
    done = verified(ckpt, "--size", wrong)
    assert done.code == 2
    assert "expected NAME=N" in done.err


def test_engine_and_record_reach_the_proof(proofs, ckpt):
    assert verified(ckpt).code == 0
    assert proofs.asked["path"] == ckpt.with_name("unet.onnx")
    assert "conv_in" in proofs.asked["record"].layers
    assert command("verify", "--engine", ckpt).code == 0  # a record is its own checkpoint
    assert proofs.asked["path"] == ckpt


@pytest.mark.parametrize("option", ["--model", "--float-model"])
def test_the_float_model_is_loaded(proofs, ckpt, monkeypatch, option, tmp_path):
    monkeypatch.setattr("dq_deploy.models.float_model_of", lambda record, folder, *, sizes: f"loaded {folder}")
    assert verified(ckpt, option, tmp_path).code == 0
    assert proofs.asked["options"].model == f"loaded {tmp_path}"


def test_the_quantization_error_is_measured_unless_it_is_left_out(proofs, ckpt):
    for arguments, measured in (((), True), (("--quantization-error",), True), (("--no-quantization-error",), False)):
        verified(ckpt, *arguments)
        assert proofs.asked["quantization_error"] is measured


def test_the_hash_check_can_be_left_out(proofs, ckpt, monkeypatch):
    from dq_deploy import record

    seen, load = [], record.load_record
    monkeypatch.setattr(record, "load_record", lambda path, *, hash_check: seen.append(hash_check) or load(path))
    verified(ckpt)
    verified(ckpt, "--no-hash-check")
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("report", "arguments", "code", "words"),
    [
        (EXACT, ("--exact",), 0, ()),
        (EXACT, ("--exact", "--require-integer", 0.8), 0, ()),
        (WRONG, (), 0, ()),
        (WRONG, ("--exact",), 3, ("engine is not exact: layer conv_in: code is 3, expected 4 (and 1 more)",)),
        (DAMAGED, (), 3, ("engine is not what its record makes: constant b is 1, expected 2",)),
        (BOTH, (), 3, ("engine is not what its record makes: constant b",)),
        (BOTH, ("--exact",), 3, ("engine is not what its record makes: constant b", "; engine is not exact: layer")),
        (
            EXACT,
            ("--require-integer", 0.95),
            3,
            ("integer share is 0.8000 of all MACs, required 0.95", "time_embedding (10.0%)", "attention products"),
        ),
    ],
)
def test_a_demand_that_does_not_hold_exits_3_and_nothing_else_does(proofs, ckpt, report, arguments, code, words):
    proofs.result = report
    done = verified(ckpt, *arguments)
    assert done.code == code
    assert all(word in done.err for word in words)
    assert len(done.err.splitlines()) == (code == 3)


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (FileProblemError("the engine cannot be read"), 2, "the engine cannot be read"),
        (NonFiniteError("engine output sample holds nan"), 3, "holds nan"),
        (AttributeError("a fault of this program"), 1, "internal error"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_is_raised_is_one_line_and_an_exit_code(proofs, ckpt, tmp_path, raised, code, words):
    proofs.result = raised
    done = verified(ckpt, "--json", tmp_path / "v.json", "--html", tmp_path / "v.html")
    assert done.code == code
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_json_is_the_report(proofs, ckpt, tmp_path):
    proofs.result = BOTH
    assert verified(ckpt, "--exact", "--json", tmp_path / "v.json").code == 3  # it is written all the same
    values = json.loads((tmp_path / "v.json").read_text())
    assert list(values) == TOP_LEVEL
    assert values["exact"] is False
    assert values["failures"] == list(BOTH.failures)
    assert values["macs"] == {"of_all": 100, "of_quantizable": 90, "attention": 10, "integer": 80}
    assert values["float_layers"][0] == {
        "name": "time_embedding", "macs": 10, "reason": "kept in float when the model was quantized",
    }  # fmt: skip
    assert values["layers"][0]["steps"][0]["codes_compared"] == 64


def test_the_page_needs_nothing_else_and_escapes_names(proofs, ckpt, tmp_path):
    proofs.result = BOTH
    verified(ckpt, "--html", tmp_path / "v.html")
    page = (tmp_path / "v.html").read_text()
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "down_blocks.0.&lt;b&gt;conv" in page
    assert "<b>conv" not in page
    assert "not what its record makes: constant b is 1, expected 2" in page
    for section in ("Findings", "Every layer at every step", "Kernels that run", "In words", "Layers"):
        assert f"<h2>{section}</h2>" in page


def test_a_page_that_cannot_be_written_is_one_line_before_the_proof(proofs, ckpt, tmp_path, monkeypatch):
    monkeypatch.setattr("dq_deploy.verify.report.page.find_spec", lambda name: None)
    done = verified(ckpt, "--html", tmp_path / "v.html")
    assert done.code == 2
    assert done.err == "error: an HTML page needs Jinja2, which is not installed; pip install jinja2\n"
    assert proofs.asked == {}
    assert verified(ckpt).code == 0


def test_the_terminal_shows_each_layer_the_summary_and_what_is_wrong(proofs, ckpt):
    proofs.result = replace(WRONG, found=failures_of(Fault.RUN, [f"finding {i}" for i in range(12)]))
    done = verified(ckpt)
    for text in ("unet.onnx: every layer", "exact", "80.0", "not exact: 12 findings", "finding 9", "2 more, see"):
        assert text in done.out
    assert "finding 10" not in done.out
    assert "note: a note" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing option '--engine'"),
        (("--engine", "unet.onnx"), "give it as --ckpt model.pt"),
        (("--engine", "gone.pt"), "gone.pt"),
        (("--engine", "unet.onnx", "--ckpt", "gone.pt"), "gone.pt"),
        (("--engine", "unet.onnx", "--nothing"), "No such option"),
        (("--engine", "unet.onnx", "--inputs", "many"), "Invalid value for '--inputs'"),
        (("--engine", "unet.onnx", "--inputs", 0), "--inputs got 0, expected at least 1"),
        (("--engine", "unet.onnx", "--steps-checked", 0), "--steps-checked got 0, expected at least 1"),
        (("--engine", "unet.onnx", "--seed", -1), "--seed got -1, expected at least 0"),
        (("--engine", "unet.onnx", "--threads", 0), "--threads is 0, expected a whole number from 1 to 1024"),
        (("--engine", "unet.onnx", "--require-integer", 95), "expected a share from 0 to 1, such as 0.95"),
        (("--engine", "unet.onnx", "--json", "no/such/folder/v.json"), "does not exist"),
        (("--engine", "unet.onnx", "--json", "v.out", "--html", "v.out"), "v.out"),
        (("--engine", "model.pt", "--html", "model.pt"), "model.pt"),
        (("--engine", "x.plan", "--model", "."), "--model does not go with a plan"),
        (("--engine", "x.plan", "--runtime", "openvino", "--isa", "avx2"), "--runtime, --isa does not go with a plan"),
        (("--engine", "x.plan", "--threads", 1), "--threads does not go with a plan"),
        (("--engine", "x.plan", "--device", "cpu"), "--device does not go with a plan"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"no record")
    done = command("verify", *arguments)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_an_engine_that_does_not_exist_is_one_line(ckpt):
    done = verified(ckpt)
    assert done.code == 2
    assert "unet.onnx" in done.err


QUICK = ("--steps-checked", 1, "--inputs", 1, "--threads", 1, "--no-quantization-error")


@pytest.fixture(scope="module")
def small_engine(ckpt) -> Path:
    path = ckpt.with_name("small.onnx")
    export(load_record(ckpt), path)
    return path


def test_an_exact_engine_exits_0_and_its_report_says_so(ckpt, small_engine, tmp_path):
    written = tmp_path / "report.json"
    done = command("verify", "--ckpt", ckpt, "--engine", small_engine, "--exact", "--json", written, *QUICK)
    assert done.code == 0, done.err
    assert json.loads(written.read_text())["exact"] is True


def test_a_record_is_an_engine_too(ckpt):
    done = command("verify", "--engine", ckpt, "--exact", *QUICK)
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def other_record(ckpt, tmp_path_factory):
    """The record with one weight code changed: not the one the engine was made from."""
    record = load_record(ckpt)
    layer = record.layers["conv_out"]
    code = layer.parts[0].w_code.copy()
    code.flat[0] = 1 if code.flat[0] != 1 else 2
    changed = replace(layer, parts=(replace(layer.parts[0], w_code=code),))
    path = tmp_path_factory.mktemp("other") / "model.pt"
    save_record(replace(record, layers={**record.layers, "conv_out": changed}), path)
    return path


def test_a_record_that_the_engine_was_not_made_from_is_one_line(other_record, small_engine):
    done = command("verify", "--ckpt", other_record, "--engine", small_engine, "--exact", *QUICK)
    assert done.code == 2
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1


def test_a_share_that_is_not_reached_exits_3(ckpt, small_engine):
    done = command("verify", "--ckpt", ckpt, "--engine", small_engine, "--require-integer", 1.0, *QUICK)
    assert done.code == 3
    assert "integer" in done.err.splitlines()[-1]


def test_what_an_onnx_file_has_no_use_for_is_named_before_any_work(ckpt, small_engine, monkeypatch):
    monkeypatch.setattr("dq_deploy.verify.onnx.prover.compare_file", lambda *_: pytest.fail("the file was compared"))
    done = command("verify", "--ckpt", ckpt, "--engine", small_engine, "--isa", "avx2")
    assert done.code == 2
    assert "only the native engine has a choice" in done.err
    assert "isa is 'avx2' for" in done.err
    assert "device" not in done.err
    done = command("verify", "--ckpt", ckpt, "--engine", small_engine, "--attention", "bf16")
    assert done.code == 2
    assert "attention is 'bf16' for" in done.err
    done = command("verify", "--ckpt", ckpt, "--engine", small_engine, "--runtime", "tensorrt")
    assert done.code == 2
    assert "is an ONNX file for onnxruntime; expected the runtime onnxruntime or openvino" in done.err
    done = command("verify", "--ckpt", ckpt, "--engine", small_engine, "--runtime", "")
    assert done.code == 2
    assert "engine is '', expected one of" in done.err
    done = command("verify", "--ckpt", ckpt, "--engine", small_engine.parent)
    assert done.code == 2
    assert "is a folder, expected an ONNX file, a plan or a record" in done.err
