"""Whatever the standard streams, the locale and the terminal are, the exit code is right and there is no traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dq_deploy import save_record
from tests.tiny import ONE_LEVEL, random_record, tiny_denoiser

INFO = "import sys; sys.argv[0] = 'dq-info'; from dq_deploy.cli.info import main; main()"
PRINTS = """
import sys
from dq_deploy.cli.frame import run, warn
def demo(fails: bool = False) -> None:
    warn("a warning")
    print("\\u2502 \\udcff", "x" * 20000)
    if fails:
        from dq_deploy.errors import OptionError
        raise OptionError("got a, expected b")
run(demo)
"""


@pytest.fixture(scope="module")
def record_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("streams") / "[bold]m[" / os.fsdecode(b"x]\xff :smile:.pt")  # [/x] ends no markup
    path.parent.mkdir()
    save_record(random_record(tiny_denoiser(**ONE_LEVEL)), path)
    return path


def shell(code, arguments, redirections="", **environment):
    line = f'"$0" -c "$1" {arguments} {redirections}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, code],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("redirections", "code"),
    [
        (">&-", 0),
        (">&- 2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("2>&-", 0),
        ("2>/dev/full", 0),
        (">/dev/full", 2),
        (">/dev/full 2>/dev/full", 2),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_closed_and_full_streams(redirections, code, fails):
    done = shell(PRINTS, "--fails" if fails else "", redirections)
    assert done.returncode == (2 if fails else code), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if code and not fails and "2>" not in redirections:
        assert done.stderr.splitlines()[-1].startswith("error: cannot write to standard output: No space left")


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize(("redirections", "code"), [("", 0), (">&-", 0), ("2>&-", 0), (">/dev/full", 2)])
def test_help_and_version_have_exit_codes_too(option, redirections, code):
    done = shell(PRINTS, option, redirections)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_reader_of_the_errors_that_goes_away_does_not_stop_the_work():
    done = shell(PRINTS, "", "2> >(exit)")
    assert done.returncode == 0
    assert len(done.stdout) > 20000


@pytest.mark.parametrize(
    "environment",
    [
        *({"COLUMNS": value, "LINES": value} for value in ("0", "-1", "abc", "1", "100000", "9" * 30)),
        {"TERM": "dumb", "NO_COLOR": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
)
def test_odd_terminals_and_locales(environment):
    done = shell(PRINTS, "", **environment)
    assert (done.returncode, done.stderr) == (0, "warning: a warning\n")
    assert shell(PRINTS, "--help", **environment).returncode == 0


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_names_are_shown_as_they_are_markup_and_all(record_path, environment):
    code = INFO.replace(
        "sys.argv[0] = 'dq-info'",
        f"sys.argv = ['dq-info', {os.fsencode(record_path)!r}.decode('utf-8', 'surrogateescape')]",
    )
    done = shell(code, "", COLUMNS="400", **environment)
    assert done.returncode == 0, done.stderr
    assert "[bold]m[/x]" in done.stdout
    assert ":smile:.pt" in done.stdout
