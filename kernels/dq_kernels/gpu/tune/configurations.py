"""Block sizes of every kernel by shape class and architecture: a table of rules, the first that fits is used.

The defaults in `configurations.json` are reasoned, not measured: no kernel has run on a GPU yet. `dq-tune` measures on
the machine at hand and writes a table of the same form. With the environment variable DQ_KERNELS_TILES its rules stand
in front of these, wherever a kernel is launched or compiled.

What they are reasoned from, for int8 products with a tile of BM x BN x BK bytes:

- L2 bytes: BK * (BM + BN) a step for BM * BN * BK products. 128 x 128 does 64 products a byte, 64 x 64 32.
  sm_80: 312e12 products/s over about 5e12 B/s of L2 ask for 62, sm_89: 330e12 over 5e12 for 66, sm_90: 990e12 over
  5.5e12 for 180. So large shapes want 128 x 128, on sm_90 more, but see the registers.
- Shared memory: stages * BK * (BM + BN), W4 half of it for the weights. 128 x 128 x 128: 32 KiB a stage. A program may
  have 163 KiB on sm_80, 99 KiB on sm_86, 89 and 120, 227 KiB on sm_90 and 100. Three stages of 128 bytes (96 KiB, of
  which the compiler keeps 64 on sm_80) or four of 64 bytes (64 KiB) fit everywhere.
- Registers: BM * BN / (32 * warps) accumulators a thread; 128 x 128 with 8 warps is 64, and 170 to 205 registers in
  all, with the epilogue. Tiles of 256 x 128 with 8 warps have 128: their epilogue goes over half of the columns at a
  time (`product_calls.parts_of`), else it spills. 180 to 221 registers, so one program a multiprocessor: `tune` tries
  them, the default table does not.
- Waves: 128 x 128 tiles of SD 1.5's 64x64 layers at batch 2 (8192 rows, 320 columns) are 192 for 132 SMs and waste
  17 % of the columns; 128 x 64 tiles are 320, waste nothing, and two programs of 4 warps fit on an SM.
- Few tiles (8x8 and 16x16 layers, 128 to 512 rows): the K loop is split over as many programs as fill the GPU
  (`splits` 0: chosen by `splits_for`), each with at least 4 steps; integer sums make the result the same bits.
- Float ops: 16 values a thread at most (geglu 80 registers, layer norm 72 to 96), 8 in the last kernel of a split group
  norm, where 16 take 167 registers and 8 take 95: memory waits want many threads there.
- Weights first (W . A^T): weights are the operand that comes from registers. Unpacked int4 needs that on sm_90; on the
  others it costs 35 % fewer instructions in the loop too, and W8 epilogues have fewer registers with it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq_kernels.cpu.library import KernelInputError
from dq_kernels.gpu import ARCHITECTURES

Table = Sequence[Mapping[str, Any]]
"""Rules in order, as a file of configurations holds them."""
TABLE_FILE = Path(__file__).with_name("configurations.json")
TILES_VARIABLE = "DQ_KERNELS_TILES"
"""Environment variable with a table of one's own, as dq-tune writes it."""
FORMAT = 1
MIN_CAPABILITY = (8, 0)
SM_COUNT = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
"""Multiprocessors of the A100, A10/3080, 4090, H100/H200, B200 and 5090: what `splits_for` fills."""
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory one program may have (CUDA C++ programming guide, technical specifications)."""
MAX_SPLITS = 16


@dataclass(frozen=True, kw_only=True)
class ProductConfiguration:
    """Of int_linear and int_conv2d.

    Attributes:
        block_m: rows of a tile.
        block_n: columns (output channels) of a tile.
        block_k: bytes of a weight row in one step, at least 32: as many channels with W8, twice as many with W4.
        warps: of a program.
        stages: steps in flight.
        group_m: tiles of rows before the next tile of columns.
        splits: parts of the K loop; 0: as `splits_for` says.
        weights_first: compute W . A^T.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group_m: int = 8
    splits: int = 0
    weights_first: bool = True


