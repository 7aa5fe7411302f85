"""What the README tells a user to type works."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys

import pytest
import typer


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run_an_engine_without_this_package(readme, demo_engine, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = [line for line in block.splitlines() if line.strip()]
    assert len(code) <= 12
    assert "dq_deploy" not in block.replace("dq_deploy.manifest", "")
    (tmp_path / "unet.onnx").symlink_to(demo_engine)
    block += "\nimport sys; assert not {'dq_deploy', 'torch', 'onnx'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(2, 1, 32, 32)" in done.stdout


def commands_in(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines() if re.match(r"    dq-\w+ ", line)]
    return [shlex.split(re.sub(r"\[(--\S+) (\S+?)\|\S+\]", r"\1 \2", line)) for line in lines]


def test_every_command_and_option_in_the_readme_exists(readme):
    found = commands_in(readme)
    assert {words[0] for words in found} == {
        f"dq-{n}" for n in ("quantize", "import", "export", "build", "verify", "bench", "sample", "info")
    }
    for program, *words in found:
        name = {"import": "import_record"}.get(program.removeprefix("dq-"), program.removeprefix("dq-"))
        app = typer.Typer()
        app.command()(getattr(importlib.import_module(f"dq_deploy.cli.{name}"), name))
        known = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, program


def test_every_file_the_readme_links_to_exists(readme, repository):
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        if not target.startswith("http"):
            assert (repository / target).exists(), target
