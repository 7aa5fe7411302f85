"""Shards are runs of neighbours; processes have every input exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.calibration.sharding import SHARDS, Share, Workers
from dq_deploy.errors import OptionError


def shares(inputs, count):
    step = np.arange(inputs) % 3
    return [Share(step=step, workers=Workers(shards=SHARDS, rank=rank, count=count)) for rank in range(count)]


@given(st.integers(8, 200), st.integers(1, 8))
def test_every_input_is_in_one_shard_and_every_shard_in_one_process(inputs, count):
    seen = []
    for share in shares(inputs, count):
        here = [range(*share.everyones(shard).indices(inputs)) for shard in share.workers.mine]
        assert [len(one) for one in here] == [share.own(s).stop - share.own(s).start for s in share.workers.mine]
        seen += [place for one in here for place in one]
    assert sorted(seen) == list(range(inputs))


@given(st.integers(8, 200), st.integers(1, 8), st.integers(1, 70))
def test_chunks_end_where_shards_do_whoever_has_them(inputs, count, batch):
    def sizes(share):
        return {s: [c.stop - c.start for c in share.chunks_of(s, batch)] for s in share.workers.mine}

    alone = sizes(shares(inputs, 1)[0])
    assert {s: own for share in shares(inputs, count) for s, own in sizes(share).items()} == alone


def test_a_process_without_an_input_is_refused():
    with pytest.raises(OptionError, match="3 processes and 2 calibration inputs"):
        shares(2, 3)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1e6), max_size=20), st.integers(1, 8))
def test_no_process_has_more_than_the_mean_and_one_piece_of_work(costs, count):
    owners = Workers(shards=SHARDS, count=count).owners(costs)
    assert owners.keys() == costs.keys()
    loads = [sum(cost for name, cost in costs.items() if owners[name] == rank) for rank in range(count)]
    assert max(loads) <= sum(costs.values()) / count + max(costs.values(), default=0) + 1e-3
