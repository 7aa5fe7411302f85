"""Opening is timed in a process of its own, which loads no torch for a program file."""

from __future__ import annotations

from benchmarks.unets.opening import opened
from dq_deploy import write_program_file


def test_a_program_file_opens_in_a_process_of_its_own(tiny_record, tmp_path):
    write_program_file(tiny_record, tmp_path / "model.dqn")
    wall, cpu, peak = opened(tmp_path / "model.dqn", hash_check=True)
    assert cpu > 0
    assert 0 < wall < 60
    assert 20 < peak < 150  # torch alone is more
