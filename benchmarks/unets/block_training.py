"""DilateQuant's block training at the size of Stable Diffusion 1.5: seconds and memory, block by block; random weights.

    python -m benchmarks.unets.block_training                          # all 78 blocks, about twenty minutes of one core
    python -m benchmarks.unets.block_training --until down_blocks.0.attentions.0 --inputs 4 --iterations 4

The method is the one that `dq-quantize` runs, on inputs of unit noise: neither time nor memory depends on their values.
It is stopped behind the first block whose name begins with --until. Peak memory stands beside what docs/methods.md
says. A line of JSON is printed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.machine.commit import commit
from benchmarks.unets.denoisers import sd15_denoiser
from dq_deploy import quantize
from dq_deploy.calibration import CalibrationSource
from dq_deploy.methods import Progress, options_for
from dq_deploy.processes import own_peak_mib


class FarEnoughError(Exception):
    """The last block that is wanted is trained."""


@dataclass
class Watch:
    """Notes when each block was trained.

    Attributes:
        until: beginning of the last block's name, "" for none.
        blocks: name, CPU seconds since the block before was trained, and peak memory so far.
        before_s: CPU seconds before the first block: ranges and first codes.
    """

    until: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    before_s: float = 0.0
    last: float = field(default_factory=time.process_time)

    def __call__(self, report: Progress) -> None:
        """Take a report.

        Raises:
            FarEnoughError: behind the last block.
        """
        if report.note:
            print(report.note, flush=True)
        now = time.process_time()
        if report.loss is None:
            if not self.blocks:
                self.before_s += now - self.last
                self.last = now
            return
        self.blocks.append({"block": report.block, "cpu_s": now - self.last, "peak_mib": own_peak_mib()})
        self.last = now
        print(self.blocks[-1], flush=True)
        if self.until and report.block.startswith(self.until):
            raise FarEnoughError


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", default="", help="beginning of the last block's name; all blocks by default")
    parser.add_argument("--inputs", type=int, default=2, help="of each of two steps")
    parser.add_argument("--iterations", type=int, default=3, help="of a block, at most 10: one report each")
    parser.add_argument("--memory-gib", type=float, default=2.0)
    arguments = parser.parse_args()
    if not 1 <= arguments.iterations <= 10 or arguments.inputs < 1:
        parser.error("expected --iterations from 1 to 10 and --inputs from 1")
    torch.set_num_threads(1)
    libraries_mib = own_peak_mib()
    denoiser = sd15_denoiser()
    weights = sum(p.numel() for p in denoiser.module.parameters())
    inputs = 2 * arguments.inputs
    options = options_for(
        "dilatequant",
        weight_bits=4,
        activation_bits=8,
        steps=2,
        samples=arguments.inputs,
        iterations=arguments.iterations,
        batch=inputs,
        memory_gib=arguments.memory_gib,
    )
    watch = Watch(arguments.until)
    with contextlib.suppress(FarEnoughError):
        quantize(denoiser, options, calibration=CalibrationSource(kind="random"), progress=watch)
    print(
        json.dumps(
            {
                "commit": commit(),
                "inputs": inputs,
                "iterations": arguments.iterations,
                "memory_gib": arguments.memory_gib,
                "before_s": watch.before_s,
                "blocks": watch.blocks,
                "cpu_s_of_an_input": sum(block["cpu_s"] for block in watch.blocks) / arguments.iterations / inputs,
                "peak_mib": own_peak_mib(),
                "by_the_docs_mib": libraries_mib + 9 * weights / 2**20 + 1024 * arguments.memory_gib,
            }
        )
    )


if __name__ == "__main__":
    main()
