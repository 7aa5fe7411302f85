"""The engines that are measured beside the native one, and how the process of each is started.

Our exact graphs run by `dq_deploy.bench.worker`. All others are what a user would pick instead: packages of other
people in environments of their own (benchmarks/peers), on the float model or on their own quantization of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import peers
from benchmarks.machine.avx2 import PACKAGES, MachineError, prepare
from benchmarks.machine.commit import commit
from benchmarks.unets.peer_process import PeerProcess, PeerSettings
from dq_deploy.bench.worker import Worker, WorkerSettings
from dq_deploy.errors import DqError

NATIVE = "native"
EXACT = ("onnxruntime int8", "openvino int8")
"""Our graphs on other engines."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Where a peer's code is.

    Attributes:
        environment: `benchmarks/peers/NAME.txt`.
        worker: file of benchmarks/peers.
        words: what runs, for the tables.
    """

    environment: str
    worker: str
    words: str


_OPENVINO = {"environment": "openvino-nncf", "worker": "openvino_turns.py"}
_ORT = {"environment": "onnxruntime-qdq", "worker": "onnxruntime_turns.py"}
_TORCH = {"environment": "torch-sdnq", "worker": "torch_turns.py"}
PEERS = {
    "openvino": Peer(words="ov.convert_model, compiled with no precision asked for", **_OPENVINO),
    "openvino float32": Peer(words="the same, float32 asked for", **_OPENVINO),
    "nncf int8": Peer(words="nncf.quantize of that model, compiled as it comes", **_OPENVINO),
    "onnxruntime float32": Peer(words="the float graph", **_ORT),
    "onnxruntime qdq": Peer(words="its quantize_static, U8S8, weights a channel", **_ORT),
    "torch float32": Peer(words="eager, channels last", **_TORCH),
    "torch bfloat16": Peer(words="eager, channels last", **_TORCH),
    "torch compiled bfloat16": Peer(words="torch.compile with freezing, channels last", **_TORCH),
    "sdnq int8": Peer(words="SDNQ, weights and activations, convolutions too, its products by OpenVINO", **_TORCH),
}
NOT_HERE = {
    "stable-diffusion.cpp": "PyPI has it for the CPU as source alone (stable-diffusion-cpp-python), and it draws whole "
    "pictures from files of its own kind: there is no step of a denoiser to time",
}
ENGINES = (*PEERS, *EXACT, *NOT_HERE)


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The instruction sets that the libraries are given, and those of the native engine.

    Attributes:
        isa: of the native engine.
        hide_bf16: the libraries run as on a CPU with AVX512-VNNI, but neither bfloat16 nor AMX.
        folder: of the patched copies, see benchmarks/machine/avx2.py.
    """

    isa: str
    hide_bf16: bool
    folder: Path

    def changes(self) -> dict[str, str]:
        """Variables of a library's process; nothing where it may use all that there is."""
        if self.isa in ("avx2", "avx_vnni"):
            return prepare(self.folder, avx_vnni=self.isa == "avx_vnni")
        return prepare(self.folder, avx512_vnni=True) if self.hide_bf16 else {}


class NotRunError(DqError):
    """A peer that cannot do this; the message says why."""


@contextlib.contextmanager
def environment_of(changes: Mapping[str, str]) -> Iterator[None]:
    """Variables for the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def program_path(record: Path, isa: str, work: Path) -> Path:
    """The program file that the native engine opens, as others open theirs; written where this commit has not yet."""
    import dq_deploy
    from dq_deploy.native.file.content import write_program_file

    path = work / f"{record.stem}-{isa}-{commit()}.dqn"
    if not path.is_file():
        write_program_file(dq_deploy.load_record(record), path, isa=isa)
    return path


def start_native(record: Path, cpu: Cpu, threads: int, attention: str | None = None) -> Worker:
    """The native engine in a process of its own; `attention` as of `dq_deploy.open_engine`."""
    settings = WorkerSettings(path=str(record), engine=NATIVE, threads=threads, isa=cpu.isa, attention=attention)
    return Worker(settings)


def start_exact(name: str, graph: Path, cpu: Cpu, threads: int) -> Worker:
    """One of our graphs on its engine."""
    with environment_of(cpu.changes()):
        return Worker(WorkerSettings(path=str(graph), engine=name.partition(" ")[0], threads=threads))


def start_peer(name: str, folder: Path, cpu: Cpu, settings: PeerSettings, environments: Path) -> PeerProcess:
    """A peer in its environment, quantized first where it is.

    Args:
        name: of `PEERS`.
        folder: of `benchmarks.unets.float_model`.
        cpu: that it is given.
        settings: what it opens.
        environments: where the peers' environments are kept.

    Raises:
        NotRunError: it cannot; the message is the peer's own.
    """
    if name in NOT_HERE:
        raise NotRunError(NOT_HERE[name])
    changes = cpu.changes()
    if changes and "compiled" in name:
        raise NotRunError("torch.compile has its code compiled for this very CPU; it cannot be held to another")
    peer, plain = PEERS[name], {"PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    threads = {"OMP_NUM_THREADS": str(settings.threads)}
    if peer.environment == _OPENVINO["environment"] and not (folder / "float.xml").is_file():
        raise NotRunError("no float.xml was written, as openvino is not installed here: install it, take a new --work")
    try:
        python = peers.environment(peer.environment, environments)
        command = (str(python), str(peers.HERE / peer.worker))
        peers.call([*command, "prepare", str(folder), name], f"{name}: quantizing", {**plain, **threads})
        if changes:
            _check_versions(peer.environment)
            changes["PYTHONPATH"] = changes["PYTHONPATH"].split(os.pathsep)[0]  # the copies, and nothing of ours
        return PeerProcess(command, settings, {**plain, **changes})
    except (peers.PeerFailure, DqError) as error:
        raise NotRunError(" ".join(str(error).split())) from error


def _check_versions(environment: str) -> None:
    """The copies that hide instructions are of the versions installed here; the peer has to have the same."""
    pinned = dict(line.split("==") for line in peers.requirements(environment) if "==" in line)
    for package in PACKAGES:
        if package in pinned and metadata.version(package) != pinned[package]:
            here = metadata.version(package)
            raise MachineError(f"{package} {here} is installed, expected {pinned[package]} as in {environment}.txt")


def words_of(name: str) -> str:
    """What an engine is, for the help."""
    return PEERS[name].words if name in PEERS else NOT_HERE.get(name, "our exact graph")
