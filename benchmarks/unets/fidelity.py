"""How near an engine comes to the float model: PSNR of the same pictures, or of the same step's output."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.job import outputs_of
from benchmarks.unets.peer_process import PeerProcess
from dq_deploy.quality.image import psnr_db

PICTURE_RANGE = 2.0
"""Pictures lie within -1 to 1."""


def mean_psnr_db(found: NDArray[np.float32], wanted: NDArray[np.float32], peak: float) -> float:
    """Mean over samples of `dq_deploy.quality.image.psnr_db`; samples that are equal count as 200 dB."""
    return float(np.mean(np.minimum(psnr_db(found, wanted, data_range=peak), 200)))


def fidelity(found: NDArray[np.float32], folder: Path) -> dict[str, Any]:
    """PSNR in dB to the float model's own in the folder of `benchmarks.unets.float_model`, and what was compared."""
    wanted = np.load(folder / "check-float.npy")
    if (folder / "schedule.json").is_file():
        return {"psnr_db": mean_psnr_db(found, wanted, PICTURE_RANGE), "of": f"{len(wanted)} pictures"}
    peak = float(wanted.max() - wanted.min())
    return {"psnr_db": mean_psnr_db(found, wanted, peak), "of": f"{len(wanted)} outputs of one step"}


def of_peer(peer: PeerProcess, folder: Path) -> dict[str, Any]:
    """Of an open peer."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "found.npy"
        peer.draw(out)
        return fidelity(np.load(out), folder)


def of_file(path: Path, engine: str, folder: Path, batch: int, threads: int, **native: str | None) -> dict[str, Any]:
    """Of a record or one of our graphs, in this process.

    Args:
        path: of the file.
        engine: that runs it.
        folder: of `benchmarks.unets.float_model`.
        batch: samples of a call.
        threads: of a call.
        **native: `isa` and `attention` of the native engine, as of `dq_deploy.open_engine`.
    """
    from dq_deploy.open_engine import open_engine

    with open_engine(path, engine=engine, threads=threads, hash_check=False, **native) as runner:
        kinds = {spec.name: spec.dtype for spec in runner.inputs}

        def run(inputs: dict[str, Any]) -> Any:
            outputs = runner.run({name: inputs[name].astype(kind, copy=False) for name, kind in kinds.items()})
            return next(iter(outputs.values()))

        return fidelity(outputs_of(run, folder, batch), folder)
