"""Methods: a float denoiser in, a record out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq_deploy.errors import OptionError
from dq_deploy.methods.options import METHODS, LayerPlan, QuantizeOptions, plan_layers
from dq_deploy.methods.presets import PRESETS, options_from_preset
from dq_deploy.methods.progress import Progress

if TYPE_CHECKING:
    from dq_deploy.calibration import CalibrationSource
    from dq_deploy.models import Denoiser
    from dq_deploy.record import Record

__all__ = [
    "METHODS",
    "PRESETS",
    "LayerPlan",
    "Progress",
    "QuantizeOptions",
    "options_from_preset",
    "plan_layers",
    "quantize",
]


def quantize(
    denoiser: Denoiser,
    options: QuantizeOptions | None = None,
    *,
    calibration: CalibrationSource | None = None,
    progress: Callable[[Progress], None] | None = None,
    resume_dir: str | Path | None = None,
    **kwargs: Any,
) -> Record:
    """Quantize a float denoiser.

    The same denoiser, options, library versions and thread count give the same record.

    Args:
        denoiser: from `dq_deploy.load_model`; it is not changed.
        options: what to do; or give its fields as keyword arguments, `method="minmax"` and so on.
        calibration: where calibration inputs come from; by default the model's own sampling trajectory, with random
            embeddings where the model is conditioned on some.
        progress: called with a `Progress` now and then.
        resume_dir: folder where a method that trains keeps its state after each block, and continues from
            when it is called again with the same model and options.
        **kwargs: fields of `QuantizeOptions`, instead of `options`.

    Returns:
        The record, ready to be saved, exported or simulated.

    Raises:
        OptionError: options are out of range, contradict each other, or name layers that are not there.
        NonFiniteError: the float model or the training gives NaN or infinity.
    """
    from dq_deploy.methods.progress import silent

    if options is not None and kwargs:
        raise OptionError(f"got options and {', '.join(kwargs)}, expected one of the two")
    if options is None:
        unknown = set(kwargs) - set(QuantizeOptions.__dataclass_fields__)
        if unknown:
            known = ", ".join(QuantizeOptions.__dataclass_fields__)
            raise OptionError(f"unknown option {', '.join(sorted(unknown))}, expected {known}")
        options = QuantizeOptions(**kwargs)
    from dq_deploy.calibration import CalibrationSource

    source = calibration or CalibrationSource()
    if options.method == "minmax":
        from dq_deploy.methods.minmax import quantize_minmax

        return quantize_minmax(denoiser, options, source, progress or silent)
    from dq_deploy.methods.dilatequant import quantize_dilatequant

    folder = None if resume_dir is None else Path(resume_dir)
    return quantize_dilatequant(denoiser, options, source, progress or silent, folder)
