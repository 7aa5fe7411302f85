"""Packed weights give back what was packed, for every instruction set; another head than packing writes is refused."""

from __future__ import annotations

import ctypes as c

import numpy as np
import pytest
from dq_kernels.cpu.library import KernelInputError, aligned_empty, pack_weights
from dq_kernels.cpu.stored import check_stored, columns_of, layout_sha256, unpacked
from dq_kernels.cpu.structs import ISAS, PackedHead

SHAPES = ((37, 9, 13), (1, 1, 1), (64, 1, 64))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("low", "high"), [(-128, 128), (-8, 8), (-2, 2), (-60, 60)])
def test_what_was_packed_comes_back(isa, low, high):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        weights = rng.integers(low, high, shape).astype(np.int8)
        for zero in (None, rng.integers(-5, 300, shape[0]).astype(np.int32)):
            for span in (15, 255):
                packed = pack_weights(isa, weights, span, zero)
                known = {
                    "isa": isa,
                    "columns": columns_of(isa),
                    "layer": shape,
                    "span": span,
                    "zeros": zero is not None,
                }
                check_stored(packed, **known)
                np.testing.assert_array_equal(unpacked(packed), weights)


@pytest.mark.parametrize("field", [name for name, _ in PackedHead._fields_])
def test_another_field_of_the_head_is_refused(field):
    packed = pack_weights("portable", np.full((9, 1, 8), 100, np.int8), 255)
    for change in (1, -1, 1 << 20):
        bad = aligned_empty(packed.shape, np.uint8)
        bad[:] = packed
        head = PackedHead.from_address(bad.ctypes.data)
        setattr(head, field, getattr(head, field) + change)
        if field == "bits" and getattr(head, field) == 7:
            continue  # as wide in memory as 8
        with pytest.raises(KernelInputError):
            check_stored(bad, isa="portable", columns=columns_of("portable"), layer=(9, 1, 8), span=255, zeros=False)


def test_other_lengths_and_unaligned_memory_are_refused():
    packed = pack_weights("avx2", np.ones((9, 1, 8), np.int8), 255)
    known = {"isa": "avx2", "columns": columns_of("avx2"), "layer": (9, 1, 8), "span": 255, "zeros": False}
    check_stored(packed, **known)
    moved = aligned_empty((packed.size + 64,), np.uint8)[1 : packed.size + 1]
    moved[:] = packed
    for bad in (packed[:-64], packed[:32], np.concatenate([packed, packed[:64]]), moved):
        with pytest.raises(KernelInputError):
            check_stored(bad, **known)


def test_every_instruction_set_that_packs_alike_says_so():
    names = {isa: layout_sha256(isa) for isa in ISAS}
    assert names["avx512_vnni"] != names["avx2"] != names["portable"]
    assert names == {isa: layout_sha256(isa) for isa in ISAS}
    assert c.sizeof(PackedHead) == 96
