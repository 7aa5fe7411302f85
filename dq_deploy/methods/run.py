"""What a method works on besides its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dq_deploy.calibration import CalibrationSource
from dq_deploy.calibration.sharding import Workers
from dq_deploy.errors import OptionError
from dq_deploy.methods.options import SharedOptions
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


SHARABLE = ("minmax", "gptq", "dilatequant", "eda-dm")
"""Methods whose work several processes can share."""

ALONE = (
    *("budget", "activation_budget", "channel_scales", "step_correction", "picture_iterations", "attention"),
    "finetune",
)
"""Options whose work they cannot share."""


def check_sharable(workers: Workers, options: SharedOptions) -> None:
    """Refuse what several processes, or the shards that they would have, cannot do.

    Raises:
        OptionError: names the method or the option.
    """
    if workers.shards == 1:
        return
    advice = "run without torchrun"
    if options.method not in SHARABLE:
        raise OptionError(
            f"method is {options.method} in processes that share the work, expected {', '.join(SHARABLE)}; {advice}"
        )
    for name in ALONE:
        if getattr(options, name, None):
            raise OptionError(
                f"got `{name}` in processes that share the work, which cannot share this; leave it out, or {advice}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One call of `dq_deploy.methods.quantize`.

    Attributes:
        denoiser: the float model; it is not changed.
        source: where calibration inputs come from.
        progress: called now and then.
        resume_dir: folder where a method that trains keeps its state, or None.
        workers: the processes that share the work, this one alone by default.
    """

    denoiser: Denoiser
    source: CalibrationSource
    progress: ProgressCallback
    resume_dir: Path | None = None
    workers: Workers = field(default_factory=Workers)

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report the progress of a stage."""
        self.progress(Progress(stage=stage, done=done, total=total))
