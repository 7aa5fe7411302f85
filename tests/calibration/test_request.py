"""What the options of calibration mean, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dq_deploy.calibration.request import CalibrationRequest, prepare_calibration
from dq_deploy.errors import OptionError


def test_an_unknown_kind_is_refused_whatever_is_calibrated():
    denoiser: Any = None  # nothing of it is looked at
    with pytest.raises(OptionError, match="`kind` is 'foo', expected one of trajectory, random, latents"):
        prepare_calibration(denoiser, Path("anything"), CalibrationRequest(kind="foo"))
