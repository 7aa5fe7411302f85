"""A wheel built from the tree and installed elsewhere has every command, every package and the data files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

COMMANDS = ("quantize", "export", "build", "verify", "bench", "sample", "info")


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory, made_once) -> Path:
    """Built from a copy, so that the build leaves nothing in the tree; no index is asked.

    Kernels that are not optimized compile in a third of the time and are as good to load.
    """
    pytest.importorskip("setuptools", minversion="77")

    def make(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(build_wheel(repository, tmp_path_factory.mktemp("source"), CXXFLAGS="-O0")[0], folder)

    (found,) = made_once("wheel", make).glob("*.whl")
    return found


def build_wheel(repository: Path, source: Path, **environment: str) -> tuple[Path, str]:
    """The wheel, and what was printed."""
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(repository / name, source / name)
    for name in ("dq_deploy", "kernels"):
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    dist = source / "new-wheel"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v", "-w", dist, source]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = dist.glob("*.whl")
    return found, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh virtual environment with the wheel; its dependencies are this environment's, by a path file."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip())
    target = ["--prefix", folder, "--no-deps", "--no-index", "-q", "--ignore-installed", wheel]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", *target],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run_elsewhere(command, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_from_the_wheel(installed, name):
    done = run_elsewhere([installed / "bin" / f"dq-{name}", "--help"], installed)
    assert done.returncode == 0, done.stderr
    assert f"Usage: dq-{name}" in done.stdout


def test_both_packages_come_from_the_wheel(installed):
    code = "import dq_deploy, dq_kernels; print(dq_deploy.__file__); print(dq_kernels.__file__)"
    done = run_elsewhere([installed / "bin" / "python", "-c", code], installed)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(installed)) for line in done.stdout.splitlines())


def test_the_wheel_runs_an_engine(installed, tiny_engine):
    command = [installed / "bin" / "dq-sample", "--engine", tiny_engine, "--labels", "0", "--steps", "2"]
    done = run_elsewhere([*command, "--out", installed / "samples.png"], installed)
    assert done.returncode == 0, done.stderr
    assert (installed / "samples.png").stat().st_size > 0


def test_the_kernels_come_built_in_the_wheel(installed):
    code = (
        "import numpy as np\n"
        "from dq_kernels import elementwise\n"
        "from dq_kernels.cpu.library import Context, library\n"
        "print(library()._name)\n"
        "print(elementwise.run(Context(1), 'add', np.float32([1, 2]), np.float32([3, 4])))"
    )
    done = run_elsewhere([installed / "bin" / "python", "-c", code], installed)
    assert done.returncode == 0, done.stderr
    path, result = done.stdout.splitlines()
    assert path.startswith(str(installed))
    assert result == "[4. 6.]"


def test_without_a_compiler_the_package_installs_and_says_what_is_missing(repository, tmp_path):
    (tmp_path / "source").mkdir()
    wheel, printed = build_wheel(repository, tmp_path / "source", CXX="/nonexistent")
    assert "warning: the CPU kernels are not built: C++ compiler /nonexistent cannot be started" in printed
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = "import dq_kernels; print(dq_kernels.__file__); from dq_kernels.cpu.library import Context; Context()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(str(tmp_path / "site"))
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "dq_kernels.cpu.library.KernelsMissingError: the CPU kernels are not built: _cpu.so is not in"
    )
    assert "install a C++17 compiler" in last


def test_the_wheel_has_the_data_files_and_nothing_foreign(wheel, repository):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"dq_deploy", "dq_kernels"}
    data = {
        p.relative_to(repository).as_posix() for s in ("yaml", "html") for p in repository.glob(f"dq_deploy/**/*.{s}")
    }
    data |= {
        p.relative_to(repository / "kernels").as_posix()
        for s in ("cpp", "h", "inc")
        for p in repository.glob(f"kernels/**/*.{s}")
    }
    assert data <= set(names)
    assert "dq_kernels/_cpu.so" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
