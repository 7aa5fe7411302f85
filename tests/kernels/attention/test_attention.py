"""Attention against float64, and the same bits for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from dq_kernels.attention import run
from dq_kernels.attention.cases import TEST_CASES, Case
from dq_kernels.attention.reference import attention
from dq_kernels.cpu.library import Context, KernelInputError, known_isas, library
from dq_kernels.cpu.structs import EMULATED
from hypothesis import given, settings
from hypothesis import strategies as st


def assert_close(got, inputs):
    """float32 scores are off by about 2^-24 of q.k's size, a weight by as much as its score."""
    wanted = attention(**inputs)
    scores = np.abs(inputs["q"]).max() * np.abs(inputs["k"]).max() * inputs["q"].shape[-1] ** 0.5
    allowed = np.abs(inputs["v"]).max() * (4e-6 + 1e-7 * scores)
    assert np.abs(got - wanted).max() <= allowed


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_a_case_is_close_to_float64(each_context, case):
    inputs = case.inputs()
    assert_close(run(each_context, **inputs), inputs)


@given(
    st.builds(
        Case,
        name=st.just(""),
        batch=st.integers(1, 3),
        rows=st.integers(1, 40),
        kv_rows=st.integers(1, 300),
        heads=st.integers(1, 3),
        head_dim=st.integers(1, 70),
        spread=st.sampled_from([0.1, 1.0, 20.0]),
        seed=st.integers(0, 1000),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_shape_is_close_to_float64(case):
    inputs = case.inputs()
    with Context(1, known_isas()[-1]) as context:
        assert_close(run(context, **inputs), inputs)


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("case", [c for c in TEST_CASES if c.name in ("many-rows", "several-blocks", "wide-head")])
def test_the_number_of_threads_changes_no_bit(case, isa, context_of):
    inputs = case.inputs()
    one, three, seven = (run(context_of(isa, threads), **inputs).tobytes() for threads in (1, 3, 7))
    assert one == three == seven


def test_queries_keys_and_values_may_be_slices_of_one_array(best_context):
    joint = np.random.default_rng(0).standard_normal((2, 50, 3, 2, 24)).astype(np.float32)
    q, k, v = (joint[:, :, i] for i in range(3))
    assert_close(run(best_context, q, k, v), {"q": q, "k": k, "v": v})


def test_a_key_that_towers_over_all_others_is_chosen(best_context):
    q = np.full((1, 3, 1, 4), 100.0, np.float32)
    k = np.zeros((1, 700, 1, 4), np.float32)
    k[0, 650] = 100.0
    v = np.arange(700 * 4, dtype=np.float32).reshape(1, 700, 1, 4)
    assert np.array_equal(run(best_context, q, k, v), np.broadcast_to(v[:, 650:651], (1, 3, 1, 4)))


def test_a_nan_reaches_the_rows_that_use_it_and_no_other(each_context):
    inputs = TEST_CASES[1].inputs()
    inputs["q"][0, 5, 1, 3] = np.nan
    got = run(each_context, **inputs)
    assert np.isnan(got[0, 5, 1]).all()
    assert np.isnan(got).sum() == got.shape[-1]


def rounded_to_bfloat16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def within_bfloat16(got, inputs):
    """From float64 on rounded operands: numerators are off by 2^-9, exponentials by 9e-5, scores by their last bits."""
    q, k, v = (rounded_to_bfloat16(inputs[name]) for name in "qkv")
    log2 = np.float32(1.44269504)
    scaled = rounded_to_bfloat16(inputs["q"] * np.float32(np.float32(q.shape[-1] ** -0.5) * log2)).astype(np.float64)
    wanted = attention(scaled / float(log2), k, v, scale=1.0)
    scores = np.abs(scaled).max() * np.abs(k).max() * q.shape[-1] ** 0.5
    assert np.abs(got - wanted).max() <= np.abs(v).max() * (2**-9 + 1.8e-4 + 1e-6 * scores)


@pytest.mark.parametrize("case", TEST_CASES, ids=lambda c: c.name)
def test_bfloat16_is_attention_of_rounded_operands_on_every_instruction_set(each_context_of_products, case):
    inputs = case.inputs()
    within_bfloat16(run(each_context_of_products, **inputs, precision="bf16"), inputs)


def test_the_emulated_tiles_sum_bfloat16_as_amx_does(context_of):
    tiles, emulated = context_of("amx", 1), context_of(EMULATED, 1)
    if "tdpbf16ps" not in tiles.attention_form("bf16"):
        pytest.skip("this CPU has no bfloat16 tiles")
    rng = np.random.default_rng(0)
    q = np.zeros((1, 20, 1, 40), np.float32)  # so that no exponential is taken: all numerators are 1
    k, v = (rng.standard_normal((1, 300, 1, 40)).astype(np.float32) * np.float32(scale) for scale in (1, 1e3))
    got, wanted = (run(context, q, k, v, precision="bf16") for context in (tiles, emulated))
    assert got.tobytes() == wanted.tobytes()


@given(
    st.builds(
        Case,
        name=st.just(""),
        rows=st.integers(1, 40),
        kv_rows=st.integers(1, 600),
        heads=st.integers(1, 2),
        head_dim=st.integers(1, 300),
        spread=st.sampled_from([0.1, 1.0, 20.0]),
        seed=st.integers(0, 1000),
    )
)
@settings(max_examples=40, deadline=None)
def test_bfloat16_takes_any_shape(case):
    inputs = case.inputs()
    with Context(1, known_isas()[-1]) as context:
        within_bfloat16(run(context, **inputs, precision="bf16"), inputs)


@pytest.mark.parametrize("isa", known_isas())
def test_bfloat16_products_of_small_whole_numbers_are_exact(isa, context_of):
    rng = np.random.default_rng(0)
    q = np.zeros((1, 20, 1, 9), np.float32)  # even weights: the mean of the values
    k = rng.standard_normal((1, 64, 1, 9)).astype(np.float32)
    v = rng.integers(-100, 100, (1, 64, 1, 9)).astype(np.float32)
    got = run(context_of(isa, 1), q, k, v, precision="bf16")
    assert np.abs(got - v.mean(1, keepdims=True)).max() <= 1e-4


@pytest.mark.parametrize("isa", known_isas())
@pytest.mark.parametrize("case", [c for c in TEST_CASES if c.name in ("many-rows", "several-blocks", "wide-head")])
def test_the_number_of_threads_changes_no_bit_of_bfloat16(case, isa, context_of):
    inputs = case.inputs()
    one, three, seven = (run(context_of(isa, n), **inputs, precision="bf16").tobytes() for n in (1, 3, 7))
    assert one == three == seven


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_whether_packed_keys_fit_the_scratch_changes_no_bit(precision, context_of):
    """One thread takes all rows at once, and has no room for the keys beside them; of seven each has."""
    inputs = Case(name="many keys", rows=192, kv_rows=14848, head_dim=64).inputs()
    one, seven = (run(context_of(known_isas()[-1], n), **inputs, precision=precision).tobytes() for n in (1, 7))
    assert one == seven


def test_a_query_in_bfloat16_does_not_depend_on_those_beside_it(each_context_of_products):
    """Scores of some rise far above the first block's, one is a NaN: each has the bits that it has alone."""
    inputs = Case(name="rising", rows=40, kv_rows=200, head_dim=24).inputs()
    inputs["k"] *= np.linspace(0.1, 40, 200, dtype=np.float32)[None, :, None, None]
    inputs["q"][0, 3] = np.nan
    got = run(each_context_of_products, **inputs, precision="bf16")
    for row in (2, 4, 39):
        alone = {**inputs, "q": inputs["q"][:, row : row + 1]}
        assert run(each_context_of_products, **alone, precision="bf16").tobytes() == got[:, row : row + 1].tobytes()
    inputs["q"][0, 3] = 0
    within_bfloat16(run(each_context_of_products, **inputs, precision="bf16"), inputs)


def test_a_nan_or_a_denormal_is_not_lost_in_bfloat16(each_context_of_products):
    inputs = TEST_CASES[1].inputs()
    inputs["q"][0, 5, 1, 3] = np.nan
    inputs["v"][1] *= np.float32(1e-40)  # denormals, which bfloat16 multiplies as zeros
    got = run(each_context_of_products, **inputs, precision="bf16")
    assert np.isnan(got[0, 5, 1]).all()
    assert np.isnan(got).sum() == got.shape[-1]
    assert np.abs(got[1]).max() <= 1e-38


def test_a_context_says_what_multiplies(each_context_of_products):
    context = each_context_of_products
    ours, tiles = library(), context.isa == "amx" and library().dq_has_bfloat16_tiles()
    assert context.attention_form("float32") == "float32 multiply-adds"
    integers = {"portable": "multiplications in C", "avx2": "vpmaddwd", "avx_vnni": "vpmaddwd"}
    integers |= {"amx": "tdpbusd" if tiles else "vpdpbusd", EMULATED: "tdpbusd in plain C++"}
    assert context.attention_form("int8") == integers.get(context.isa, "vpdpbusd")
    narrow = context.attention_form("bf16")
    assert (narrow == "tdpbf16ps") == bool(tiles)
    assert (narrow == "vdpbf16ps") == bool(
        context.isa in ("avx512_vnni", "amx") and ours.dq_has_bfloat16() and not tiles
    )
    assert (narrow == "tdpbf16ps in plain C++") == (context.isa == EMULATED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "precision is 'fp8', expected one of float32, bf16"),
    ],
)
def test_a_precision_there_is_none_of_is_refused(best_context, change, message):
    inputs = TEST_CASES[0].inputs()
    with pytest.raises(KernelInputError, match=message):
        run(best_context, **inputs, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((1, 2, 1, 4))}, "q is float64"),
        ({"v": np.zeros((1, 6, 1, 4), np.float32)}, r"k is \(1, 5, 1, 4\) and v is \(1, 6, 1, 4\)"),
        ({"k": np.zeros((1, 0, 1, 4), np.float32)}, "k is empty"),
        ({"q": np.zeros((1, 2, 1, 8), np.float32)[..., ::2]}, "channels 8 bytes apart"),
    ],
)
def test_bad_input_is_one_clear_line(best_context, change, message):
    good = {n: np.zeros((1, r, 1, 4), np.float32) for n, r in (("q", 2), ("k", 5), ("v", 5))}
    with pytest.raises(KernelInputError, match=message):
        run(best_context, **(good | change))
