"""Whether an engine's samples depend on their batch is tried when a server is opened, and found where they do."""

from __future__ import annotations

import numpy as np

from dq_deploy.models import call_of_record
from dq_deploy.open_engine import open_engine
from dq_deploy.serve.same_bytes import try_same_bytes


def test_the_native_engine_gives_the_same_bytes(tiny_record_path, tiny_record):
    with open_engine(tiny_record_path, threads=1) as runner:
        found = try_same_bytes(runner, call_of_record(tiny_record), 8)
    assert (found.holds, found.proven, found.how) == (True, True, "compared alone and in batches of 2 to 8")


def test_of_another_engine_it_is_said_to_be_no_proof(tiny_engine, tiny_record):
    with open_engine(tiny_engine, threads=1) as runner:
        found = try_same_bytes(runner, call_of_record(tiny_record), 3)
    assert (found.holds, found.proven) == (True, False)
    assert found.how == "compared alone and in batches of 2, 3; that is no proof for onnxruntime"


def test_alone_there_is_nothing_to_try(tiny_record_path, tiny_record):
    with open_engine(tiny_record_path, threads=1) as runner:
        assert try_same_bytes(runner, call_of_record(tiny_record), 1).how == "each picture's calls run alone"
        assert runner.runs == 0


class Rounded:
    """An engine whose samples differ by one unit in the last place where many stand together."""

    def __init__(self, runner):
        self._runner = runner

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def run(self, feeds):
        outputs = self._runner.run(feeds)
        if len(feeds["timestep"]) > 6:
            outputs["output"][-1, 0, 0, 0] = np.nextafter(outputs["output"][-1, 0, 0, 0], np.float32(9))
        return outputs


def test_a_difference_of_one_unit_in_one_value_is_found(tiny_record_path, tiny_record):
    with open_engine(tiny_record_path, threads=1) as runner:
        found = try_same_bytes(Rounded(runner), call_of_record(tiny_record), 8)
    assert (found.holds, found.how) == (False, "a sample in a batch of 8 differed from the same alone")
