"""What an engine lacks is said of the options, before training; 2 to 8 bits it runs."""

from __future__ import annotations

import pytest

from dq_deploy.comparison import check_engine
from dq_deploy.errors import OptionError
from dq_deploy.methods import METHODS, options_for
from dq_deploy.open_engine import ENGINES


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [(2, 2), (3, 5), (8, 8)])
def test_integer_layers_of_two_to_eight_bits_have_no_remark(engine: str, bits: tuple[int, int]) -> None:
    for method in METHODS:
        options = options_for(method=method, weight_bits=bits[0], activation_bits=bits[1])
        assert check_engine(options, engine) == ()


def test_weight_only_layers_are_refused_for_the_native_engine_alone() -> None:
    options = options_for(method="minmax", weight_bits=4, activation_bits=16)
    with pytest.raises(OptionError, match="nothing would be quantized"):
        check_engine(options, "native")
    assert check_engine(options, "onnxruntime") == ()
    some = options_for(method="minmax", layer_bits={"mid*": (4, 16)})
    assert "float32 weights" in check_engine(some, "native")[0]


def test_weights_that_differ_by_step_are_float_on_library_engines() -> None:
    options = options_for(method="dmq", power_of_two="per-group")
    assert "run in float" in check_engine(options, "openvino")[0]
    assert check_engine(options, "native") == ()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(OptionError, match="engine is 'tvm'"):
        check_engine(options_for(), "tvm")
