"""AMX: the same bits by tiles as by the reference, the instructions as they are compiled, and when they are offered."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from dq_kernels.cpu import build
from dq_kernels.cpu.library import Context, KernelInputError, known_isas, packed_form, refusal_of
from dq_kernels.cpu.structs import EMULATED, REFUSALS
from dq_kernels.int_conv2d import run
from dq_kernels.int_conv2d.cases import Case
from dq_kernels.int_conv2d.reference import int_conv2d
from dq_kernels.int_linear.cases import EXTRAS
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
TILE_ISAS = ("amx", EMULATED)
NOT_COMPILED = REFUSALS[4]

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


class AsAnEngine:
    """A context whose products are asked for y alone, aligned, as an engine asks: rows are finished together."""

    def __init__(self, context, values):
        self.context = context
        self.pack = context.pack
        self.memory = np.empty(4 * values + 64, np.uint8)

    def call(self, op, args):
        wanted, args.epilogue.y = args.epilogue.y, -(-self.memory.ctypes.data // 64) * 64
        args.epilogue.accumulators = None
        self.context.call(op, args)
        ctypes.memmove(wanted, args.epilogue.y, len(self.memory) - 64)


def assert_bits_of_reference(context, case):
    inputs = case.inputs()
    y_ref, accumulators_ref = int_conv2d(**inputs)
    y, accumulators = run(context, **inputs)
    np.testing.assert_array_equal(accumulators, accumulators_ref)
    np.testing.assert_array_equal(y.view(np.int32), y_ref.view(np.int32))
    y, _ = run(AsAnEngine(context, y.size), **inputs)
    np.testing.assert_array_equal(y.view(np.int32), y_ref.view(np.int32))


@pytest.mark.parametrize("isa", TILE_ISAS)
@given(
    case=st.builds(
        Case,
        name=st.just(""),
        batch=st.integers(1, 3),
        height=st.integers(7, 10),
        width=st.sampled_from((7, 8, 16, 17, 40)),
        channels=st.sampled_from((64, 128, 192, 256, 832, 60, 66)),
        out_channels=st.sampled_from((1, 16, 32, 33, 64, 290)),
        kernel=pairs,
        stride=pairs,
        padding=st.tuples(*[st.integers(0, 2)] * 4),
        dilation=pairs,
        weight_bits=st.sampled_from((4, 8)),
        steps=st.integers(1, 3),
        weight_zero=st.sampled_from((None, None, (-128, 127))),
        extras=st.sets(st.sampled_from(EXTRAS)).map(tuple),
        seed=st.integers(0, 1000),
    ),
    threads=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_codes_that_fill_registers_give_the_bits_of_the_reference(isa, context_of, case, threads):
    """Loaded in place or from planes of any form, a channel's rest and the image's sides included."""
    assert_bits_of_reference(context_of(isa, threads), case)


def sized(name, size, channels, out_channels, **more):
    (batch, height, width), kernel = size, more.pop("kernel", (3, 3))
    padding = (kernel[0] // 2, kernel[1] // 2) * 2
    return Case(
        name=name, batch=batch, height=height, width=width, channels=channels, out_channels=out_channels,
        **{"kernel": kernel, "padding": padding, "steps": 2, "extras": ("bias", "row", "residual"), **more},
    )  # fmt: skip


PLACES = (
    sized("lines", (2, 6, 32), 96, 64),
    sized("more than the caches hold", (2, 64, 65), 64, 96, kernel=(1, 1)),
    sized("lines of stride 2", (1, 9, 33), 64, 32, stride=(2, 2), padding=(0, 0, 0, 0)),
    sized("a part of a long line", (1, 3, 128), 64, 64),
    sized("shifted lines", (3, 8, 8), 128, 64),
    sized("shifted lines of dilation 2", (1, 12, 8), 64, 64, dilation=(2, 2), padding=(2, 2, 2, 2)),
    sized("windows", (2, 5, 7), 80, 64),
    sized("windows of few channels", (1, 16, 16), 3, 64),
    sized("channels in blocks", (1, 4, 4), 2240, 40, weight_bits=8),
    sized("windows in blocks", (1, 3, 5), 1984, 40, weight_bits=4),
    sized("single pixels in blocks", (1, 3, 17), 12352, 70, kernel=(1, 1)),
    sized("more panels than are kept", (1, 1, 40), 64, 2100, kernel=(1, 1)),
    sized("three pixels", (1, 1, 3), 100, 70, kernel=(1, 1), weight_bits=8),
    sized("eight pixels of 4-bit weights", (2, 2, 2), 100, 70),
)


@pytest.mark.parametrize("isa", TILE_ISAS)
@pytest.mark.parametrize("case", PLACES, ids=lambda case: case.name)
def test_each_way_to_place_codes_gives_the_bits_of_the_reference(isa, context_of, case):
    assert_bits_of_reference(context_of(isa, 2), case)


@pytest.mark.parametrize(("bits", "memory"), [(4, "int4"), (8, "int8")])
def test_the_form_names_the_instruction_and_the_emulation(context_of, bits, memory):
    weights = np.full((3, 1, 10), 2 ** (bits - 1) - 1, np.int8)
    packed = context_of(EMULATED, 1).pack(weights, 255)
    assert packed_form(packed) == f"tdpbusd in plain C++, {memory} in memory"


@pytest.mark.skipif("avx512_vnni" not in known_isas(), reason="the vector code between the tiles is AVX-512's")
def test_the_compiled_tile_instructions_give_the_portable_bits(tmp_path):
    """The machine code of `amx` itself: without AMX each tile instruction traps and is done by its definition."""
    if refusal_of("amx") == NOT_COMPILED:
        pytest.skip(NOT_COMPILED)
    cpu = build.PACKAGE / "cpu"
    parts = ("igemm/igemm", "igemm/pack", "igemm/portable", "igemm/tiles/loop", "igemm/tiles/kernels")
    files = [cpu / f"{name}.cpp" for name in ("context", "isas", *parts)]
    program = build.build(tmp_path / "trapped", flags=["-no-shared"], files=[*files, HERE / "trapped.cpp"])
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    ran = dict(part.split() for part in done.stdout.strip().split(", "))
    if "amx" not in known_isas():
        assert min(map(int, ran.values())) > 0
        assert int(ran["dot"]) > 500


@pytest.fixture(scope="module")
def faked(tmp_path_factory) -> Path:
    return build.build(tmp_path_factory.mktemp("faked") / "faked", flags=["-no-shared"], files=[HERE / "faked.cpp"])


AMX_TILE, AMX_INT8 = 1 << 24, 1 << 25
VECTORS, TILES = 0xE6, 0x60000
EINVAL = -22


@pytest.mark.parametrize(
    ("features", "kept", "permission", "reason", "requests"),
    [
        (AMX_TILE | AMX_INT8, VECTORS | TILES, 0, "", 1),
        (AMX_TILE | AMX_INT8, VECTORS | TILES, EINVAL, "the operating system refused", 1),
        (AMX_TILE | AMX_INT8, VECTORS, 0, "the operating system does not keep", 0),
        (AMX_TILE | AMX_INT8, 0x6 | TILES, 0, "this CPU does not have", 0),
        (AMX_TILE, VECTORS | TILES, 0, "this CPU does not have", 0),
        (0, VECTORS, 0, "this CPU does not have", 0),
    ],
)
def test_tiles_are_offered_where_the_system_grants_them_and_asked_for_once(
    faked, features, kept, permission, reason, requests
):
    if refusal_of("amx") == NOT_COMPILED:
        pytest.skip(NOT_COMPILED)
    done = subprocess.run(
        [faked, f"{features:x}", f"{kept:x}", f"{permission:x}"], capture_output=True, text=True, check=True
    )
    refusal, asked, known = done.stdout.split()
    assert reason in REFUSALS[int(refusal)]
    assert bool(reason) == bool(REFUSALS[int(refusal)])
    assert int(asked) == requests
    assert int(known, 16) >> 4 & 3 == (0 if reason else 1)


@pytest.mark.skipif("amx" in known_isas(), reason="this CPU has AMX")
def test_amx_by_name_is_refused_with_the_reason():
    with pytest.raises(KernelInputError, match=f"instruction set is 'amx', {refusal_of('amx')}".replace("(", r"\(")):
        Context(1, "amx")


def test_the_emulation_is_never_chosen():
    assert EMULATED not in known_isas()
    assert refusal_of(EMULATED) == ""
