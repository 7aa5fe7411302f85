"""A folder where a file is expected is one line and exit code 2, in every command."""

from __future__ import annotations

import pytest

from tests.cli.running import command

CALLS = {
    "info": ("info", "{}"),
    "bench": ("bench", "--engine", "{}"),
    "verify": ("verify", "--engine", "{}", "--ckpt", "{}"),
    "sample": ("sample", "--engine", "{}", "--out", "x.png"),
    "build": ("build", "--onnx", "{}", "--out", "x.plan"),
    "export": ("export", "--ckpt", "{}", "--out", "x.onnx"),
}


@pytest.mark.parametrize("folder", [".", "/", ".."])
@pytest.mark.parametrize("name", CALLS)
def test_a_folder_is_said(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*(word.format(folder) for word in CALLS[name]))
    assert done.code == 2, done.err
    assert "internal error" not in done.err
    assert "folder" in done.err or "extension" in done.err
    assert list(tmp_path.iterdir()) == []
