"""Batches in pieces that fit: what autograd keeps is counted, gradients are those of the whole, one input too large is
refused by name."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from dq_deploy.errors import OptionError
from dq_deploy.methods.progress import silent
from dq_deploy.methods.training import block_reconstruction
from dq_deploy.methods.training.block_reconstruction import BlockReconstruction, train_block
from dq_deploy.methods.training.pieces import BACKWARD, Kept, Pieces, computed_again, kept_by, pieces_that_fit
from dq_deploy.methods.training.reconstruction import bkd_settings, fbr_settings
from tests.methods.training.test_block_reconstruction import DILATEQUANT, OPTIONS, beginning

KIB = 1 << 10


def layers_of(count: int) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU()) for _ in range(count)])


def test_what_is_kept_of_one_input_is_counted_whatever_is_kept_once() -> None:
    module = layers_of(3)
    x = torch.randn(8, 256)
    kept = kept_by(lambda count: module(x[:count]).square().sum())
    # of each layer its input and what enters the GELU, of 1 KiB each; the weights of two, of 256 KiB each, and the sum
    assert kept.each == pytest.approx(7 * KIB, abs=2 * KIB)
    assert kept.fixed == pytest.approx(2 * 256 * KIB, rel=0.6)


def test_computed_again_keeps_less_and_gives_the_same_gradients() -> None:
    module = layers_of(6)
    x = torch.randn(4, 256, requires_grad=True)
    whole = kept_by(lambda count: module(x[:count]).square().sum())
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    with computed_again(list(module)):
        less = kept_by(lambda count: module(x[:count]).square().sum(), list(module))
        (got,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(got, expected)
    assert less.each < 0.7 * whole.each
    assert all("forward" not in child.__dict__ for child in module)


def test_the_largest_piece_that_fits_is_taken_then_values_are_computed_again_then_it_is_refused() -> None:
    def fit(limit: float) -> Pieces:
        return pieces_that_fit(
            lambda again: Kept(fixed=10, each=20 if again else 100),
            batch=32,
            limit_bytes=limit * BACKWARD,
            what="block a",
            share="half",
            memory_gib=2.0,
        )

    assert fit(10_000) == Pieces(size=32, again=False)
    assert fit(10 + 3 * 100) == Pieces(size=3, again=False)
    assert fit(10 + 2 * 20) == Pieces(size=2, again=True)
    with pytest.raises(
        OptionError, match=r"memory_gib is 2, expected at least 2.96: training block a keeps .* half of it"
    ):
        fit(20)


def trained(size: int, again: bool, method: str) -> list[np.ndarray]:
    settings = bkd_settings(DILATEQUANT) if method == "dilatequant" else fbr_settings(OPTIONS)
    settings = replace(settings, iterations=3, layer_loss=0.0)
    engine = BlockReconstruction(*beginning(), OPTIONS, settings, silent)
    found = engine.run(None) if size == settings.batch and not again else None
    if found is None:

        def in_pieces(*args: object, **kwargs: object) -> None:
            block = args[0]
            for layer in block.layers.values():  # type: ignore[attr-defined]
                layer.again = again
            train_block(*args, **{**kwargs, "pieces": Pieces(size=size, again=again)})  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_reconstruction, "train_block", in_pieces)
            found = engine.run(None)
    return [part.scale for layer in found.layers.values() for part in layer.parts]


@pytest.mark.parametrize(("size", "again"), [(3, False), (8, True)])
def test_pieces_and_values_computed_again_train_the_same(size: int, again: bool) -> None:
    for whole, other in zip(trained(8, False, "dilatequant"), trained(size, again, "dilatequant"), strict=True):
        np.testing.assert_allclose(other, whole, rtol=1e-3)


def test_values_that_are_dropped_are_dropped_again_on_the_way_back() -> None:
    for whole, other in zip(trained(8, False, "eda-dm"), trained(8, True, "eda-dm"), strict=True):
        np.testing.assert_array_equal(other, whole)


def test_what_was_measured_is_not_held():
    """A tensor that is kept of its own operation would keep itself, for no collector sees such a cycle."""
    weight = torch.nn.Parameter(torch.ones(8, 8))
    made = []

    def run(count):
        y = (weight[:count] * 2).exp()  # keeps its result
        made.append(weakref.ref(y))
        return y.sum()

    kept_by(run)
    assert [one() for one in made] == [None, None]
