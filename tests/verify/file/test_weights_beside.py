"""An engine whose weights lie in a file of their own is proven like any other, whatever the files are links to."""

from __future__ import annotations

import os

import onnx_ir as ir
import pytest

from dq_deploy import load_record, verify
from dq_deploy.bench.harness import file_mib
from dq_deploy.graph.onnx_file import read_manifest, write_onnx
from dq_deploy.verify.share import attest
from tests.cli.running import command


@pytest.fixture(scope="module")
def beside(toy_engine, tmp_path_factory):
    """A record and its engine, whose data file has a second name as in a cache, and whose own name is a link."""
    ckpt, engine = toy_engine(4, 8)
    folder = tmp_path_factory.mktemp("beside")
    kept = folder / "kept" / "unet.onnx"
    kept.parent.mkdir()
    write_onnx(ir.load(engine), kept, read_manifest(engine), external_above=0)
    os.link(f"{kept}.data", folder / "second-name")
    renamed = kept.rename(kept.with_name("renamed.onnx"))
    link = folder / "link.onnx"
    link.symlink_to(renamed)
    return ckpt, link


def test_it_is_exact(beside):
    ckpt, engine = beside
    report = verify(load_record(ckpt), engine, threads=1)
    assert report.failures == ()
    assert report.max_code_difference == report.max_accumulator_difference == 0


def test_every_command_finds_the_weights_behind_a_link(beside):
    _, engine = beside
    assert attest(engine).integer_mac_share > 0.9
    shown = command("info", engine)
    assert shown.code == 0, shown.err
    size = engine.resolve().stat().st_size + (engine.parent / "second-name").stat().st_size
    assert file_mib(engine.resolve()) == pytest.approx(size / 2**20)
