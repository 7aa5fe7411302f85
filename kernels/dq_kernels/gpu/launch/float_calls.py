"""Launches of the float ops that end in codes: quantize, group norm, layer norm, GEGLU."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu.launch.calls import FLOATS, Blank, KernelCall, check_array, dtype_name
from dq_kernels.gpu.launch.weights import Quantizer
from dq_kernels.gpu.tune.configurations import BlockConfiguration, channel_block, next_power

MAX_GROUP_VALUES = 1 << 22
"""Values of one group: their sum of integers up to 2^30 is exact in float64."""
MOST_PARTS = 3
MOST_RESIDENT = 1 << 14
"""Values of a group that 16 warps keep in registers, with its padding: 32 a thread; more may spill."""
MOST_FULL = 40960
"""The same of values of 16 bits that fill their blocks, so that nothing is masked: 80 a thread. On 10.0 and 12.0 that
spills: their rules in the table end at `MOST_RESIDENT`."""
FILLING = 256
"""Programs that fill a GPU: twice the multiprocessors of most."""
VALUES_OF_WARP = 1 << 10
"""Of a resident group: 32 a thread, up to 16 warps."""
LEAST_RESIDENT = 4
"""Channels of a resident block."""
AHEAD = 3
"""Blocks of rows in flight in a pass over x."""

Workspace = Callable[[Blank], Any]
"""Makes an array of a kind; called once a launch list."""


@dataclass(frozen=True, kw_only=True)
class CodeOutput:
    """Where the codes of one part go.

    Attributes:
        quantizer: of the part, with `pre` and `inverse_scale`.
        codes: int8 [batch, rows, pitch]; bytes behind the part's channels become 0.
    """

    quantizer: Quantizer
    codes: Any

    @property
    def channels(self) -> int:
        """Channels of the part."""
        return int(self.quantizer.pre.shape[0])

    @property
    def pitch(self) -> int:
        """Bytes from one row to the next."""
        return int(self.codes.shape[2])

    @property
    def end(self) -> int:
        """First channel behind the part's bytes."""
        return self.quantizer.first + self.pitch


def check_input(x: Any, width: int, step: Any, nan_seen: Any) -> tuple[int, int, int]:
    """Batch, rows and pitch of x [batch, rows, pitch] in a float type.

    Raises:
        KernelInputError: x is narrower than `width` channels, or of another kind; step or nan_seen likewise.
    """
    if len(x.shape) != 3 or int(x.shape[2]) < width or 0 in x.shape:
        raise KernelInputError(
            f"x is {list(x.shape)}, expected [batch, rows, {width} or more channels]; put the channels last"
        )
    batch, rows, pitch = (int(length) for length in x.shape)
    check_array("x", x, FLOATS, (batch, rows, pitch))
    check_array("step", step, ("int32",), (batch,))
    if nan_seen is not None:
        check_array("nan_seen", nan_seen, ("int32",), (1,))
    if batch > 65535:
        raise KernelInputError(f"batch is {batch}, expected at most 65535; split it")
    return batch, rows, pitch


def check_output(output: CodeOutput, batch: int, rows: int, width: int) -> None:
    """Refuse a part that is not within `width` channels, or arrays of another kind.

    Raises:
        KernelInputError: it is one.
    """
    quantizer = output.quantizer
    if quantizer.pre is None or quantizer.inverse_scale is None:
        raise KernelInputError("a quantizer without pre or inverse_scale makes no codes; give both")
    check_array("pre", quantizer.pre, ("float32",), (output.channels,))
    check_array("inverse_scale", quantizer.inverse_scale, ("float32",), (quantizer.steps,))
    check_array("zero_point", quantizer.zero_point, ("int32",), (quantizer.steps,))
    if not (quantizer.first >= 0 and quantizer.first + output.channels <= width and output.channels > 0):
        last = quantizer.first + output.channels
        raise KernelInputError(f"a part has channels {quantizer.first} to {last}, expected within 0 to {width}")
    if len(output.codes.shape) != 3 or output.pitch < output.channels:
        raise KernelInputError(
            f"codes are {list(output.codes.shape)}, expected [{batch}, {rows}, {output.channels} or more]"
        )
    check_array("codes", output.codes, ("int8",), (batch, rows, output.pitch))


