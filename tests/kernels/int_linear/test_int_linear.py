"""The integer linear layer is its reference bit for bit, on every instruction set."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dq_kernels.cpu.library import KernelInputError, ProductForm, packed_form, product_form
from dq_kernels.cpu.packed import TILE_REACH
from dq_kernels.cpu.structs import ISAS, Epilogue, IntLinearArgs, Quantizer
from dq_kernels.int_linear import run, supports
from dq_kernels.int_linear.cases import EXTRAS, SHAPE_CASES, TEST_CASES, ZERO_CASES, Case
from dq_kernels.int_linear.reference import int_linear
from hypothesis import given, settings
from hypothesis import strategies as st

MIDDLE = Case(name="middle", rows=9, channels=70, out_channels=40)


def assert_equals_reference(context, case, **changed):
    inputs = case.inputs() | changed
    y, accumulators = run(context, **inputs)
    y_ref, accumulators_ref = int_linear(**inputs)
    np.testing.assert_array_equal(accumulators, accumulators_ref)
    np.testing.assert_array_equal(y.view(np.int32), y_ref.view(np.int32))


@pytest.mark.parametrize("case", [*TEST_CASES, *ZERO_CASES], ids=lambda c: c.name)
def test_a_case_equals_the_reference(product_contexts, case):
    for context in product_contexts(case.batch * case.rows > 12 or case.out_channels > 64):
        assert_equals_reference(context, case)


@pytest.mark.parametrize("isa", ISAS)
@given(
    case=st.builds(
        Case,
        name=st.just(""),
        batch=st.integers(1, 4),
        rows=st.integers(1, 40),
        channels=st.integers(1, 150),
        out_channels=st.integers(1, 80),
        activation_bits=st.integers(1, 8),
        weight_bits=st.integers(1, 8),
        steps=st.integers(1, 4),
        zero=st.sampled_from(("low", "mid", "high")),
        extreme=st.booleans(),
        weight_zero=st.sampled_from((None, (-128, 127), (-500, 500))),
        extras=st.sets(st.sampled_from(EXTRAS)).map(tuple),
        seed=st.integers(0, 1000),
    )
)
@settings(max_examples=150, deadline=None)
def test_any_shape_equals_the_reference(isa, context_of, case):
    assert_equals_reference(context_of(isa, 1), case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", [c for c in SHAPE_CASES if c.model == "cifar"], ids=lambda c: c.name)
def test_the_layers_of_the_cifar_unet_equal_the_reference(context_of, case, isa):
    assert_equals_reference(context_of(isa, 2), case)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "amx_emulated"])
@pytest.mark.parametrize("last", [0, 16], ids=["whole panels", "a part of one at the end"])
def test_a_result_longer_than_the_caches_is_the_same(context_of, isa, last):
    """4 bytes each: 2 MiB and more, which some kernels write past the caches."""
    case = Case(name="", batch=2, rows=1031, channels=9, out_channels=288 - last, steps=2, extras=("bias", "residual"))
    assert_equals_reference(context_of(isa, 2), case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("span", [1, 15, 63, 127, 255])
@pytest.mark.parametrize("largest", [7, 8, 9, 16, 17, 32, 33, 63, 64, 65, 127])
def test_the_largest_codes_times_the_largest_weights_are_exact(context_of, isa, span, largest):
    """Around every number of pairs that int16 holds: span 255 takes 8 pairs up to 8, 4 up to 16, 2 up to 32."""
    case = Case(name="", rows=7, channels=131, out_channels=36, extreme=True, zero="low")
    channels = np.arange(36)
    ends = np.select([channels % 3 == 0, channels % 3 == 1], [largest, -largest], -largest - 1)
    weights = np.ascontiguousarray(np.broadcast_to(ends[:, None], (36, 131))).astype(np.int8)
    codes = np.full((1, 7, 131), span, np.uint8)
    q_max = span - 128
    assert_equals_reference(context_of(isa, 1), case, codes=codes, weights=weights, q_max=q_max)


@pytest.mark.parametrize(
    ("span", "low", "high", "form"),
    [
        (255, -8, 7, "vpmaddubsw, 8 summed in int16, int4 in memory"),
        (255, -8, 8, "vpmaddubsw, 8 summed in int16, int8 in memory"),
        (255, -9, 7, "vpmaddubsw, 4 summed in int16, int8 in memory"),
        (255, -16, 16, "vpmaddubsw, 4 summed in int16, int8 in memory"),
        (255, -17, 0, "vpmaddubsw, 2 summed in int16, int8 in memory"),
        (255, 0, 33, "vpmaddwd, int8 in memory"),
        (255, -128, 127, "vpmaddwd, int8 in memory"),
        (63, -128, 127, "vpmaddubsw, 2 summed in int16, int8 in memory"),
        (15, -128, 127, "vpmaddubsw, 8 summed in int16, int8 in memory"),
    ],
)
def test_avx2_sums_as_many_pairs_as_int16_holds(context_of, span, low, high, form):
    weights = np.full((3, 1, 10), low, np.int8)
    weights[0] = high
    assert packed_form(context_of("avx2", 1).pack(weights, span)) == form


@pytest.mark.parametrize(
    ("isa", "largest", "bits", "pairs"),
    [
        ("avx2", 7, 4, 8),
        ("avx2", 16, 8, 4),
        ("avx2", 127, 8, 0),
        ("portable", 7, 4, 0),
        ("amx_emulated", 7, 4, 0),
        ("amx_emulated", 127, 8, 0),
    ],
)
def test_the_form_of_a_product_is_told_as_values(context_of, isa, largest, bits, pairs):
    packed = context_of(isa, 1).pack(np.full((3, 1, 10), largest, np.int8), 255)
    assert product_form(packed) == ProductForm(isa=isa, memory_bits=bits, pairs=pairs)


@pytest.mark.parametrize("isa", ISAS)
def test_int4_weights_take_half_a_byte_each(context_of, isa):
    context = context_of(isa, 1)
    weights = np.full((256, 9, 256), -8, np.int8)
    assert context.pack(weights, 255).nbytes <= weights.size // 2 + 256 * 4 + 256
    weights[0] = 8
    assert context.pack(weights, 255).nbytes <= weights.size + 256 * 4 + 256 + TILE_REACH * isa.startswith("amx")
    assert packed_form(context.pack(weights, 255)).endswith("int8 in memory")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 11, 40])
@pytest.mark.parametrize("bits", [4, 8])
def test_sums_longer_than_a_block_of_weights_are_exact(context_of, isa, rows, bits):
    case = Case(name="", rows=rows, channels=4301, out_channels=35, weight_bits=bits, extras=("bias",))
    assert_equals_reference(context_of(isa, 2), case)


@pytest.mark.parametrize("isa", ISAS)
def test_stored_sums_may_leave_int32_where_canonical_ones_do_not(context_of, isa):
    case = Case(name="", channels=130_000, out_channels=2, weight_bits=8, extreme=True, steps=1)
    zero_point = np.zeros(1, np.int32)
    assert 255 * 128 * 130_000 > 2**31 > 128 * 128 * 130_000
    assert_equals_reference(context_of(isa, 1), case, zero_point=zero_point)


@pytest.mark.parametrize("isa", ISAS)
def test_the_number_of_threads_changes_no_bit(context_of, isa):
    inputs = dataclasses.replace(MIDDLE, rows=300).inputs()
    results = [run(context_of(isa, threads), **inputs)[0].tobytes() for threads in (1, 3, 7)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("isa", ISAS)
def test_bytes_behind_the_channels_of_a_row_do_not_count(context_of, isa):
    inputs = MIDDLE.inputs()
    wide = np.full((1, 9, 76), 255, np.uint8)
    wide[..., :70] = inputs["codes"]
    assert_equals_reference(context_of(isa, 1), MIDDLE)
    expected = run(context_of(isa, 1), **inputs)[0]
    assert run(context_of(isa, 1), **inputs | {"codes": wide})[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("out_channels", [32, 37])
def test_results_and_what_is_added_may_lie_in_wider_tensors(context_of, isa, out_channels):
    case = dataclasses.replace(MIDDLE, batch=2, channels=72, out_channels=out_channels, steps=2, extras=EXTRAS)
    inputs = case.inputs()
    expected, accumulators = int_linear(**inputs)
    y = np.full((2, 9, out_channels + 11), -1, np.float32)
    y[..., 4 : 4 + out_channels] = inputs["previous"]
    residual = np.pad(inputs["residual"], [(0, 0), (0, 0), (0, 5)])
    row = np.pad(inputs["row"], [(0, 0), (0, 3)])
    context = context_of(isa, 1)
    packed = context.pack(inputs["weights"][:, None, :], 255)
    at = {name: inputs[name].ctypes.data for name in ("scale", "zero_point", "weight_scale", "bias", "codes", "step")}
    sums = np.full_like(accumulators, -1)
    args = IntLinearArgs(
        **{"codes": at["codes"], "weights": packed.ctypes.data, "step": at["step"], "batch": 2, "rows": 9},
        **{"channels": 72, "code_pitch": 72, "out_channels": out_channels},
        quantizer=Quantizer(scale=at["scale"], zero_point=at["zero_point"], steps=2, q_min=-128, q_max=127),
        epilogue=Epilogue(
            **{"weight_scale": at["weight_scale"], "bias": at["bias"], "row": row.ctypes.data},
            **{"residual": residual.ctypes.data, "y": y.ctypes.data + 16, "previous": y.ctypes.data + 16},
            **{"row_pitch": row.shape[-1], "residual_pitch": residual.shape[-1], "y_pitch": y.shape[-1]},
        ),
    )
    context.call("int_linear", args)
    np.testing.assert_array_equal(y[..., 4 : 4 + out_channels].view(np.int32), expected.view(np.int32))
    assert (y[..., :4] == -1).all()
    assert (y[..., 4 + out_channels :] == -1).all()
    args.epilogue.y, args.epilogue.previous, args.epilogue.accumulators = None, None, sums.ctypes.data
    context.call("int_linear", args)
    np.testing.assert_array_equal(sums, accumulators)


def test_weights_packed_before_give_the_same(best_context):
    inputs = MIDDLE.inputs()
    packed = best_context.pack(inputs["weights"][:, None, :], 255)
    assert run(best_context, **inputs, packed=packed)[0].tobytes() == run(best_context, **inputs)[0].tobytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codes": np.zeros((1, 9, 70), np.int8)}, r"codes are int8 \(1, 9, 70\), expected uint8"),
        (
            {"codes": np.zeros((1, 9, 69), np.uint8)},
            r"codes are uint8 \(1, 9, 69\), expected .* 70 or more",
        ),
        ({"bias": np.zeros(41, np.float32)}, r"bias is float32 \(41,\), expected contiguous float32 \(40,\)"),
        ({"bias": np.zeros(80, np.float32)[::2]}, r"bias is float32 \(40,\) \(not contiguous\)"),
        ({"step": np.zeros(2, np.int32)}, r"step is int32 \(2,\), expected contiguous int32 \(1,\)"),
        ({"step": np.zeros(1, np.int64)}, r"step is int64"),
        ({"q_max": 128}, r"activation codes are -128..128, the kernel takes at most 8 bits"),
    ],
)
def test_a_wrong_argument_is_refused(best_context, changed, message):
    with pytest.raises(KernelInputError, match=message):
        run(best_context, **MIDDLE.inputs() | changed)


def test_a_step_the_tables_lack_is_refused(best_context):
    inputs = dataclasses.replace(MIDDLE, steps=3).inputs() | {"step": np.array([3], np.int32)}
    with pytest.raises(KernelInputError, match=r"steps are \[3\], expected 0..2"):
        run(best_context, **inputs)


@pytest.mark.parametrize(
    ("weight", "zero_point", "q_max", "reason"),
    [
        (7, [0, 5], 127, ""),
        (7, [-400, 400], 127, ""),
        (-129, [0], 127, "weights are -129..0, the kernel takes -128..127"),
        (7, [0], 128, "activation codes are -128..128, the kernel takes at most 8 bits"),
        (127, [2**22], 127, "sums of 10 products of 4194432 and 127 leave int32"),
    ],
)
def test_supports_says_why_not(weight, zero_point, q_max, reason):
    weights = np.zeros((2, 10), np.int16)
    weights[0] = weight
    assert supports(weights, q_min=-128, q_max=q_max, zero_point=np.array(zero_point)) == reason
