"""Starts and stops the real Triton Inference Server that nvidia-pytriton brings, over model repositories."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

PYTHON = "DQ_TRITON_PYTHON"
_WHERE = (
    "import importlib.util as u, json, sys, sysconfig as s;"
    "p = u.find_spec('pytriton').submodule_search_locations[0];"
    "print(json.dumps([p, s.get_config_var('LIBDIR'), '%d.%d' % sys.version_info[:2]]))"
)


@dataclass(frozen=True, kw_only=True)
class RealServer:
    """A running server; `http` and `grpc` are addresses, `batches` a file with the sizes of each call's requests."""

    process: subprocess.Popen
    http: str
    grpc: str
    log: Path
    batches: Path


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _backends(package, version, place):
    """Folder of backends: python's own, and one in Python under the name of ONNX Runtime's."""
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copytree(package / "tritonserver" / "backends" / "python", place / "python")
    shutil.copy(stub, place / "python" / stub.name)
    (place / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), place / "onnxruntime" / "model.py")


@contextlib.contextmanager
def real_server(python, repositories, place, *, wait_s=240):
    """Run the server until the block ends; then it is told to stop, and must end well by itself."""
    found = subprocess.run([python, "-c", _WHERE], capture_output=True, text=True, check=True)
    package, libraries, version = json.loads(found.stdout)
    package = Path(package)
    _backends(package, version, place / "backends")
    http, grpc = free_ports(2)
    outside = [libraries, str(package.parent / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
    batches = place / "batches.txt"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | {
        "LD_LIBRARY_PATH": ":".join(one for one in outside if one),
        # the server's Python is that whose `python3` comes first
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DQ_BATCHES": str(batches),
    }
    command = [
        str(package / "tritonserver" / "bin" / "tritonserver"),
        *(f"--model-repository={one}" for one in repositories),
        f"--backend-directory={place / 'backends'}",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
        "--exit-timeout-secs=90",
    ]
    log = place / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    server = RealServer(process=process, http=f"127.0.0.1:{http}", grpc=f"127.0.0.1:{grpc}", log=log, batches=batches)
    try:
        _wait(server, wait_s)
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(server, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the server is not ready:\n{server.log.read_text()[-4000:]}")
