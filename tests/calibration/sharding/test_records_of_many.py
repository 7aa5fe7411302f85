"""However many processes share the work, the record has the same bytes."""

from __future__ import annotations

import shutil
import socket

import pytest
import torch

from dq_deploy.calibration.sharding import SHARDS, Workers
from dq_deploy.errors import OptionError
from dq_deploy.methods import quantize
from dq_deploy.record import save_record
from tests.calibration.sharding.by_many import OPTIONS, STOPPED, made
from tests.forked import Forked
from tests.tiny import tiny_denoiser


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    """What one process makes of all shards."""
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for method in OPTIONS:
            save_record(made(method, Workers(shards=SHARDS)), folder / f"{method}.pt")
        with pytest.raises(StopHereError):
            made("gptq", Workers(shards=SHARDS), resume_dir=folder / STOPPED, progress=stop_halfway)
    finally:
        torch.set_num_threads(threads)
    return folder


class StopHereError(Exception):
    pass


def stop_halfway(report):
    if report.stage == "rounding" and 2 * report.done >= report.total:
        raise StopHereError


def run_as_many(count, module, *arguments):
    """Processes as torchrun starts them; itself it is tested in tests/cli."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    given = {**group, "OMP_NUM_THREADS": "1"}
    started = [
        Forked(module, *arguments, environment={**given, "RANK": str(rank)}, together=True) for rank in range(count)
    ]
    return [one.ended() for one in started]


@pytest.mark.parametrize("count", [2, 3])
def test_the_record_has_the_same_bytes_and_so_has_that_of_a_run_which_more_processes_end(count, of_one, tmp_path):
    if count == 3:
        shutil.copytree(of_one / STOPPED, tmp_path / STOPPED)
        first = next((tmp_path / STOPPED).glob("block-*.safetensors"))
        before = first.stat().st_mtime_ns
    for done in run_as_many(count, "tests.calibration.sharding.by_many", tmp_path):
        assert done.returncode == 0, done.stdout
    for method in OPTIONS:
        assert (tmp_path / f"{method}.pt").read_bytes() == (of_one / f"{method}.pt").read_bytes(), method
    if count == 3:
        assert (tmp_path / "resumed.pt").read_bytes() == (of_one / "gptq.pt").read_bytes()
        assert first.stat().st_mtime_ns == before, "begun anew"


def test_a_record_says_that_it_was_made_in_shards_and_not_by_how_many(of_one):
    from dq_deploy.record import load_record

    told = load_record(of_one / "minmax.pt").provenance
    assert told["calibration"]["shards"] == SHARDS
    assert "workers" not in told["options"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "dmq"}, "dmq"),
        ({"method": "quest"}, "quest"),
        ({"method": "minmax", "budget": 5.0}, "`budget`"),
        ({"method": "minmax", "channel_scales": True}, "`channel_scales`"),
        ({"method": "minmax", "step_correction": True}, "`step_correction`"),
        ({"method": "minmax", "attention": "int8"}, "`attention`"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(options, named):
    with pytest.raises(OptionError, match=named):
        quantize(tiny_denoiser(), workers=Workers(shards=SHARDS), **options)


def test_more_processes_than_shards_are_refused():
    with pytest.raises(OptionError, match="9 processes, expected at most 8"):
        Workers(shards=SHARDS, rank=0, count=9)