@dataclass(frozen=True, kw_only=True)
class BlockConfiguration:
    """Of the float ops.

    Attributes:
        elements: of x in one block of a program.
        warps: of a program.
        form: one of `FORMS`, of group_norm_silu_quantize.
        chunk: blocks of rows that one program of a statistics pass goes over.
    """

    elements: int
    warps: int
    form: str = "whole"
    chunk: int = 4


Configuration = ProductConfiguration | BlockConfiguration
_BOUNDED = {"m", "n", "k", "bits"}
_MEASURED = {"milliseconds", "milliseconds_default", "tried", "wrong", "failed"}
_LARGEST = {"block_m": 512, "block_n": 512, "block_k": 512, "warps": 32, "elements": 1 << 16}
"""What no GPU takes more of in one program."""
FORMS = ("whole", "resident", "split")
"""A group by one program in several passes, by one program that keeps it in registers, by several programs."""
PRODUCTS = ("int_linear", "int_conv2d")


def architecture_of(capability: tuple[int, int]) -> int:
    """Row of the tables for a compute capability: the newest architecture that is not newer.

    Raises:
        KernelInputError: below 8.0, where Triton has no int8 product.
    """
    if capability < MIN_CAPABILITY:
        raise KernelInputError(
            f"this GPU has compute capability {capability[0]}.{capability[1]}, the kernels need 8.0 or newer "
            "(A100, RTX 30 and later); use the onnxruntime or the tensorrt engine"
        )
    number = 10 * capability[0] + capability[1]
    return max(known for known in ARCHITECTURES if known <= number)


