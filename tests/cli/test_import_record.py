"""dq-import makes a record that the other commands take, and says in one line why it cannot."""

from __future__ import annotations

import json

import pytest
import yaml

from dq_deploy.record import load_record
from tests.cli.running import command
from tests.readers.foreign_files import DDIM_SMALL, foreign, save_checkpoint, save_float, wrapped


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint of Q-Diffusion, its float model and settings."""
    folder = tmp_path_factory.mktemp("foreign")
    model = foreign(DDIM_SMALL, timesteps=[900, 500, 100], scheduler={"_class_name": "DDIMScheduler"})
    save_checkpoint(folder / "quant.pth", wrapped(model)[0])
    save_float(folder / "float.safetensors", model.state)
    (folder / "settings.yaml").write_text(yaml.safe_dump(model.settings))
    return folder


def imported(files, out, **changes):
    options = {
        "--from": "q-diffusion",
        "--ckpt": files / "quant.pth",
        "--float": files / "float.safetensors",
        "--settings": files / "settings.yaml",
        "--out": out,
        **changes,
    }
    return command("import_record", *(item for pair in options.items() for item in pair))


def test_a_checkpoint_becomes_a_record_and_the_summary_says_what_was_left_out(files, tmp_path):
    done = imported(files, tmp_path / "model.pt", **{"--json": tmp_path / "summary.json"})
    assert done.code == 0, done.err
    record = load_record(tmp_path / "model.pt")
    assert record.provenance["method"] == "imported from q-diffusion"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["layers"] == len(record.layers)
    assert summary["attention_quantizers"] == ["mid.attn_1.act_quantizer_q"]
    assert "left out, 1 quantizers of attention products" in done.out
    exported = command("export", "--ckpt", tmp_path / "model.pt", "--out", tmp_path / "model.onnx")
    assert exported.code == 0, exported.err


def test_a_refusal_is_one_line_and_leaves_no_file(files, tmp_path):
    damaged = tmp_path / "quant.pth"
    damaged.write_bytes((files / "quant.pth").read_bytes()[:5000])
    done = imported(files, tmp_path / "model.pt", **{"--ckpt": damaged})
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "is truncated or damaged" in done.err
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"--from": "brecq"}, "--from got 'brecq', expected one of q-diffusion, dmq, quest, cachequant, eda-dm"),
        ({"--masks": "no"}, "--masks got 'no', expected one of float, vote"),
        ({"--settings": "nothing.yaml"}, "nothing.yaml does not exist"),
        ({"--out": "model.bin"}, "model.bin"),
    ],
)
def test_wrong_options_are_named(files, tmp_path, changes, match):
    done = imported(files, tmp_path / "model.pt", **changes)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert match in done.err
