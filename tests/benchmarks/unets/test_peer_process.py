"""A peer in a process of its own answers turns, draws what is compared, and says what went wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers.job import outputs_of
from benchmarks.unets import engines, fidelity
from benchmarks.unets.peer_process import PeerProcess, PeerSettings
from dq_deploy.errors import DqError

WORKER = """
import sys
sys.path.insert(0, {here!r})
from turns import Opened, main

def opened(settings):
    print("a library says hello")
    if settings.engine == "broken":
        raise RuntimeError("no such instruction")
    return Opened(lambda inputs: inputs["sample"] * 2, "float32")

main(opened, None)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER.format(here=str(peers.HERE)))
    sample = np.random.default_rng(0).standard_normal((4, 1, 2, 2), dtype=np.float32)
    np.savez(tmp_path / "inputs-2.npz", sample=sample[:2])
    np.savez(tmp_path / "check.npz", sample=sample)
    np.save(tmp_path / "check-float.npy", sample * 2)
    return tmp_path


def started(folder, engine="peer"):
    settings = PeerSettings(engine=engine, folder=str(folder), batch=2, threads=1)
    return PeerProcess((sys.executable, str(folder / "worker.py")), settings, {"PYTHONPATH": ""})


def test_a_peer_takes_turns_and_its_output_is_compared(folder):
    with started(folder) as peer:
        timed = peer.time(batch=2, warmup=1, runs=3, seconds=0.0, clock="host")
        near = fidelity.of_peer(peer, folder)
        with pytest.raises(DqError, match="got batch 1, expected 2"):
            peer.time(batch=1, warmup=1, runs=3, seconds=0.0, clock="host")
    assert len(timed.latency_ms) == 3
    assert timed.peak_mib > 5
    assert peer.precision == "float32"
    assert near == {"psnr_db": pytest.approx(200.0), "of": "4 outputs of one step"}


def test_what_a_peer_raises_is_told_in_its_own_words(folder):
    with pytest.raises(DqError, match="no such instruction"):
        started(folder, "broken")


def test_openvino_without_its_file_is_not_run_and_says_why(folder):
    settings = PeerSettings(engine="openvino", folder=str(folder), batch=2, threads=1)
    cpu = engines.Cpu(isa="avx512_vnni", hide_bf16=False, folder=folder)
    with pytest.raises(engines.NotRunError, match=r"no float\.xml was written, as openvino is not installed"):
        engines.start_peer("openvino", folder, cpu, settings, folder / "none")


def test_psnr_is_that_of_the_definition():
    wanted = np.zeros((2, 1, 2, 2), np.float32)
    found = np.stack([wanted[0] + 0.1, wanted[0] + 0.01])
    assert fidelity.mean_psnr_db(found, wanted, 1.0) == pytest.approx(30.0, abs=1e-4)


def test_every_peer_has_its_packages_pinned_and_a_file():
    for peer in engines.PEERS.values():
        assert all("==" in line or line in {"sympy"} for line in peers.requirements(peer.environment))
        assert (peers.HERE / peer.worker).is_file()


def test_pictures_are_drawn_where_there_is_a_schedule(folder):
    (folder / "schedule.json").write_text('{"steps": [[1, 0.5, 1.0]], "prediction_type": "epsilon", "clip": 1.0}')
    np.savez(folder / "check.npz", noise=np.zeros((4, 1, 2, 2), np.float32), labels=np.arange(4))
    seen = []

    def draw(inputs):
        seen.append(inputs["class_labels"].tolist())
        return inputs["sample"]

    found = outputs_of(draw, folder, 2)
    assert found.shape == (4, 1, 2, 2)
    assert seen == [[0, 1], [2, 3]]