def check_y(y: Any, batch: int, rows: int, channels: int) -> int:
    """Pitch of y, `channels` for none.

    Raises:
        KernelInputError: y is narrower or of another kind.
    """
    if y is None:
        return channels
    if len(y.shape) != 3 or int(y.shape[2]) < channels:
        raise KernelInputError(f"y is {list(y.shape)}, expected [{batch}, {rows}, {channels} or more]")
    check_array("y", y, FLOATS, (batch, rows, int(y.shape[2])))
    return int(y.shape[2])


def quantize_calls(
    x: Any, step: Any, output: CodeOutput, *, nan_seen: Any = None, configuration: BlockConfiguration
) -> list[KernelCall]:
    """One launch: codes of channels first .. first + channels of x [batch, rows, pitch].

    Raises:
        KernelInputError: an array is of another kind.
    """
    quantizer = output.quantizer
    batch, rows, pitch = check_input(x, quantizer.first + output.channels, step, nan_seen)
    check_output(output, batch, rows, pitch)
    block_rows, block_channels = blocks_of(configuration, rows, output.pitch)
    arguments = {
        "x": x,
        "codes": output.codes,
        "pre": quantizer.pre,
        "inverse_scale": quantizer.inverse_scale,
        "zero_point": quantizer.zero_point,
        "step": step,
        "nan_seen": nan_seen,
        "rows": rows,
        "x_pitch": pitch,
        "first": quantizer.first,
        "channels": output.channels,
        "code_pitch": output.pitch,
        "steps": quantizer.steps,
        "q_min": quantizer.q_min,
        "q_max": quantizer.q_max,
    }
    grid = (-(-rows // block_rows), -(-output.pitch // block_channels), batch)
    constants = {"BLOCK_ROWS": block_rows, "BLOCK_CHANNELS": block_channels}
    return [one_call("quantize_kernel", grid, arguments, constants, configuration)]


def geglu_quantize_calls(
    x: Any,
    step: Any,
    output: CodeOutput | None,
    *,
    channels: int,
    y: Any = None,
    nan_seen: Any = None,
    configuration: BlockConfiguration,
) -> list[KernelCall]:
    """One launch: y = value * gelu(gate) of x [batch, rows, 2 * channels or more] and its codes.

    Raises:
        KernelInputError: an array is of another kind, or neither y nor codes are asked for.
    """
    batch, rows, pitch = check_input(x, 2 * channels, step, nan_seen)
    y_pitch = check_y(y, batch, rows, channels)
    if output is None and y is None:
        raise KernelInputError("neither y nor codes are asked for; give one of them")
    if output is not None:
        check_output(output, batch, rows, channels)
    part = part_arguments(output)
    width = max(channels, output.end if output is not None else 0)
    block_rows, block_channels = blocks_of(configuration, rows, width)
    arguments = {
        "x": x,
        "y": y,
        **{name: part[name] for name in ("codes", "pre")},
        "inverse_scale": part["inverse"],
        "zero_point": part["zero"],
        "step": step,
        "nan_seen": nan_seen,
        "rows": rows,
        "channels": channels,
        "x_pitch": pitch,
        "y_pitch": y_pitch,
        "first": part["first"],
        "part_channels": part["channels"],
        "code_pitch": part["pitch"],
        "steps": part["steps"],
        "q_min": part["q_min"],
        "q_max": part["q_max"],
    }
    grid = (-(-rows // block_rows), -(-width // block_channels), batch)
    constants = {"BLOCK_ROWS": block_rows, "BLOCK_CHANNELS": block_channels}
    return [one_call("geglu_quantize_kernel", grid, arguments, constants, configuration)]


def layer_norm_quantize_calls(
    x: Any,
    step: Any,
    outputs: Sequence[CodeOutput],
    *,
    gamma: Any,
    beta: Any,
    eps: float,
    y: Any = None,
    nan_seen: Any = None,
    configuration: BlockConfiguration,
) -> list[KernelCall]:
    """One launch: y = layer_norm(x) over the channels of gamma, and the codes of up to three parts.

    Raises:
        KernelInputError: an array is of another kind, or there are too many parts.
    """
    channels, batch, rows, pitch, y_pitch = check_norm(x, step, outputs, gamma, beta, y, nan_seen)
    if channels > MAX_GROUP_VALUES:
        raise KernelInputError(f"a row has {channels} channels, expected at most {MAX_GROUP_VALUES}")
    block_channels = max(16, next_power(max([channels, *(output.end for output in outputs)])))
    block_rows = min(max(1, configuration.elements // block_channels), next_power(rows))
    arguments = {
        **{"x": x, "gamma": gamma, "beta": beta, "y": y, "step": step, "nan_seen": nan_seen},
        **numbered_parts(outputs),
        **{"rows": rows, "channels": channels, "x_pitch": pitch, "y_pitch": y_pitch, "eps_bits": bits_of(eps)},
    }
    constants = {"BLOCK_ROWS": block_rows, "BLOCK_CHANNELS": block_channels}
    grid = (-(-rows // block_rows), batch, 1)
    return [one_call("layer_norm_quantize_kernel", grid, arguments, constants, configuration)]


def group_norm_silu_quantize_calls(
    x: Any,
    step: Any,
    outputs: Sequence[CodeOutput],
    *,
    gamma: Any,
    beta: Any,
    groups: int,
    eps: float,
    silu: bool = True,
    y: Any = None,
    nan_seen: Any = None,
    configuration: BlockConfiguration,
    workspace: Workspace,
) -> list[KernelCall]:
    """One launch of forms "whole" and "resident", five of form "split": see the kernel's module.

    A group that does not fit into registers runs in form "whole" or "split" where "resident" is asked for.

    Raises:
        KernelInputError: an array is of another kind, groups do not divide the channels, or a group is too large.
    """
    channels, batch, rows, pitch, y_pitch = check_norm(x, step, outputs, gamma, beta, y, nan_seen)
    if groups < 1 or channels % groups or rows * (channels // groups) > MAX_GROUP_VALUES:
        raise KernelInputError(
            f"{groups} groups of {channels} channels and {rows} rows, expected a divisor of the channels and at most "
            f"{MAX_GROUP_VALUES} values in a group"
        )
    width = channels // groups
    configuration = with_form(configuration, batch * groups, rows, width, narrow=dtype_name(x) != "float32")
    whole = configuration.form != "split"
    resident = next_power(rows) if configuration.form == "resident" else 0
    left, right = resident_blocks(width) if resident else (0, 0)
    if whole:
        block_channels = max(LEAST_RESIDENT if resident else 16, next_power(width))
        block_rows = min(max(1, configuration.elements // block_channels), next_power(rows))
        grid, words = (groups, batch, 1), None
        tail = tail_of(outputs)
    else:
        extent = max([channels, *(output.end for output in outputs)])
        block_rows, block_channels = blocks_of(configuration, rows, extent)
        grid = (-(-rows // block_rows), -(-extent // block_channels), batch)
        words, tail = workspace(Blank((3 * batch * groups,), "int64")), 0
    arguments = {
        **{"x": x, "gamma": gamma, "beta": beta, "y": y, "step": step, "nan_seen": nan_seen, "workspace": words},
        **numbered_parts(outputs),
        **{"rows": rows, "channels": channels, "groups": groups, "x_pitch": pitch, "y_pitch": y_pitch},
        "eps_bits": bits_of(eps),
    }
    blocks = {"BLOCK_ROWS": block_rows, "BLOCK_CHANNELS": block_channels}
    constants = {"SILU": silu, "WHOLE_GROUPS": whole, "RESIDENT": resident, "LEFT": left, "RIGHT": right}
    constants["FULL"] = (resident, left + right) == (rows, width)
    constants |= {**blocks, "AHEAD": AHEAD, "TAIL": tail}
    last = one_call("group_norm_silu_quantize_kernel", grid, arguments, constants, configuration)
    if whole:
        return [last]
    return [*statistics_calls(arguments, configuration, batch, blocks), last]


def tail_of(outputs: Sequence[CodeOutput]) -> int:
    """Columns of zeros that a program writes behind the last channels, a power of 2; 0 for none."""
    behind = max([0, *(output.pitch - output.channels for output in outputs)])
    return next_power(behind) if behind else 0


def resident_blocks(width: int) -> tuple[int, int]:
    """Channels of the one or two blocks, powers of 2, that hold a group in registers: 8 and 2 for 10, 16 for 13."""
    left = max(LEAST_RESIDENT, next_power(width + 1) // 2)
    right = next_power(width - left) if width > left else 0
    return (left, right) if left + right < next_power(width) else (max(LEAST_RESIDENT, next_power(width)), 0)


def with_form(
    configuration: BlockConfiguration, count: int, rows: int, width: int, *, narrow: bool
) -> BlockConfiguration:
    """The configuration of `count` groups of `rows` x `width` values: warps by their size where they stay in registers.

    Groups that do not fit there take another form: "whole" where they fill a GPU, else "split".
    """
    if configuration.form != "resident":
        return configuration
    kept = next_power(rows), sum(resident_blocks(width))
    values = kept[0] * kept[1]
    if values <= (MOST_FULL if narrow and kept == (rows, width) else MOST_RESIDENT):
        return replace(configuration, warps=min(16, max(4, next_power(values // VALUES_OF_WARP))))
    if count >= FILLING:
        return replace(configuration, form="whole")
    return replace(configuration, form="split", elements=1024, warps=4, chunk=8)


def statistics_calls(
    arguments: dict[str, Any], configuration: BlockConfiguration, batch: int, blocks: dict[str, int]
) -> list[KernelCall]:
    """All launches of form "split" but the last."""
    rows, channels, words = arguments["rows"], arguments["channels"], arguments["workspace"]
    count = int(words.shape[0])
    clear = {"workspace": words, "words": count}
    calls = [one_call("clear_kernel", (-(-count // 256), 1, 1), clear, {"BLOCK": 256}, configuration)]
    names = ("x", "workspace", "rows", "channels", "groups", "x_pitch")
    grid = (-(-rows // (blocks["BLOCK_ROWS"] * configuration.chunk)), -(-channels // blocks["BLOCK_CHANNELS"]), batch)
    own = {name: arguments[name] for name in names}
    for number in (1, 2, 3):
        constants = {"PASS": number, **blocks, "STEPS": configuration.chunk, "AHEAD": AHEAD}
        calls.append(one_call("statistics_kernel", grid, own, constants, configuration))
    return calls


def check_norm(
    x: Any, step: Any, outputs: Sequence[CodeOutput], gamma: Any, beta: Any, y: Any, nan_seen: Any
) -> tuple[int, int, int, int, int]:
    """Channels, batch, rows and the two pitches of a normalisation.

    Raises:
        KernelInputError: an array is of another kind, there are too many parts, or nothing is asked for.
    """
    channels = int(gamma.shape[0])
    check_array("gamma", gamma, ("float32",), (channels,))
    check_array("beta", beta, ("float32",), (channels,))
    batch, rows, pitch = check_input(x, channels, step, nan_seen)
    y_pitch = check_y(y, batch, rows, channels)
    if len(outputs) > MOST_PARTS or (not outputs and y is None):
        raise KernelInputError(f"{len(outputs)} code outputs and {'no ' if y is None else ''}y, expected y or 1 to 3")
    for output in outputs:
        check_output(output, batch, rows, channels)
    return channels, batch, rows, pitch, y_pitch


def part_arguments(output: CodeOutput | None) -> dict[str, Any]:
    """Arguments of one part; without one, arrays that are None and numbers that are never read."""
    if output is None:
        arrays = dict.fromkeys(("codes", "pre", "inverse", "zero"))
        return {**arrays, "steps": 1, "first": 0, "channels": 16, "pitch": 16, "q_min": 0, "q_max": 1}
    quantizer = output.quantizer
    return {
        **{"codes": output.codes, "pre": quantizer.pre},
        **{"inverse": quantizer.inverse_scale, "zero": quantizer.zero_point, "steps": quantizer.steps},
        **{"first": quantizer.first, "channels": output.channels, "pitch": output.pitch},
        **{"q_min": quantizer.q_min, "q_max": quantizer.q_max},
    }


def numbered_parts(outputs: Sequence[CodeOutput]) -> dict[str, Any]:
    """Arguments of three parts, their names ending in _0, _1 and _2."""
    padded = [*outputs, *[None] * (MOST_PARTS - len(outputs))]
    return {f"{name}_{i}": value for i, part in enumerate(padded) for name, value in part_arguments(part).items()}


def blocks_of(configuration: BlockConfiguration, rows: int, width: int) -> tuple[int, int]:
    """Rows and channels of a block of at most the configuration's elements."""
    block_channels = channel_block(width, min(256, configuration.elements))
    return min(max(1, configuration.elements // block_channels), next_power(rows)), block_channels


def bits_of(eps: float) -> int:
    """The float64 as a signed integer of 64 bits: kernels get it exactly."""
    return int(struct.unpack("<q", struct.pack("<d", eps))[0])


def one_call(
    kernel: str, grid: tuple[int, int, int], arguments: dict[str, Any], constants: dict[str, Any], given: Any
) -> KernelCall:
    """A launch of the warps a configuration asks for; these kernels have no pipeline."""
    return KernelCall(kernel=kernel, grid=grid, arguments=arguments, constants=constants, warps=given.warps, stages=1)
