"""A number of threads that cannot be honoured is refused, whatever the engine."""

from __future__ import annotations

import pytest

from dq_deploy import open_engine
from dq_deploy.errors import OptionError
from dq_deploy.processes.threads import check_threads


@pytest.mark.parametrize("threads", [0, -1, 1025, 100_000, 1.5, "2", True])
def test_no_engine_takes_a_number_of_threads_for_a_choice_of_its_own(threads, tiny_engine, tiny_record_path):
    for path in (tiny_engine, tiny_record_path):
        with pytest.raises(OptionError, match="expected a whole number from 1 to 1024"):
            open_engine(path, threads=threads)


def test_the_engines_own_choice_and_many_cores_are_taken():
    for threads in (None, 1, 384, 1024):
        check_threads(threads)