def load_table(path: Path = TABLE_FILE) -> list[dict[str, Any]]:
    """Rules of a table file, checked.

    Raises:
        KernelInputError: not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rules = content["rules"]
        if content["format"] != FORMAT:
            raise KernelInputError(f"{path} has format {content['format']}, expected {FORMAT}; tune again")
        for rule in rules:
            _check_rule(rule)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, KernelInputError):
            raise
        raise KernelInputError(f"{path} is no table of configurations ({error}); write one with dq-tune") from error
    return list(rules)


def _check_rule(rule: Mapping[str, Any]) -> None:
    """Refuse a rule that could not be used, so that nothing fails where a kernel is launched.

    Raises:
        KernelInputError: an op, bounds or architectures that are none, or a configuration that is out of range.
        TypeError: a configuration with another name.
    """
    from dq_kernels import OPS

    if rule["op"] not in OPS:
        raise KernelInputError(f"a rule is for op {rule['op']!r}, expected one of {', '.join(OPS)}; correct the table")
    if unknown := set(rule) - {"op", "use", "architectures", *_MEASURED, *_BOUNDED}:
        raise KernelInputError(f"a rule of {rule['op']} has {sorted(unknown)}, expected m, n, k or bits; correct it")
    for name in _BOUNDED & set(rule):
        bounds = rule[name]
        whole = isinstance(bounds, list) and len(bounds) == 2 and all(type(value) is int for value in bounds)
        if not whole or bounds[0] > bounds[1]:
            raise KernelInputError(f"{name} of a rule of {rule['op']} is {bounds!r}, expected [least, most]")
    architectures = rule.get("architectures", [])
    if not isinstance(architectures, list) or not set(architectures) <= set(ARCHITECTURES):
        raise KernelInputError(f"architectures of a rule are {architectures!r}, expected some of {ARCHITECTURES}")
    configuration_from(rule["op"], rule["use"])


def default_table() -> tuple[dict[str, Any], ...]:
    """The table of this package, behind the one that `TILES_VARIABLE` names.

    Raises:
        KernelInputError: that is none.
    """
    return _rules(os.environ.get(TILES_VARIABLE, ""))


@functools.lru_cache(maxsize=4)
def _rules(named: str) -> tuple[dict[str, Any], ...]:
    return (*(load_table(Path(named)) if named else ()), *load_table())


def configuration_from(op: str, values: Mapping[str, Any]) -> Configuration:
    """A checked configuration.

    Raises:
        KernelInputError: blocks or warps that are no power of 2, or a product's blocks below 16 (32 of K).
        TypeError: a name that is none.
    """
    found: Configuration = ProductConfiguration(**values) if op in PRODUCTS else BlockConfiguration(**values)
    powers = {"warps": (found.warps, 1)}
    if isinstance(found, ProductConfiguration):
        powers |= {"block_m": (found.block_m, 16), "block_n": (found.block_n, 16), "block_k": (found.block_k, 32)}
        if not (1 <= found.stages <= 8 and found.group_m >= 1 and 0 <= found.splits <= MAX_SPLITS):
            raise KernelInputError(f"configuration {found} of {op}: stages, group_m or splits out of range")
    else:
        powers |= {"elements": (found.elements, 32)}
        if found.form not in FORMS or found.chunk < 1:
            raise KernelInputError(f"configuration {found} of {op}: expected form {', '.join(FORMS)} and chunk from 1")
    for name, (value, least) in powers.items():
        most = _LARGEST[name]
        if type(value) is not int or not least <= value <= most or value & (value - 1):
            raise KernelInputError(
                f"{name} of {op} is {value!r}, expected a power of 2 from {least} to {most}; correct the table"
            )
    return found


def choose(
    op: str,
    architecture: int,
    facts: Mapping[str, int],
    table: Table | None = None,
) -> Configuration:
    """Configuration of the first rule that fits.

    Args:
        op: one of the six.
        architecture: of `ARCHITECTURES`.
        facts: of the products m, n, k (k in channels over all taps) and bits; of group norm m = batch * groups,
            k = values of a group; of the others none are needed. A rule bounds them by [least, most].
        table: rules in front of the default ones.

    Raises:
        KernelInputError: no rule, which the default table does not let happen.
    """
    for rule in (*(table or ()), *default_table()):
        if rule["op"] != op or architecture not in rule.get("architectures", ARCHITECTURES):
            continue
        bounds = {name: rule[name] for name in ("m", "n", "k", "bits") if name in rule}
        if all(low <= facts.get(name, low) <= high for name, (low, high) in bounds.items()):
            return configuration_from(op, rule["use"])
    raise KernelInputError(
        f"the table has no rule for {op} on sm_{architecture} with {dict(facts)}; add one without bounds"
    )


def fit_to_pitch(configuration: ProductConfiguration, weight_pitch: int) -> ProductConfiguration:
    """The same with the largest block_k from 32 that divides the weight rows, where one does, and stages in return."""
    block, stages = configuration.block_k, configuration.stages
    fitting = [size for size in (512, 256, 128, 64, 32) if size <= block and weight_pitch % size == 0]
    wanted = fitting[0] if fitting else min(block, max(32, next_power(weight_pitch)))
    while block > wanted:
        block, stages = block // 2, min(stages + 1, 5)
    return ProductConfiguration(**{**configuration.__dict__, "block_k": block, "stages": stages})


def splits_for(configuration: ProductConfiguration, architecture: int, m: int, n: int, steps: int) -> int:
    """Parts of a K loop of `steps` blocks that fill the GPU, each with at least 4 blocks."""
    if configuration.splits:
        return min(configuration.splits, steps)
    tiles = -(-m // configuration.block_m) * -(-n // configuration.block_n)
    wanted = max(1, min(SM_COUNT[architecture] // tiles, steps // 4, MAX_SPLITS))
    share = -(-steps // wanted)
    return -(-steps // share)


def channel_block(channels: int, most: int) -> int:
    """Power of 2 up to `most` that wastes the fewest channels, the largest of those; at least 16."""
    sizes = [size for size in (16, 32, 64, 128, 256, 512) if size <= most] or [16]
    return min(reversed(sizes), key=lambda size: -(-channels // size) * size)


def next_power(n: int) -> int:
    """Smallest power of 2 that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
