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


STOPPED = "gptq.resume"
"""Folder with the state of a stopped run, in which more processes go on; fewer do in tests/cli."""


def made(method: str, workers: Workers, **more: Any) -> Record:
    """A record of the small UNet."""
    from tests.tiny import tiny_conditional_denoiser

    denoiser = tiny_conditional_denoiser(
        block_out_channels=[8], down_block_types=["CrossAttnDownBlock2D"], up_block_types=["UpBlock2D"]
    )
    return quantize(denoiser, method=method, workers=workers, **OPTIONS[method], **SHARED, **more)


def main() -> None:
    """Write each method's record into a folder, and what becomes of a stopped run whose state lies there."""
    from dq_deploy.calibration.sharding.group import joined

    folder, workers = Path(sys.argv[1]), joined()
    tally = workers.tally()
    workers.everywhere(lambda: tally.add(1))
    assert tally.add(0) == workers.count, "progress is of one process, not of all"
    for method in OPTIONS:
        record = made(method, workers)
        if workers.is_first:
            save_record(record, folder / f"{method}.pt")
    if (folder / STOPPED).exists():
        record = made("gptq", workers, resume_dir=folder / STOPPED)
        if workers.is_first:
            save_record(record, folder / "resumed.pt")
    workers.close()


if __name__ == "__main__":
    main()
