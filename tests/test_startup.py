"""Starting up is cheap: the package loads neither torch nor an engine, and `--help` answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib

import pytest

import dq_deploy

COMMANDS = ("quantize", "export", "build", "verify", "bench", "sample", "serve", "info", "tune", "import")
MODULES = {name: name for name in COMMANDS} | {"import": "import_record"}  # `import` is no name in Python
GENEROUS_IMPORT_S = 1.5  # the goal is 0.3 s on a quiet machine; docs/measured.md has the numbers
GENEROUS_HELP_S = 5.0  # the goal is 1 s

LOADED = """
import json, sys
{code}
heavy = ("torch", "diffusers", "onnxruntime", "openvino", "matplotlib", "onnx", "numpy")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def loaded_after(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", LOADED.format(code=code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_package_loads_nothing_heavy():
    assert loaded_after("import dq_deploy") == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_module_loads_nothing_heavy(name):
    assert set(loaded_after(f"import dq_deploy.cli.{MODULES[name]}")) <= {"numpy"}


def test_a_server_says_that_its_port_is_taken_before_it_loads_anything_heavy():
    code = """
import socket
from dq_deploy.cli.serve import main
taken = socket.create_server(("127.0.0.1", 0))
sys.argv = ["dq-serve", "--engine", "missing.pt", "--port", str(taken.getsockname()[1])]
try:
    main()
except SystemExit as stopped:
    assert stopped.code == 2
"""
    assert set(loaded_after(code)) <= {"numpy"}


def test_importing_is_quick():
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import dq_deploy"], check=True)
    assert time.perf_counter() - started < GENEROUS_IMPORT_S


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick_and_says_what_the_command_does(name):
    code = f"import sys; sys.argv = ['dq-{name}', '--help']; from dq_deploy.cli.{MODULES[name]} import main; main()"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < GENEROUS_HELP_S
    assert f"dq-{name}" in done.stdout
    assert "--debug" in done.stdout


def test_every_command_runs_as_a_module_too(repository):
    """`python -m dq_deploy.cli.quantize` without a main would do nothing and say that all is well."""
    files = [repository / "dq_deploy" / "cli" / f"{MODULES[name]}.py" for name in COMMANDS]
    assert [
        path.name for path in files if not path.read_text().endswith('if __name__ == "__main__":\n    main()\n')
    ] == []


def test_every_command_is_a_console_script(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {f"dq-{name}": f"dq_deploy.cli.{MODULES[name]}:main" for name in COMMANDS}


@pytest.mark.parametrize("name", sorted(set(dq_deploy.__all__) - {"__version__"}))
def test_every_public_name_is_a_documented_callable(name):
    value = getattr(dq_deploy, name)
    assert callable(value)
    assert value.__doc__
    assert name in dir(dq_deploy)


def test_the_public_functions_stay_callable_whatever_was_imported_before():
    code = "import dq_deploy.verify.onnx.layers, dq_deploy.bench.harness, dq_deploy\n"
    code += "assert all(callable(getattr(dq_deploy, name)) for name in dq_deploy.__all__ if name[0] != '_')"
    loaded_after(code)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dq_deploy.nothing
