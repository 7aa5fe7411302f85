"""A pool of threads for each instruction set this CPU has, opened once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from dq_kernels.cpu.library import Context, known_isas, refusal_of
from dq_kernels.cpu.structs import EMULATED, ISAS

FLOAT_ISAS = tuple(isa for isa in ISAS if isa != EMULATED)
"""Of what is no integer product: there is nothing to emulate."""


@pytest.fixture(scope="session")
def opened_contexts() -> Iterator[dict[tuple[str, int], Context]]:
    opened: dict[tuple[str, int], Context] = {}
    yield opened
    for context in opened.values():
        context.close()


@pytest.fixture(scope="session")
def context_of(opened_contexts):
    """Function (isa, threads) to a context; skips where this CPU lacks the instruction set."""

    def open_context(isa: str, threads: int) -> Context:
        if refusal_of(isa):
            pytest.skip(f"{isa}, {refusal_of(isa)}")
        if (isa, threads) not in opened_contexts:
            opened_contexts[isa, threads] = Context(threads, isa)
        return opened_contexts[isa, threads]

    return open_context


@pytest.fixture(params=FLOAT_ISAS)
def each_context(request, context_of) -> Context:
    """Each instruction set, one thread."""
    return context_of(request.param, 1)


@pytest.fixture(params=FLOAT_ISAS)
def contexts(request, context_of) -> Callable[[bool], list[Context]]:
    """Each instruction set: function of whether the work has several tiles to one thread, and two where it has."""
    return lambda several: [context_of(request.param, threads) for threads in ((1, 2) if several else (1,))]


@pytest.fixture(params=ISAS)
def product_contexts(request, context_of) -> Callable[[bool], list[Context]]:
    """The same with the emulated tiles."""
    return lambda several: [context_of(request.param, threads) for threads in ((1, 2) if several else (1,))]


@pytest.fixture(params=ISAS)
def each_context_of_products(request, context_of) -> Context:
    """Each instruction set, one thread, with the emulated tiles."""
    return context_of(request.param, 1)


@pytest.fixture
def best_context(context_of) -> Context:
    """The best instruction set of this CPU, two threads."""
    return context_of(known_isas()[-1], 2)
