"""The scheduler of a pipeline beside the one that a record was calibrated with: what differs is refused or said."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq_deploy.errors import SchedulerWarning
from dq_deploy.models.load.scheduler_file import scheduler_config_of
from dq_deploy.models.pipeline.scheduler_values import check_trained_values, differences, in_words

NAME_ONE = "name one as `scheduler` to have the folder's values, or quantize again"


def check_same_scheduler(
    calibrated: Mapping[str, Any] | None,
    folder: Path,
    *,
    asked: str | None = None,
    advice: str = "quantize again to have the folder's",
) -> None:
    """Refuse a folder whose scheduler does not step the model that was trained; warn where it only samples otherwise.

    Args:
        calibrated: configuration of the scheduler that the record was calibrated with; None where it is not known.
        folder: of the denoiser, inside its pipeline where there is one.
        asked: the scheduler's name, where one is built from the folder's values; by default the calibrated one counts.
        advice: what to do where the calibrated one counts.

    Raises:
        OptionError: noise levels, what the output stands for, or another value that weights are trained with differs.
    """
    check_same_values(calibrated, scheduler_config_of(folder), str(folder), asked=asked, advice=advice)


def check_same_values(
    calibrated: Mapping[str, Any] | None,
    other: Mapping[str, Any] | None,
    place: str,
    *,
    asked: str | None = None,
    advice: str = "quantize again to have the folder's",
) -> None:
    """As `check_same_scheduler`, of a configuration that is read already.

    Args:
        calibrated: configuration of the scheduler that the record was calibrated with; None where it is not known.
        other: of the scheduler in the folder; None where there is none.
        place: the folder.
        asked: as of `check_same_scheduler`, and so the next.
        advice: likewise.

    Raises:
        OptionError: a value that weights are trained with differs.
    """
    found = differences(calibrated, other)
    check_trained_values(found, f"the scheduler of {place}", "give the pipeline that was quantized, or quantize it")
    if found.free:
        has, wanted = in_words(found.free)
        used = f"which counts; {advice}" if asked is None else f"but `scheduler` {asked} takes the folder's values"
        warnings.warn(
            f"the scheduler of {place} has {has}, the record was calibrated with {wanted}, {used}",
            SchedulerWarning,
            stacklevel=1,
        )
