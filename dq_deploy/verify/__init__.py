"""Proof that an engine computes what the record says: codes, accumulators, edges, outputs and kernels."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from dq_deploy.verify.proof import verify, verify_plan
from dq_deploy.verify.report.values import LayerReport, Report, StepCell

__all__ = ["LayerReport", "Report", "StepCell", "verify", "verify_plan"]


class _CallableRoom(ModuleType):
    """This package, which can be called like its function: `dq_deploy.verify` is both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return verify(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
