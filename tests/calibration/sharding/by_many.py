"""Quantizes a small text-conditioned UNet by each method, as one of the processes that torchrun starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dq_deploy.calibration.sharding import Workers
from dq_deploy.methods import quantize
from dq_deploy.record import Record, save_record

OPTIONS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "gptq": {},
    "dilatequant": {"iterations": 3},
    "eda-dm": {"iterations": 3, "calibration_choice": "uniform"},
}
SHARED = {"samples": 5, "steps": 2, "memory_gib": 0.25}


def records(workers: Workers, methods: tuple[str, ...] = tuple(OPTIONS)) -> dict[str, Record]:
    """By method."""
    from tests.tiny import tiny_conditional_denoiser

    denoiser = tiny_conditional_denoiser(
        block_out_channels=[8], down_block_types=["CrossAttnDownBlock2D"], up_block_types=["UpBlock2D"]
    )
    return {m: quantize(denoiser, method=m, workers=workers, **OPTIONS[m], **SHARED) for m in methods}


def main() -> None:
    from dq_deploy.calibration.sharding.group import joined

    workers = joined()
    for method, record in records(workers).items():
        if workers.is_first:
            save_record(record, Path(sys.argv[1]) / f"{method}.pt")
    workers.close()


if __name__ == "__main__":
    main()
