"""The sizes that a proof takes besides those of calibration, and those that are asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from dq_deploy.engines.base import Runner, TensorSpec
from dq_deploy.errors import InputError, OptionError
from dq_deploy.models import build_denoiser, default_call, example_inputs, input_specs
from dq_deploy.numerics.arrays import Array
from dq_deploy.record import Call, CallInput
from dq_deploy.verify.other_sizes import other_sizes
from tests.manifests import engine_manifest
from tests.tiny import tiny_conditional_config

CONFIG = tiny_conditional_config()
CALL = default_call(CONFIG, {"height": 8, "width": 8, "tokens": 9})


class Echo(Runner):
    """An engine that takes the inputs of a call and gives nothing."""

    engine = "echo"

    def __init__(self, call: Call, **said: object) -> None:
        super().__init__(engine_manifest(sizes=dict(call.sizes), **said), finite_check=False)
        self.inputs = tuple(
            TensorSpec(name=spec.name, dtype=np.dtype(spec.dtype), shape=spec.shape) for spec in input_specs(call)
        )

    @property
    def version(self) -> str:
        return "1"

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {}

    def _free(self) -> None:
        pass


@pytest.fixture(scope="module")
def module():
    return build_denoiser("unet2d_condition", CONFIG, device="meta")


def test_the_other_sizes_are_smaller_than_the_calls_and_fit_their_multiples(module):
    (sizes,) = other_sizes(CALL, Echo(CALL, multiples={"height": 4, "width": 4}), module).sizes
    assert sizes == {"height": 4, "width": 8, "tokens": 3}


def test_no_second_size_where_the_model_takes_none_and_the_reason(module):
    found = other_sizes(CALL, Echo(CALL, multiples={"height": 8, "width": 8, "tokens": 9}), module)
    assert found.sizes == ()
    assert found.note == "no second size was proven: none is smaller"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"depth": 4}, "depth does not vary in this engine; what varies is height .usually 8., width"),
        ({"height": 6}, "height got 6, expected a multiple of 4"),
    ],
)
def test_a_size_that_the_engine_does_not_take_is_refused(asked, said):
    with pytest.raises(OptionError, match=said):
        Echo(CALL, multiples={"height": 4}).sizes_with(asked)


def test_sizes_asked_for_stand_beside_the_usual_ones():
    assert Echo(CALL).sizes_with({"tokens": 5}) == {"height": 8, "width": 8, "tokens": 5}


def test_a_size_that_two_inputs_name_is_the_same_in_both():
    call = Call(
        inputs=(
            CallInput(name="hidden_states", dtype="float32", shape=("B", "image_tokens", 4)),
            CallInput(name="timestep", dtype="float32", shape=("B",)),
            CallInput(name="img_ids", dtype="float32", shape=("image_tokens", 3)),
        ),
        sizes={"image_tokens": 6},
        outputs={"output": ("B", "image_tokens", 4)},
    )
    feeds = example_inputs(call, 2, 0)
    assert Echo(call).run(feeds) == {}
    with pytest.raises(InputError, match="img_ids has the size image_tokens 5, expected 6 as input hidden_states"):
        Echo(call).run({**feeds, "img_ids": feeds["img_ids"][:5]})
