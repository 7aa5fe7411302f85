"""The image fits the package and its manifests; its steps are run in a clean folder by `make test-container`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from dq_deploy.cli.text.serve_arguments import ServeArguments
from dq_deploy.cli.text.serve_manifest import flag, usual
from dq_deploy.serve.kubernetes.replica import CLOSES_SECONDS
from dq_deploy.version import __version__
from tests.serve.live import send
from tests.serve.triton.real_server import free_ports

ROOT = Path(__file__).resolve().parents[2]
CONTAINER = ROOT / "examples" / "container"
PYTHON = "DQ_CONTAINER_PYTHON"
TOKEN = "a-token-of-one-client"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((CONTAINER / "compose.yaml").read_text())["services"]["dq-serve"]


def arguments_of(compose, **values):
    """The command line of dq-serve, with values in the place of its variables."""

    def value(match):
        return str(values.get(match[1], match[3]))

    return [re.sub(r"\$\{(\w+)(:-([^}]*))?\}", value, one) for one in compose["command"]]


def test_the_compose_file_gives_dq_serve_options_that_it_has_and_time_to_end(compose):
    command, *options = arguments_of(compose)
    given = dict(one.split("=", 1) for one in options)
    assert command == "dq-serve"
    assert set(given) <= {flag(name) for name in ServeArguments.__dataclass_fields__}
    assert float(given["--drain"]) == usual("drain")
    assert int(compose["stop_grace_period"].rstrip("s")) >= float(given["--drain"]) + CLOSES_SECONDS
    assert compose["image"] == f"dq-deploy:{__version__}"  # that a manifest names where none is given


def test_the_image_is_of_a_python_that_the_package_supports_and_takes_what_it_needs():
    text = (CONTAINER / "Dockerfile").read_text()
    assert set(re.findall(r"python:(3\.\d+)", text)) == {"3.11"}
    assert f"dq-deploy:{__version__}" in text
    taken = {line[1:] for line in (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert all((ROOT / name).exists() for name in taken)
    assert {"dq_deploy", "kernels", "constraints.txt", "pyproject.toml", "examples/container/install.sh"} <= taken


@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no Python; run make test-container")
def test_in_a_clean_folder_it_installs_and_serves_as_the_compose_file_says(compose, tmp_path, tiny_record_path):
    source, environment, models = tmp_path / "src", tmp_path / "dq", tmp_path / "models"
    for folder in (source, models):
        folder.mkdir()
    ignored = (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines()
    taken = [line[1:] for line in ignored if line.startswith("!")]
    listed = subprocess.run(["git", "ls-files", *taken], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\n"):
        if name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean["PATH"] = f"{Path(os.environ[PYTHON]).parent}:{clean['PATH']}" if "/" in os.environ[PYTHON] else clean["PATH"]
    script = ROOT / "examples" / "container" / "install.sh"
    subprocess.run(["sh", str(script), str(source), str(environment)], cwd=tmp_path, env=clean, check=True)

    (models / "model.pt").write_bytes(tiny_record_path.read_bytes())
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    port, metrics = free_ports(2)
    command, *options = arguments_of(compose, DQ_THREADS=1)
    replaced = {"/models": str(models), "/run/secrets": str(tmp_path), "0.0.0.0": "127.0.0.1"}
    replaced |= {"=8000": f"={port}", "=9400": f"={metrics}"}
    for old, new in replaced.items():
        options = [one.replace(old, new) for one in options]
    process = subprocess.Popen([environment / "bin" / command, *options], cwd=tmp_path, env=clean)
    try:
        wait_until_ready(port, process)
        body = {"prompt": "1", "seed": 7, "steps": 4}
        assert send(port, "POST", "/v1/images/generations", body)[0] == 401
        status, _, answer = send(port, "POST", "/v1/images/generations", body, {"Authorization": f"Bearer {TOKEN}"})
        assert (status, len(answer["data"])) == (200, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(45) == 0
    finally:
        process.kill()
        process.wait()


def wait_until_ready(port, process):
    for _ in range(600):
        assert process.poll() is None
        try:
            if send(port, "GET", "/v2/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("the server was not ready in two minutes")
