"""What an engine makes of the bits and options asked for, said before hours of training."""

from __future__ import annotations

from dq_deploy.errors import OptionError
from dq_deploy.methods import DmqOptions, SharedOptions
from dq_deploy.open_engine import ENGINES

ONE_WEIGHT_SET = tuple(name for name in ENGINES if name != "native")
"""Engines whose form holds one weight set a layer."""


def check_engine(options: SharedOptions, engine: str) -> tuple[str, ...]:
    """What the engine cannot run in integers of what the options ask for; empty where it runs everything.

    Weights and activations of 2 to 8 bits run in integers on every engine: fewer than 8 are held in 8 bits, or in 4
    where the engine has such a product. Other bits are refused by the options themselves.

    Args:
        options: of the method.
        engine: one of `dq_deploy.open_engine.ENGINES`.

    Returns:
        Remarks, one sentence each: layers that would run in float.

    Raises:
        OptionError: an unknown engine; or nothing of what is asked for would be in integers or in few bits there.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    if options.has_weight_only and engine == "native":
        only = options.activation_bits > 8 and not options.layer_bits
        words = "holds weight-only layers (16-bit activations) as float32 weights"
        if only:
            raise OptionError(
                f"engine native {words}: nothing would be quantized; choose activations of 2 to 8 bits, or another "
                "engine"
            )
        return (f"engine native {words}",)
    by_step = isinstance(options, DmqOptions) and options.uses("power-of-two") and options.power_of_two == "per-group"
    if by_step and engine in ONE_WEIGHT_SET:
        return (
            f'on {engine} skip convolutions whose weights differ by step run in float: `engine="native"` runs them in '
            "integers, power_of_two one-vote gives every engine one weight set",
        )
    return ()
