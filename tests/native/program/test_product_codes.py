"""Which layers write codes of their result at once, and that nothing of what is computed depends on it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from dq_kernels.int_linear_codes import supports
from torch.nn import functional

from dq_deploy.native.observe.observing import observed_run
from dq_deploy.native.program.arena import lifetimes, plan_arena
from dq_deploy.native.program.product_codes import ProductCodes, product_codes
from dq_deploy.native.program.program import at_batch, from_json
from tests.native.programs import Case, Function, layer_of

TOKENS = {"x": (("B", 6, 24), "float32")}
LAYERS = [layer_of("up", [128, 24]), layer_of("down", [24, 64], seed=1), layer_of("whole", [24, 128], seed=2)]
CHILDREN = {"up": torch.nn.Linear(24, 128), "down": torch.nn.Linear(64, 24), "whole": torch.nn.Linear(128, 24)}
ISA = "portable"
assert not supports(ISA)


def geglu(m, x):
    value, gate = m.up(x).chunk(2, -1)
    return m.down(value * functional.gelu(gate))


FOUND = {
    "geglu": (geglu, ("up", "down"), {"gated": True}),
    "gelu": (lambda m, x: m.whole(functional.gelu(m.up(x))), ("up", "whole"), {"activation": "gelu"}),
    "gelu_tanh": (
        lambda m, x: m.whole(functional.gelu(m.up(x), approximate="tanh")),
        ("up", "whole"),
        {"activation": "gelu_tanh"},
    ),
    "silu": (lambda m, x: m.whole(functional.silu(m.up(x))), ("up", "whole"), {"activation": "silu"}),
    "nothing": (lambda m, x: m.whole(m.up(x)), ("up", "whole"), {"activation": "copy"}),
}
LEFT = {
    "read twice": (lambda m, x: m.whole(functional.silu(y := m.up(x))) + y[..., :24], ("up", "whole")),
    "activation read twice": (lambda m, x: m.whole(y := functional.silu(m.up(x))) + y[..., :24], ("up", "whole")),
    "an output": (lambda m, x: functional.silu(m.up(x)), ("up",)),
    "with a residual": (lambda m, x: m.whole(functional.silu(m.up(x) + m.up(x * 2))), ("up", "whole")),
    "a part of it": (lambda m, x: m.down(functional.silu(m.up(x))[..., :64]), ("up", "down")),
    "the other half gates": (
        lambda m, x: m.down((lambda a, b: functional.gelu(a) * b)(*m.up(x).chunk(2, -1))),
        ("up", "down"),
    ),
}


def case_of(function, names) -> Case:
    children = {name: CHILDREN[name] for name in names}
    return Case(Function(function, **children), TOKENS, [layer for layer in LAYERS if layer.name in names])


def found_in(case: Case) -> tuple[ProductCodes, ...]:
    return product_codes(from_json(at_batch(case.joined, 2)))


@pytest.mark.parametrize("name", FOUND)
def test_a_layer_whose_result_only_a_quantizer_reads_is_found_and_right(name):
    function, names, kept = FOUND[name]
    case = case_of(function, names)
    (found,) = found_in(case)
    assert (found.activation, found.gated) == (kept.get("activation", "copy"), kept.get("gated", False))
    assert len(case.executor(ISA).plan(2).at_once) == 1
    assert case.difference(isa=ISA) < 1e-5


@pytest.mark.parametrize("name", LEFT)
def test_a_layer_whose_result_is_seen_elsewhere_is_left_as_it_is(name):
    case = case_of(*LEFT[name])
    assert not any(found.activation == "silu" or found.gated for found in found_in(case))
    assert case.difference(isa=ISA) < 1e-5


def test_half_a_panel_of_gates_is_left_as_it_is():
    layers = [layer_of("up", [48, 24]), layer_of("down", [24, 24], seed=1)]
    children = {"up": torch.nn.Linear(24, 48), "down": torch.nn.Linear(24, 24)}
    case = Case(Function(geglu, **children), TOKENS, layers)
    assert not found_in(case)
    assert case.difference(isa=ISA) < 1e-5


@pytest.mark.parametrize("name", FOUND)
def test_a_run_gives_the_bits_of_single_operations_and_of_other_instruction_sets(name):
    case = case_of(*FOUND[name][:2])
    at_once, other = case.executor(ISA), case.executor("amx_emulated")
    assert not other.plan(3).at_once
    feeds = case.feeds(3)
    wanted = other.run(feeds)["output"]
    np.testing.assert_array_equal(at_once.run(feeds)["output"], wanted)
    np.testing.assert_array_equal(observed_run(at_once, feeds)[0]["output"], wanted)


def test_what_is_read_and_written_at_once_shares_no_memory():
    program = from_json(at_batch(case_of(*FOUND["gelu"][:2]).joined, 2))
    (found,) = product_codes(program)
    spans = [(found.first, found.last)]
    arena, lives = plan_arena(program, spans), lifetimes(program, spans)
    first, last = program.ops[found.first], program.ops[found.last]
    read, written = first.reads["codes"].buffer, last.writes["codes0"].buffer
    assert lives[read][1] >= found.last
    assert lives[written][0] <= found.first
    for i, j in combinations({read, written, first.writes["y"].buffer}, 2):
        ends = [arena.offsets[k] + program.buffers[k].elements * program.buffers[k].itemsize for k in (i, j)]
        assert ends[0] <= arena.offsets[j] or ends[1] <= arena.offsets[i]


def test_each_operation_is_timed_those_in_one_at_the_first():
    case = case_of(*FOUND["gelu"][:2])
    executor = case.executor(ISA)
    plan = executor.plan(2)
    ((first, (found, _)),) = plan.at_once.items()
    timed = list(executor.timed(case.feeds(2)))
    assert [op for op, _ in timed] == list(plan.program.ops)
    assert timed[first][1] > 0
    assert [spent for _, spent in timed[first + 1 : found.last + 1]] == [0.0] * (found.last - first)


def test_a_nan_is_named_by_the_layer_that_reads_it():
    from dq_deploy.errors import NonFiniteError

    case = case_of(*FOUND["gelu"][:2])
    case.layers["up"].bias[5] = np.nan
    with pytest.raises(NonFiniteError, match="whole"):
        case.executor(ISA).run(case.feeds(2))
