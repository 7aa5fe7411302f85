"""A proof of a native engine that is open already, damaged or not."""

from __future__ import annotations

from pathlib import Path

from dq_deploy.native.runner import NativeRunner
from dq_deploy.record import Record
from dq_deploy.verify import Report
from dq_deploy.verify.native.prover import NativeProver
from dq_deploy.verify.prover import ProofOptions, Subject, prove


def proof_of(record: Record, runner: NativeRunner, options: ProofOptions) -> Report:
    """The report; whether the engine says that it runs this record is not asked."""
    return prove(NativeProver(Subject(record=record, path=Path("model.pt"), options=options), runner))
