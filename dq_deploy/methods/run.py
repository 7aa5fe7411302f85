"""What a method works on besides its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dq_deploy.calibration import CalibrationSource
from dq_deploy.errors import OptionError
from dq_deploy.methods.progress import Progress, ProgressCallback
from dq_deploy.models import Denoiser


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        OptionError: says what torch has.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"device is cuda, but torch {torch.__version__} sees no GPU of NVIDIA, expected one and a torch built for "
            'CUDA; use `device="cpu"`'
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One call of `dq_deploy.methods.quantize`.

    Attributes:
        denoiser: the float model; it is not changed.
        source: where calibration inputs come from.
        progress: called now and then.
        resume_dir: folder where a method that trains keeps its state, or None.
    """

    denoiser: Denoiser
    source: CalibrationSource
    progress: ProgressCallback
    resume_dir: Path | None = None

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report the progress of a stage."""
        self.progress(Progress(stage=stage, done=done, total=total))
