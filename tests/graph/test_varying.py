"""Which sizes may vary follows from what the tracer took for granted of them."""

from __future__ import annotations

from dq_deploy.graph.varying import Guard, SizeTexts, VaryingSizes, admitted, size_at

SIZES = {"B": 2, "height": 16, "width": 24, "tokens": 7}


def guard(names, holds, place=""):
    return Guard(names=frozenset(names), holds=holds, place=place)


def test_a_size_that_no_guard_speaks_of_may_be_any():
    assert admitted(SIZES, []).multiples == {}
    assert admitted(SIZES, []).fixed == {}


def test_a_size_that_is_halved_twice_is_a_multiple_of_four():
    found = admitted(SIZES, [guard(["height"], lambda at: at["height"] % 4 == 0)])
    assert found.multiples == {"height": 4}
    assert found.fixed == {}


def test_a_size_that_python_compared_is_fixed_with_the_place():
    found = admitted(
        SIZES, [guard(["height"], lambda at: at["height"] // 2 == 8, "embeddings.py in forward: if a != b")]
    )
    assert list(found.fixed) == ["height"]
    assert found.notes == (
        "height is fixed at 16: the model computes with it in Python, embeddings.py in forward: if a != b",
    )
    assert found.shape(("B", 4, "height", "width")) == ("B", 4, 16, "width")


def test_sizes_of_a_picture_and_of_its_half_change_together():
    sizes = {**SIZES, "height_2": 8}
    halved = guard(["height", "height_2"], lambda at: at["height"] // 2 == at["height_2"] and at["height"] % 2 == 0)
    found = admitted(sizes, [halved])
    assert found.multiples == {"height": 2}
    assert found.fixed == {}


def test_a_size_fixed_through_a_product_fixes_both_and_not_the_batch():
    tokens = guard(["B", "height", "width"], lambda at: at["B"] * at["height"] * at["width"] // 384 == at["B"])
    found = admitted(SIZES, [tokens])
    assert set(found.fixed) == {"height", "width"}


def test_equal_sizes_get_one_text():
    texts = SizeTexts(
        VaryingSizes(traced={"height": 16, "width": 24}, multiples={"height": 2}), {"s1": "height", "s2": "width"}
    )
    assert texts("2*(((s1 - 1)//2)) + 2") == "height"
    assert texts("(((s1 - 1)//2)) + 1") == "height//2"
    assert texts("(((s2 - 1)//2)) + 1") == "(((width - 1)//2)) + 1"  # a width may be odd
    assert texts("s1*s2") == "height*width"


def test_a_text_is_a_number_at_given_sizes():
    assert size_at("2*(((height - 1)//2)) + 2", {"height": 16}) == 16
    assert size_at("Max(1, height)", {"height": 16}) == 16
    assert size_at("height", {}) is None
    assert size_at(5, {}) == 5
    assert size_at(None, {}) is None
