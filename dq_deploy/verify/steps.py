"""The steps of a proof, and how a step that is left out is said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Step(Enum):
    """One thing that a proof does with an engine; the value says it in words."""

    FILE = "compare the file with what its record makes"
    LAYERS = "compare codes and accumulators of every layer"
    PROBE = "probe every layer with extreme inputs"
    OUTPUTS = "compare outputs"
    FLOAT_OPERATIONS = "compare the float operations between the layers"
    KERNELS = "read which kernels run"
    MEMORY = "compare what the opened engine holds with what its record makes"


class Reason(Enum):
    """Why a step was left out."""

    NOT_ASKED = "not asked for"
    NEEDS_GPU = "needs a GPU"
    NEEDS_RECORD = "needs the record"
    NOT_READABLE = "the engine does not show what is compared"
    IS_THE_RECORD = "the engine's file is the record itself"
    IS_THE_FILE = "the engine's memory holds what its file does"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A step that was not done.

    Attributes:
        step: which.
        reason: why.
        text: more about the reason, for a person; may be empty.
    """

    step: Step
    reason: Reason
    text: str = ""

    @property
    def lacking(self) -> bool:
        """Whether the proof is the weaker for it: not where there was nothing to be done."""
        return self.reason not in (Reason.IS_THE_RECORD, Reason.IS_THE_FILE)

    def words(self) -> str:
        """The reason for a person."""
        return self.text or self.reason.value
