"""What is known of the denoiser's output."""

from __future__ import annotations

from dataclasses import dataclass

from dq_deploy.verify.inputs import Finals
from dq_deploy.verify.output.difference import StepOutput
from dq_deploy.verify.output.parting import Parting


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the comparison of the denoiser's output found.

    Attributes:
        steps: errors by step bucket; empty where there is nothing to compare with.
        notes: what is worth knowing of it.
        failures: what is wrong, in words.
        parting: where engine and simulation part at the step with the least margin; None where none is too small.
    """

    steps: tuple[StepOutput, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    parting: Parting | None = None


@dataclass(frozen=True, kw_only=True)
class TwinOutputs:
    """Outputs of the twin: the record simulated inside the engine's own float operations.

    Attributes:
        outputs: of each batch; None where there is no twin.
        unknown: why there is none, in words; empty where that needs no word.
        failure: what is wrong between the engine and its twin, in words, or an empty string.
    """

    outputs: list[Finals] | None
    unknown: str = ""
    failure: str = ""
