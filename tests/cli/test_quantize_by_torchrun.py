"""`dq-quantize` as torchrun starts it: one process prints and writes, a lost one ends all, and others go on."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks.sharing.processes import torchrun
from dq_deploy.errors import OptionError
from tests.cli.running import command
from tests.tiny import ONE_LEVEL, SCHEDULER, tiny_denoiser

ENVIRONMENT = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
}
METHOD = ("--method", "dilatequant", "--iterations", "3", "--samples", "4", "--steps", "2", "--memory-gib", "0.5")


@pytest.fixture
def started_by_torchrun(monkeypatch):
    """This process as one that torchrun started, of so many."""

    def start(count=1, rank=0):
        for name, value in {**ENVIRONMENT, "WORLD_SIZE": str(count), "RANK": str(rank)}.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_denoiser(**ONE_LEVEL).module.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


def test_a_killed_process_ends_all_in_one_line_and_another_number_goes_on_to_the_same_bytes(
    model, tmp_path, started_by_torchrun
):
    given = ("--model", model, *METHOD, "--out", tmp_path / "many.pt")
    many = torchrun(2, "tests.cli.dying_quantize", *given)
    said, _ = many.communicate(timeout=200)
    assert many.returncode == 1, said  # of torchrun, however its processes end
    assert "[rank" not in said  # a traceback, as torch prints it
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert re.search("another process of this run ended|terminated: .* ended; run the same command", errors[0])
    assert list((tmp_path / "many.pt.resume").glob("block-*.safetensors"))
    assert not (tmp_path / "many.pt").exists()
    assert not list(tmp_path.rglob("*.part"))

    alone = command("quantize", *given)
    assert alone.code == 2
    assert "started by torchrun, with any number of processes" in alone.err

    started_by_torchrun()  # one process goes on; more are tested in tests/calibration/sharding
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    on = command("quantize", *given)
    one = command("quantize", "--model", model, *METHOD, "--out", tmp_path / "one.pt")
    torch.set_num_threads(threads)
    assert on.code == 0, on.err
    assert on.out.count("integer layers") == 1
    assert f"going on with the state in {tmp_path / 'many.pt.resume'}" in on.out
    assert one.code == 0, one.err
    assert (tmp_path / "many.pt").read_bytes() == (tmp_path / "one.pt").read_bytes()
    assert not (tmp_path / "many.pt.resume").exists()


def test_minmax_goes_on_with_the_inputs_that_a_stopped_run_recorded(model, tmp_path, started_by_torchrun, monkeypatch):
    from dq_deploy.methods import minmax
    from dq_deploy.methods.prepare import starting_point

    started_by_torchrun()
    given = ("--model", model, "--method", "minmax", "--samples", "2", "--steps", "2", "--memory-gib", "0.5")
    measure, collect, drawn = minmax.measure_ranges, starting_point.collect_shared, []

    def stopped(*arguments, **more):
        raise OptionError("stopped here")

    def counted(*arguments, **more):
        drawn.append(1)
        return collect(*arguments, **more)

    monkeypatch.setattr(minmax, "measure_ranges", stopped)
    monkeypatch.setattr(starting_point, "collect_shared", counted)
    assert command("quantize", *given, "--out", tmp_path / "m.pt").code == 2
    monkeypatch.setattr(minmax, "measure_ranges", measure)
    on = command("quantize", *given, "--out", tmp_path / "m.pt")
    assert (on.code, len(drawn)) == (0, 1), on.err
    assert f"going on with the state in {tmp_path / 'm.pt.resume'}" in on.out
    assert command("quantize", *given, "--out", tmp_path / "whole.pt").code == 0
    assert (tmp_path / "m.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not list(tmp_path.glob("*.resume"))


@pytest.mark.parametrize("rank", [0, 1])
def test_more_processes_than_shards_are_refused_by_the_first(rank, started_by_torchrun, model, tmp_path):
    started_by_torchrun(9, rank)
    done = command("quantize", "--model", model, "--method", "minmax", "--out", tmp_path / "model.pt")
    words = "error: dq-quantize was started as 9 processes, expected at most 8: work is cut into so many shards"
    assert done.code == 2
    assert done.err.startswith(words) if rank == 0 else done.err == ""


@pytest.mark.parametrize("name", ["export", "sample", "verify", "bench", "info"])
def test_other_commands_refuse_to_be_several_processes(name, started_by_torchrun):
    started_by_torchrun(2)
    done = command(name)
    assert (done.code, done.err) == (
        2,
        f"error: dq-{name} was started as 2 processes, expected one; run it without torchrun\n",
    )


def test_a_comparison_is_refused(started_by_torchrun, model, tmp_path):
    started_by_torchrun()
    done = command("quantize", "--model", model, "--compare", "minmax", "--out", tmp_path / "all")
    assert done.code == 2
    assert "--compare was given to processes of torchrun" in done.err


def test_a_gpu_that_is_not_there_is_refused(started_by_torchrun, model, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    started_by_torchrun()
    given = ("--model", model, "--method", "minmax", "--device", "cuda", "--out", tmp_path / "model.pt")
    done = command("quantize", *given)
    assert done.code == 2
    assert "sees no GPU" in done.err
