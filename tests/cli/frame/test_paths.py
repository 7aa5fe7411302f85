"""No command reads an empty path as the folder it stands in, or writes a format under another's ending."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest

from dq_deploy.cli.frame.paths import check_picture
from dq_deploy.errors import OptionError
from tests.cli.running import command

COMMANDS = ("quantize", "export", "build", "verify", "bench", "sample", "info", "import_record", "tune")


def path_options():
    """Command and flag of each option that takes a path."""
    for name in COMMANDS:
        module = importlib.import_module(f"dq_deploy.cli.{name}")
        function = getattr(module, name)
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            kind = (*get_args(parameter.annotation), None)[0]
            if kind is Path or Path in get_args(kind):
                flags = {"float_model": "--float"}
                flag = flags.get(parameter.name, f"--{parameter.name.replace('_', '-')}")
                yield name, None if name == "info" and parameter.name == "path" else flag


def run_with(name, arguments):
    module = importlib.import_module(f"dq_deploy.cli.{name}")
    with mock.patch.object(sys, "argv", [f"dq-{name}", *arguments]):
        module.main()


def test_every_command_has_path_options():
    assert {name for name, _ in path_options()} == set(COMMANDS)
    assert len(list(path_options())) > 40


@pytest.mark.parametrize(("name", "flag"), path_options())
def test_an_empty_path_is_refused(name, flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = [] if name != "info" or flag is None else ["model.pt"]
    with pytest.raises(SystemExit) as caught:
        run_with(name, [*needed, *((flag,) if flag else ()), ""])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said == f"error: {flag or 'PATH'} is empty, expected a path; give one or leave the option out\n"


@pytest.mark.parametrize(("there", "what"), [(False, "no folder"), (True, "a file")])
def test_a_slash_behind_the_name_of_a_file_is_refused(there, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if there:
        Path("j").write_text("kept")
    done = command("info", "model.pt", "--json", "j/")
    assert (done.code, done.err) == (2, f"error: --json is j/, but j is {what}; leave the slash out\n")
    assert os.listdir() == (["j"] if there else [])


def test_a_slash_behind_the_name_of_a_new_folder_is_none_to_refuse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("export", "--ckpt", "m.pt", "--out", "new/", "--layout", "optimum")
    assert (done.code, "slash" in done.err) == (2, False)


def test_the_folder_one_stands_in_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("quantize", "--model", ".", "--out", "m.pt")
    assert (done.code, "model folder . has neither" in done.err) == (2, True)


@pytest.mark.parametrize(("flag", "name", "ending"), [("--html", "x.JSON", "html"), ("--json", "x.html", "json")])
def test_a_report_is_not_written_under_the_other_format(flag, name, ending, tiny_engine, tiny_record_path, tmp_path):
    done = command("verify", "--engine", tiny_engine, "--ckpt", tiny_record_path, flag, tmp_path / name)
    assert done.code == 2
    assert f"expected a name that ends in .{ending}; change the ending" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_picture_ends_in_png_or_streams(tmp_path):
    os.mkfifo(tmp_path / "pipe.out")
    for name in ("a.png", "a.PNG", "a", "pipe.out"):
        check_picture(tmp_path / name, "--png")
    with pytest.raises(OptionError, match=r"--png is .*c\.jpg, expected a name that ends in \.png"):
        check_picture(tmp_path / "c.jpg", "--png")
